import test from 'ava';
import { cidr, ip, settings } from '../../../test/support/cluster-values.ts';
import { frontendLines, selfNode, service, slice } from '../../../test/support/service-values.ts';
import type { EndpointSlice, Service } from '../../model/services.ts';
import { planGuard } from './guard.ts';
import { planService, type ServiceContext } from './service.ts';
import type { ServiceSettings } from './settings.ts';

const open: ServiceSettings = { ...settings, 'services.externalAddresses': [cidr('0.0.0.0/0'), cidr('::/0')] };

const context = (more: Partial<ServiceContext> = {}): ServiceContext => ({
  zone: 'z1',
  nodePortIps: [ip('172.30.0.11'), ip('fd30::11')],
  guard: planGuard([selfNode], new Map(), [{ ip: ip('172.30.0.1'), port: 6443 }], open),
  ...more,
});

const plan = (of: Service, slices: readonly EndpointSlice[], more?: Partial<ServiceContext>) =>
  planService(of, slices, context(more), () => undefined);

const lines = (of: Service, ...slices: readonly EndpointSlice[]) => {
  const { frontends, sets, problems } = plan(of, slices);
  return [...problems, frontendLines(frontends, sets)].join('\n');
};

const REFUSE_OTHERS = ['external 10.96.0.7:* -> refuse', 'internal 10.96.0.7:* -> refuse'];

test('a ClusterIP: its backends from inside, masqueraded from outside, and no other port', (t) => {
  t.is(
    lines(service('web', { affinitySeconds: 60 }), slice('web', '10.84.1.5 10.84.0.5@')),
    [
      'external 10.96.0.7:* -> refuse',
      'external 10.96.0.7:80/TCP -> 10.84.0.5:8080 10.84.1.5:8080 (masquerade, 60 s)',
      'internal 10.96.0.7:* -> refuse',
      'internal 10.96.0.7:80/TCP -> 10.84.0.5:8080 10.84.1.5:8080 (60 s)',
    ].join('\n'),
  );
});

test('every kind of address, in both families, with each policy', (t) => {
  const all = {
    clusterIps: '10.96.0.7 fd96::7',
    externalIps: '192.0.2.1 2001:db8::1',
    loadBalancerIps: '203.0.113.1',
    ports: 'http:80=30080 dns:53/UDP',
  };
  const slices = [
    slice('web', '10.84.0.5@ 10.84.1.5', { on: 'http:8080 dns:5353/UDP' }),
    slice('web', 'fd84::5@ fd84:0:0:1::5', { on: 'http:8080 dns:5353/UDP', family: 'ipv6', name: 'web-6' }),
  ];
  const both = { 4: '10.84.0.5:8080 10.84.1.5:8080', 6: 'fd84:0:0:1::5:8080 fd84::5:8080' };
  const here = { 4: '10.84.0.5:8080', 6: 'fd84::5:8080' };
  const http = (text: string) =>
    text
      .split('\n')
      .filter((line) => /80\/TCP/.test(line))
      .join('\n');
  t.is(
    http(lines(service('web', all), ...slices)),
    [
      `external 10.96.0.7:80/TCP -> ${both[4]} (masquerade)`,
      `external 172.30.0.11:30080/TCP -> ${both[4]} (masquerade)`,
      `external 192.0.2.1:80/TCP -> ${both[4]} (masquerade)`,
      `external 203.0.113.1:80/TCP -> ${both[4]} (masquerade)`,
      `external [2001:db8::1]:80/TCP -> ${both[6]} (masquerade)`,
      `external [fd30::11]:30080/TCP -> ${both[6]} (masquerade)`,
      `external [fd96::7]:80/TCP -> ${both[6]} (masquerade)`,
      `internal 10.96.0.7:80/TCP -> ${both[4]}`,
      `internal 172.30.0.11:30080/TCP -> ${both[4]}`,
      `internal 192.0.2.1:80/TCP -> ${both[4]}`,
      `internal 203.0.113.1:80/TCP -> ${both[4]}`,
      `internal [2001:db8::1]:80/TCP -> ${both[6]}`,
      `internal [fd30::11]:30080/TCP -> ${both[6]}`,
      `internal [fd96::7]:80/TCP -> ${both[6]}`,
    ].join('\n'),
  );
  // Local outside: packets keep their source and stay; sockets of this node reach everything.
  t.is(
    http(lines(service('web', { ...all, externalTrafficPolicy: 'Local' }), ...slices)),
    [
      `external 10.96.0.7:80/TCP -> ${both[4]} (masquerade)`,
      `external 172.30.0.11:30080/TCP -> ${here[4]}`,
      `external 192.0.2.1:80/TCP -> ${here[4]}`,
      `external 203.0.113.1:80/TCP -> ${here[4]}`,
      `external [2001:db8::1]:80/TCP -> ${here[6]}`,
      `external [fd30::11]:30080/TCP -> ${here[6]}`,
      `external [fd96::7]:80/TCP -> ${both[6]} (masquerade)`,
      `internal 10.96.0.7:80/TCP -> ${both[4]}`,
      `internal 172.30.0.11:30080/TCP -> ${both[4]}`,
      `internal 192.0.2.1:80/TCP -> ${both[4]}`,
      `internal 203.0.113.1:80/TCP -> ${both[4]}`,
      `internal [2001:db8::1]:80/TCP -> ${both[6]}`,
      `internal [fd30::11]:30080/TCP -> ${both[6]}`,
      `internal [fd96::7]:80/TCP -> ${both[6]}`,
    ].join('\n'),
  );
  const local = lines(service('web', { ...all, internalTrafficPolicy: 'Local' }), ...slices);
  t.true(local.includes(`internal 10.96.0.7:80/TCP -> ${here[4]}\n`));
  t.true(local.includes(`internal 203.0.113.1:80/TCP -> ${both[4]}\n`), 'of the cluster address only');
  t.true(local.includes('internal [fd96::7]:53/UDP -> fd84::5:5353\n'));
});

/** Scope × policies × endpoints: what becomes of a connection to the cluster address and to the external one. */
const TRUTH: readonly (readonly [
  endpoints: string,
  clusterInside: string,
  clusterLocalInside: string,
  clusterLocalOutside: string,
  externalInside: string,
  externalOutside: string,
  externalLocalOutside: string,
])[] = [
  ['', 'refuse', 'refuse', 'refuse', 'refuse', 'refuse', 'refuse'],
  ['1.1.1.1', '1', 'refuse', 'drop', '1', '1', 'drop'],
  ['1.1.1.1@', '1', '1', '1', '1', '1', '1'],
  ['1.1.1.1 1.1.1.2@', '1 2', '2', '2', '1 2', '1 2', '2'],
  ['1.1.1.1~', '1', 'refuse', 'drop', '1', '1', 'drop'],
  ['1.1.1.1~@', '1', '1', '1', '1', '1', '1'],
  ['1.1.1.1 1.1.1.2~@', '1', '2', '2', '1', '1', '2'],
  ['1.1.1.1~ 1.1.1.2@', '2', '2', '2', '2', '2', '2'],
  ['1.1.1.1~@ 1.1.1.2@', '2', '2', '2', '2', '2', '2'],
  ['1.1.1.1~ 1.1.1.2~@', '1 2', '2', '2', '1 2', '1 2', '2'],
];
for (const family of ['ipv4', 'ipv6'] as const) {
  for (const [endpoints, ...expected] of TRUTH) {
    test(`${family}: what becomes of connections with the endpoints "${endpoints}"`, (t) => {
      const six = family === 'ipv6';
      const [own, outer] = six ? ['fd96::7', '2001:db8::1'] : ['10.96.0.7', '192.0.2.1'];
      const texts = six ? endpoints.replaceAll('1.1.1.', 'fd01::') : endpoints;
      const outcome = (scope: string, of: string, policy: 'Cluster' | 'Local') => {
        const policies = { internalTrafficPolicy: policy, externalTrafficPolicy: policy };
        const { frontends, sets } = plan(service('web', { clusterIps: own, externalIps: outer, ...policies }), [
          slice('web', texts, { family }),
        ]);
        const found = frontends.filter((each) => each.scope === scope && each.ip === of && each.port === 80);
        t.is(found.length, 1);
        const target = found[0]?.target ?? '';
        const set = sets.find(({ id }) => id === target);
        return set?.backends.map((each) => each.ip.slice(-1)).join(' ') ?? target;
      };
      t.deepEqual(
        [
          outcome('internal', own, 'Cluster'),
          outcome('internal', own, 'Local'),
          outcome('external', own, 'Local'),
          outcome('internal', outer, 'Local'),
          outcome('external', outer, 'Cluster'),
          outcome('external', outer, 'Local'),
        ],
        expected,
      );
      t.is(outcome('external', own, 'Cluster'), expected[0] as string);
      t.is(outcome('internal', outer, 'Cluster'), expected[3] as string);
    });
  }
}

test('only sets that a frontend leads to are made, each once', (t) => {
  const { sets } = plan(service('web', { ports: 'a:80 b:81' }), [
    slice('web', '10.84.0.5@ 10.84.1.5', { on: 'a:1 b:1' }),
  ]);
  t.is(sets.length, 1);
});

test('source ranges are for load-balancer addresses, in both scopes; a family without any is closed', (t) => {
  const of = service('web', {
    clusterIps: '10.96.0.7 fd96::7',
    externalIps: '192.0.2.1',
    loadBalancerIps: '203.0.113.1 2001:db8::1',
    sourceRanges: '198.51.100.0/24',
  });
  t.is(
    lines(of, slice('web', '10.84.1.5')).replaceAll(/\n.*fd96.*/g, ''),
    [
      'the load-balancer address 2001:db8::1 of Service default/web admits nobody: loadBalancerSourceRanges has none of ipv6',
      REFUSE_OTHERS[0],
      'external 10.96.0.7:80/TCP -> 10.84.1.5:8080 (masquerade)',
      'external 192.0.2.1:80/TCP -> 10.84.1.5:8080 (masquerade)',
      'external 203.0.113.1:80/TCP -> 10.84.1.5:8080 (masquerade, from 198.51.100.0/24)',
      'external [2001:db8::1]:80/TCP -> refuse (from nobody)',
      REFUSE_OTHERS[1],
      'internal 10.96.0.7:80/TCP -> 10.84.1.5:8080',
      'internal 192.0.2.1:80/TCP -> 10.84.1.5:8080',
      'internal 203.0.113.1:80/TCP -> 10.84.1.5:8080 (from 198.51.100.0/24)',
      'internal [2001:db8::1]:80/TCP -> refuse (from nobody)',
    ].join('\n'),
  );
});

test('an address that a Service has in two ways counts as the first; a node port that two of its ports have is told', (t) => {
  const twice = service('web', {
    externalIps: '203.0.113.1',
    loadBalancerIps: '203.0.113.1',
    sourceRanges: '10.0.0.0/8',
  });
  t.regex(lines(twice, slice('web', '10.84.1.5')), /internal 203\.0\.113\.1:80\/TCP -> 10\.84\.1\.5:8080 \(from 10/);
  t.deepEqual(plan(twice, []).problems, []);
  const ports = service('web', { ports: 'a:80=30080 b:81=30080' });
  t.regex(
    plan(ports, []).problems.join(),
    /cannot serve default\/web:b at internal 172\.30\.0\.11:30080\/TCP: default\/web:a has/,
  );
});

test('an address of a family that the Service has not is told', (t) => {
  const problems = plan(service('web', { externalIps: '2001:db8::1', ports: '80=30080' }), []).problems;
  t.deepEqual(problems, [
    'cannot serve the external address 2001:db8::1 of Service default/web: the Service has no ipv6 cluster address',
  ]);
});

test('a named target port may have another number in each slice', (t) => {
  const text = lines(
    service('web'),
    slice('web', '10.84.1.5', { on: '8080' }),
    slice('web', '10.84.1.6', { on: '9090', name: 'web-2' }),
    slice('web', '10.84.1.7', { on: 'other:7070', name: 'web-3' }),
  );
  t.regex(text, /internal 10\.96\.0\.7:80\/TCP -> 10\.84\.1\.5:8080 10\.84\.1\.6:9090$/m);
});

test('the health check counts ready endpoints of this node, once each, and those of each family apart', (t) => {
  const of = service('web', { healthCheckNodePort: 30001, externalTrafficPolicy: 'Local' });
  const local = (endpoints: string, again = '', six = '') =>
    plan(of, [
      slice('web', endpoints),
      slice('web', again, { name: 'web-2' }),
      slice('web', six, { name: 'web-6', family: 'ipv6' }),
    ]).health?.localEndpoints;
  t.deepEqual(local('10.84.0.5@ 10.84.0.6@ 10.84.1.5', '10.84.0.5@'), { ipv4: 2, ipv6: 0 });
  t.deepEqual(local('10.84.0.5~@', '', 'fd84::5@'), { ipv4: 0, ipv6: 1 });
  t.is(plan(service('web'), []).health, undefined);
});

test('the health check is at the addresses of node ports, in the families of the Service, and takes no port of the node', (t) => {
  const at = (fields: Parameters<typeof service>[1]) => plan(service('web', fields), []);
  t.deepEqual(at({ healthCheckNodePort: 30001 }).health?.ips, [ip('172.30.0.11')]);
  const dual = '10.96.0.7 fd96::7';
  t.deepEqual(at({ healthCheckNodePort: 30001, clusterIps: dual }).health?.ips, [ip('172.30.0.11'), ip('fd30::11')]);
  for (const port of [10_250, 10_256]) {
    const { health, problems } = at({ healthCheckNodePort: port });
    t.deepEqual(health?.ips, []);
    t.deepEqual(problems, [
      `cannot serve the health check of Service default/web at port ${port} of 172.30.0.11: it is a node's, and its port ${port}/TCP is for the node itself`,
    ]);
  }
});
