import test from 'ava';
import type { ApiObject } from './api-server/objects.ts';
import { serviceObject, serviceRows } from './services.ts';

const object = (name: string, fields: object, labels = {}): ApiObject => ({
  kind: 'X',
  apiVersion: 'v1',
  metadata: { namespace: 'default', name, labels },
  ...fields,
});

test('serviceObject: what is not asked for is left to the server', (t) => {
  const request = {
    namespace: 'default',
    name: 'web',
    type: 'ClusterIP',
    port: 80,
    protocol: 'TCP',
    selector: { a: 'b' },
  };
  const asJson = (value: unknown) => JSON.parse(JSON.stringify(value));
  t.deepEqual(asJson(serviceObject(request)).spec, {
    type: 'ClusterIP',
    selector: { a: 'b' },
    ports: [{ port: 80, protocol: 'TCP' }],
  });
  const full = {
    ...request,
    type: 'NodePort',
    targetPort: '8080',
    nodePort: 30_080,
    clusterIp: '10.96.0.9',
    families: 'dual',
    affinitySeconds: 60,
    internalPolicy: 'Local',
    externalPolicy: 'Local',
    distribution: 'PreferSameZone',
    externalIps: ['192.0.2.1'],
  } as const;
  t.deepEqual(asJson(serviceObject(full)).spec, {
    type: 'NodePort',
    selector: { a: 'b' },
    ports: [{ port: 80, protocol: 'TCP', targetPort: 8080, nodePort: 30_080 }],
    clusterIP: '10.96.0.9',
    ipFamilyPolicy: 'RequireDualStack',
    internalTrafficPolicy: 'Local',
    externalTrafficPolicy: 'Local',
    trafficDistribution: 'PreferSameZone',
    externalIPs: ['192.0.2.1'],
    sessionAffinity: 'ClientIP',
    sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } },
  });
  t.like(serviceObject({ ...request, targetPort: 'http' }), { spec: { ports: [{ targetPort: 'http' }] } });
});

test('serviceRows: a row a port, with its addresses and the state of its endpoints', (t) => {
  const services = [
    object('web', {
      spec: {
        type: 'LoadBalancer',
        clusterIPs: ['10.96.0.9', 'fd96::9'],
        externalIPs: ['192.0.2.1'],
        ports: [
          { name: 'http', port: 80, protocol: 'TCP', nodePort: 30_080 },
          { name: 'dns', port: 53, protocol: 'UDP' },
        ],
      },
      status: { loadBalancer: { ingress: [{ ip: '192.0.2.7' }, { hostname: 'x' }] } },
    }),
    object('h', { spec: { clusterIPs: ['None'] } }),
    object('e', { spec: { type: 'ExternalName', externalName: 'example.org' } }),
  ];
  const slice = (service: string, fields: object) => object('s', fields, { 'kubernetes.io/service-name': service });
  const slices = [
    slice('web', {
      ports: [{ name: 'http', port: 8080, protocol: 'TCP' }],
      endpoints: [
        { addresses: ['10.84.0.2'] },
        { addresses: ['10.84.0.3'], conditions: { ready: false, serving: true, terminating: true } },
        { addresses: ['10.84.0.4'], conditions: { ready: false } },
      ],
    }),
    slice('web', { ports: null, endpoints: null }),
    slice('web', { ports: [{ name: 'http', port: 8080, protocol: 'TCP' }], endpoints: [{ addresses: ['fd84::2'] }] }),
    slice('h', { ports: [], endpoints: [{ addresses: ['10.84.0.2'] }] }),
  ];
  t.deepEqual(serviceRows(services, slices), [
    {
      service: 'default/web:http',
      type: 'LoadBalancer',
      frontends: ['10.96.0.9:80/TCP', '[fd96::9]:80/TCP', '192.0.2.1:80/TCP', '192.0.2.7:80/TCP', 'node:30080/TCP'],
      endpoints: ['10.84.0.2:8080', '10.84.0.3:8080 (terminating)', '10.84.0.4:8080 (not ready)', '[fd84::2]:8080'],
    },
    {
      service: 'default/web:dns',
      type: 'LoadBalancer',
      frontends: ['10.96.0.9:53/UDP', '[fd96::9]:53/UDP', '192.0.2.1:53/UDP', '192.0.2.7:53/UDP'],
      endpoints: [],
    },
    { service: 'default/h', type: 'ClusterIP', frontends: ['headless'], endpoints: ['10.84.0.2'] },
    { service: 'default/e', type: 'ExternalName', frontends: ['example.org'], endpoints: [] },
  ]);
});
