import test from 'ava';
import fc from 'fast-check';
import { narrowEndpointSliceFor, narrowService } from './narrow-services.ts';

const metadata = { name: 'web', namespace: 'default', uid: 'u1', creationTimestamp: '2026-01-02T03:04:05Z' };

const service = (spec: object, more: object = {}) => narrowService({ metadata, spec, ...more });
const slice = (more: object) =>
  narrowEndpointSliceFor('n1')({
    metadata: { ...metadata, labels: { 'kubernetes.io/service-name': 'web' } },
    addressType: 'IPv4',
    ports: [{ port: 8080 }],
    ...more,
  });
const endpointsOf = (...endpoints: object[]) => slice({ endpoints });

test('a Service with every optional field absent is a ClusterIP of TCP for everybody', (t) => {
  t.deepEqual<unknown, unknown>(service({ clusterIP: '10.96.0.7', ports: [{ port: 80 }] }), {
    value: {
      namespace: 'default',
      name: 'web',
      uid: 'u1',
      creationMs: Date.parse('2026-01-02T03:04:05Z'),
      clusterIps: ['10.96.0.7'],
      externalIps: [],
      loadBalancerIps: [],
      ports: [{ name: '', protocol: 'TCP', port: 80 }],
      internalTrafficPolicy: 'Cluster',
      externalTrafficPolicy: 'Cluster',
    },
    problems: [],
  });
  t.deepEqual(narrowService({ metadata }), { problems: [] });
  t.regex(narrowService({ metadata: { name: 'web' } }).problems.join(), /Service ""\/"web" is left out/);
});

test('a Service with every field', (t) => {
  const { value, problems } = service(
    {
      type: 'LoadBalancer',
      clusterIPs: ['10.96.0.7', 'FD00:96::7'],
      externalIPs: ['192.0.2.1', '192.0.2.1'],
      loadBalancerSourceRanges: [' 198.51.100.0/24 ', '2001:db8::/32'],
      internalTrafficPolicy: 'Local',
      externalTrafficPolicy: 'Local',
      healthCheckNodePort: 30002,
      sessionAffinity: 'ClientIP',
      sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } },
      ports: [
        { name: 'http', port: 80, nodePort: 30080 },
        { name: 'dns', port: 53, protocol: 'UDP', nodePort: 0 },
      ],
    },
    {
      status: {
        loadBalancer: {
          ingress: [{ ip: '203.0.113.1', ipMode: 'VIP' }, { ip: '203.0.113.2', ipMode: 'Proxy' }, { hostname: 'lb' }],
        },
      },
    },
  );
  t.deepEqual(problems, []);
  t.like(value as object, {
    clusterIps: ['10.96.0.7', 'fd00:96::7'],
    externalIps: ['192.0.2.1'],
    loadBalancerIps: ['203.0.113.1'],
    sourceRanges: ['198.51.100.0/24', '2001:db8::/32'],
    internalTrafficPolicy: 'Local',
    externalTrafficPolicy: 'Local',
    healthCheckNodePort: 30002,
    affinitySeconds: 60,
    ports: [
      { name: 'http', protocol: 'TCP', port: 80, nodePort: 30080 },
      { name: 'dns', protocol: 'UDP', port: 53 },
    ],
  });
});

test('what no proxy or another one serves is no object and no problem', (t) => {
  const spec = { clusterIP: '10.96.0.7', ports: [{ port: 80 }] };
  t.deepEqual(service({ clusterIP: 'None', clusterIPs: ['None'] }), { problems: [] });
  t.deepEqual(service({ type: 'ExternalName', externalName: 'example.org' }), { problems: [] });
  for (const label of ['service.kubernetes.io/headless', 'service.kubernetes.io/service-proxy-name']) {
    const labels = { [label]: '', 'kubernetes.io/service-name': 'web' };
    t.deepEqual(service(spec, { metadata: { ...metadata, labels } }), { problems: [] }, label);
    t.deepEqual(slice({ metadata: { ...metadata, labels } }), { problems: [] }, label);
  }
  t.deepEqual(slice({ addressType: 'FQDN', endpoints: [{ addresses: ['a.example'] }] }), { problems: [] });
});

test('the parts of a Service that are wrong are left out one by one, and named', (t) => {
  const { value, problems } = service({
    clusterIP: '10.96.0.7',
    externalIPs: ['nonsense'],
    sessionAffinity: 'Cookie',
    internalTrafficPolicy: 'Near',
    ports: [
      { port: 0 },
      { port: 80, protocol: 'DCCP' },
      { port: '80' },
      { name: 'a', port: 80 },
      { name: 'b', port: 80 },
    ],
  });
  t.deepEqual<unknown, unknown>(value?.ports, [{ name: 'a', protocol: 'TCP', port: 80 }]);
  t.deepEqual([...problems].sort(), [
    'spec.externalIPs has "nonsense": expected an IP address',
    'spec.internalTrafficPolicy is "Near": expected Cluster or Local, so Cluster is used',
    'spec.ports[0].port is 0: expected a port from 1 to 65535',
    'spec.ports[1].protocol is "DCCP": expected one of TCP, UDP, SCTP',
    'spec.ports[2].port is "80": expected a port from 1 to 65535',
    'spec.ports[4] has TCP 80 again: expected each once, so the first is used',
    'spec.sessionAffinity is "Cookie": expected None or ClientIP, so None is used',
  ]);
});

test('source ranges of which none can be used admit nobody', (t) => {
  const spec = { type: 'LoadBalancer', clusterIP: '10.96.0.7', loadBalancerSourceRanges: ['all'] };
  t.deepEqual(service(spec).value?.sourceRanges, []);
});

test('the affinity lasts three hours unless the Service says otherwise', (t) => {
  const seconds = (timeoutSeconds?: unknown) => {
    const config = { sessionAffinityConfig: { clientIP: { timeoutSeconds } } };
    return service({ clusterIP: '10.96.0.7', sessionAffinity: 'ClientIP', ...config }).value?.affinitySeconds;
  };
  t.deepEqual(
    [undefined, null, 1, 86_400, 0, 86_401, '5'].map(seconds),
    [10_800, 10_800, 1, 86_400, 10_800, 10_800, 10_800],
  );
});

test('what becomes of an endpoint: ready, serving, terminating', (t) => {
  const state = (conditions?: object) =>
    endpointsOf({ addresses: ['10.84.0.5'], conditions }).value?.endpoints[0]?.state;
  const [yes, no] = [true, false];
  t.is(state(), 'ready');
  t.is(state({ ready: null, serving: null, terminating: null }), 'ready');
  t.is(state({ ready: yes, serving: no, terminating: yes }), 'ready');
  t.is(state({ ready: no }), undefined);
  t.is(state({ ready: no, serving: yes }), undefined);
  t.is(state({ ready: no, terminating: yes }), 'draining');
  t.is(state({ ready: no, serving: yes, terminating: yes }), 'draining');
  t.is(state({ ready: no, serving: no, terminating: yes }), undefined);
});

test('an endpoint keeps what this node needs of place and hints', (t) => {
  const hints = { forZones: [{ name: 'z1' }], forNodes: [{ name: 'n1' }] };
  const { value } = endpointsOf(
    { addresses: ['10.84.0.5', '10.84.0.6'], nodeName: 'n1', zone: 'z1', hints },
    { addresses: ['10.84.1.5'], nodeName: 'n2', hints: { forNodes: [{ name: 'n2' }] } },
    { addresses: ['10.84.1.6'], hints },
  );
  t.deepEqual<unknown, unknown>(value?.endpoints, [
    { ip: '10.84.0.5', state: 'ready', local: true, zones: ['z1'], nodeHint: 'here' },
    { ip: '10.84.1.5', state: 'ready', nodeHint: 'elsewhere' },
    { ip: '10.84.1.6', state: 'ready', zones: ['z1'], nodeHint: 'here' },
  ]);
  t.is(value?.endpoints[0]?.zones, value?.endpoints[2]?.zones);
});

test('no endpoint is an address that is no host’s, or of another family', (t) => {
  const bad = ['127.0.0.1', '169.254.169.254', '0.0.0.0', '224.0.0.1', '255.255.255.255', 'fd00::1', 'x', ''];
  const { value, problems } = endpointsOf(...bad.map((ip) => ({ addresses: [ip] })), { addresses: ['10.84.0.5'] });
  t.deepEqual<unknown, unknown>(value?.endpoints, [{ ip: '10.84.0.5', state: 'ready' }]);
  t.is(problems.length, bad.length);
  t.regex(problems.join('\n'), /endpoints has 127\.0\.0\.1: expected the ipv4 address of a host, got a loopback one/);
  const bad6 = ['::1', 'fe80::1', '::', 'ff02::1', '::ffff:10.0.0.1', '10.84.0.5'];
  const six = slice({ addressType: 'IPv6', endpoints: bad6.map((ip) => ({ addresses: [ip] })) });
  t.deepEqual([six.value?.endpoints, six.problems.length], [[], bad6.length]);
});

test('a slice of no Service or of an unknown family is left out', (t) => {
  t.regex(slice({ metadata }).problems.join(), /no label kubernetes\.io\/service-name/);
  t.regex(slice({ addressType: 'IPX' }).problems.join(), /addressType is "IPX": expected IPv4, IPv6 or FQDN/);
  t.is(slice({ addressType: 'IPX' }).value, undefined);
});

test('ports of a slice may be absent, which is all ports, and none of ours', (t) => {
  t.deepEqual<unknown, unknown>(
    slice({ ports: [{ name: 'a' }, { name: 'b', port: 70_000 }, { port: 1, protocol: 'SCTP' }] }),
    {
      value: {
        namespace: 'default',
        name: 'web',
        service: 'default/web',
        family: 'ipv4',
        ports: [{ name: '', protocol: 'SCTP', port: 1 }],
        endpoints: [],
      },
      problems: ['ports[1].port is 70000: expected a port from 1 to 65535'],
    },
  );
});

test('a slice with a thousand faults costs a few sentences', (t) => {
  const { problems } = endpointsOf(...Array.from({ length: 1000 }, () => ({ addresses: ['127.0.0.1'] })));
  t.deepEqual([problems.length, problems.at(-1)], [9, 'and 992 more of this kind']);
});

test('nothing that an API server may send throws', (t) => {
  const shaped = fc.record({ metadata: fc.constant({ ...metadata, labels: { 'kubernetes.io/service-name': 'web' } }) });
  fc.assert(
    fc.property(fc.jsonValue(), shaped, fc.jsonValue(), fc.jsonValue(), (anything, named, a, b) => {
      narrowService(anything);
      narrowEndpointSliceFor('n1')(anything);
      narrowService({ ...named, spec: a, status: b });
      narrowService({
        ...named,
        spec: { clusterIP: '10.96.0.7', ports: a, externalIPs: [b] },
        status: { loadBalancer: b },
      });
      narrowEndpointSliceFor('n1')({ ...named, addressType: 'IPv4', ports: a, endpoints: b });
      narrowEndpointSliceFor('n1')({
        ...named,
        addressType: 'IPv6',
        ports: [a],
        endpoints: [b, { conditions: a, hints: b }],
      });
      t.pass();
    }),
  );
});
