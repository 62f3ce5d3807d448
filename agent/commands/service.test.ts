import test from 'ava';
import { cidr, ip } from '../../test/support/cluster-values.ts';
import { service } from '../../test/support/service-values.ts';
import { item } from '../model/items.ts';
import { backendSet, type Frontend } from '../model/services.ts';
import type { ItemReport, ServiceReport } from '../service-report.ts';
import { describeRows, describeService } from './service.ts';

test('ls: a line a Service, and below what is wrong', (t) => {
  const row = { ports: ['80:30080/TCP', '53/UDP'], endpoints: { ready: 3, draining: 0, local: 1 }, problems: [] };
  t.is(
    describeRows([
      { ...row, service: 'default/web', addresses: ['10.96.0.7', 'fd96::7'] },
      {
        ...row,
        service: 'shop/api',
        addresses: ['10.96.0.8'],
        endpoints: { ready: 0, draining: 2, local: 0 },
        problems: ['a', 'b'],
      },
    ]),
    [
      'SERVICE      ADDRESSES          PORTS                READY         HERE  STATE',
      'default/web  10.96.0.7 fd96::7  80:30080/TCP 53/UDP  3             1     ok',
      'shop/api     10.96.0.8          80:30080/TCP 53/UDP  0+2 draining  0     2 problems',
      '',
      'problem   shop/api: a',
      'problem   shop/api: b',
      '',
    ].join('\n'),
  );
  t.is(describeRows([]), 'SERVICE  ADDRESSES  PORTS  READY  HERE  STATE\n');
});

const set = backendSet([
  { ip: ip('10.84.0.5'), port: 8080 },
  { ip: ip('10.84.1.5'), port: 8080 },
]);
const at = { ip: ip('10.96.0.7'), port: 80, protocol: 'TCP', kind: 'cluster', service: 'default/web:80' } as const;
const frontends: readonly Frontend[] = [
  { ...at, scope: 'internal', target: set.id },
  { ...at, scope: 'external', target: set.id, masquerade: true },
  { ...at, scope: 'internal', ip: ip('203.0.113.1'), kind: 'load-balancer', target: set.id, sourceRanges: [] },
  {
    ...at,
    scope: 'external',
    ip: ip('203.0.113.1'),
    kind: 'load-balancer',
    target: 'drop',
    sourceRanges: [cidr('192.0.2.0/24')],
  },
];
const member = item('member', { set: 'tulle-svc-cluster-4', entry: cidr('10.96.0.7/32') });
const rule = { args: ['-j', 'REJECT'], comment: 'shop/old:80' };
const part = { family: 'ipv4', table: 'nat', chain: 'TULLE-SVC-1', order: '10', rules: [rule] } as const;
const chain = item('chain-part', part);
const frontend = item('frontend', frontends[0] as Frontend);
const own = (report: Pick<ItemReport, 'key' | 'wanted' | 'state'> & Partial<ItemReport>): ItemReport => ({
  shared: false,
  ...report,
});

const report = (more: Partial<ServiceReport> = {}): ServiceReport => ({
  service: service('web', { affinitySeconds: 60, externalTrafficPolicy: 'Local' }),
  frontends,
  sets: [set],
  items: [
    own({ key: member.key, wanted: member.value, state: 'held', found: member.value }),
    own({ key: chain.key, wanted: part, state: 'missing', error: 'no room' }),
    own({ key: frontend.key, wanted: frontend.value, state: 'differs', found: { ...frontend.value, target: 'drop' } }),
    { ...own({ key: member.key, wanted: member.value, state: 'held', found: member.value }), shared: true },
  ],
  problems: ['a sentence'],
  ...more,
});

test('show: frontends with both scopes, backends, and what the kernel holds beside what is planned', (t) => {
  const text = describeService(
    report({
      health: { port: 30001, namespace: 'default', name: 'web', ips: [], localEndpoints: { ipv4: 1, ipv6: 0 } },
    }),
  );
  t.is(
    text,
    `service   default/web
policy    Cluster from inside, Local from outside
affinity  a client keeps its backend for 60 s

FRONTEND            KIND           FROM INSIDE  FROM OUTSIDE        ADMITS
10.96.0.7:80/TCP    cluster        set 1        set 1, masqueraded  everybody
203.0.113.1:80/TCP  load-balancer  set 1        drop                nobody

set 1: 2 backends (${set.id})
  10.84.0.5:8080
  10.84.1.5:8080

health    port 30001 at no address: 1 IPv4 and 0 IPv6 endpoints here

kernel    1 of 3 items as planned, 1 of 1 of those shared with other Services
= member tulle-svc-cluster-4 10.96.0.7/32
+ chain-part ipv4 nat TULLE-SVC-1 10
    + -j REJECT  # shop/old:80
    failing: no room
~ frontend internal 10.96.0.7:80/TCP
    - ip=10.96.0.7 port=80 protocol=TCP kind=cluster service=default/web:80 scope=internal target=drop
    + ip=10.96.0.7 port=80 protocol=TCP kind=cluster service=default/web:80 scope=internal target=${set.id}

problem   a sentence
`,
  );
});

test('show: what another one has, and what is wrong with shared things', (t) => {
  const text = describeService(
    report({
      items: [
        own({ key: chain.key, wanted: part, state: 'contested', owner: 'service shop/old', found: part }),
        { ...own({ key: member.key, wanted: member.value, state: 'missing' }), shared: true },
      ],
    }),
  );
  t.true(
    text.includes(`kernel    0 of 1 items as planned, 0 of 1 of those shared with other Services
! chain-part ipv4 nat TULLE-SVC-1 10: service shop/old has it, which is older
    = -j REJECT  # shop/old:80
+ member tulle-svc-cluster-4 10.96.0.7/32 (shared)
`),
    text,
  );
});
