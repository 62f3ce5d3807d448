import test from 'ava';
import fc from 'fast-check';
import { nameKey, namespacedKey } from './fields.ts';
import { narrowNode, narrowPod, UNDERLAY_IP_ANNOTATION } from './narrow.ts';

const node = (fields: object) => narrowNode({ metadata: { name: 'n1' }, ...fields }).value;
const cidrs = (spec: unknown) => node({ spec })?.podCidrs;

test('narrowNode takes exactly what the model has, frozen', (t) => {
  const { value } = narrowNode({
    metadata: {
      name: 'worker-1',
      uid: 'u1',
      creationTimestamp: '2026-01-02T03:04:05Z',
      annotations: { [UNDERLAY_IP_ANNOTATION]: ' 203.0.113.7 , 2001:DB8::7 ' },
      managedFields: [{}],
    },
    spec: { podCIDR: '10.244.1.0/24', podCIDRs: ['10.244.1.0/24', 'fd00:244:0:1::/64'] },
    status: {
      addresses: [
        { type: 'Hostname', address: 'worker-1' },
        { type: 'InternalIP', address: '192.0.2.1' },
        { type: 'ExternalIP', address: '203.0.113.1' },
        { type: 'InternalIP', address: '2001:DB8:0::1' },
        { type: 'InternalIP', address: '192.0.2.1' },
      ],
    },
  });
  t.deepEqual<unknown, unknown>(value, {
    name: 'worker-1',
    uid: 'u1',
    creationMs: Date.UTC(2026, 0, 2, 3, 4, 5),
    podCidrs: ['10.244.1.0/24', 'fd00:244:0:1::/64'],
    internalIps: ['192.0.2.1', '2001:db8::1'],
    underlayIps: ['203.0.113.7', '2001:db8::7'],
    problems: [],
  });
  t.true(Object.isFrozen(value) && Object.values(value as object).every((field) => Object.isFrozen(field)));
});

test('narrowNode: a Node is leaving when it is being deleted or its autoscaler says so', (t) => {
  t.true(node({ metadata: { name: 'n1', deletionTimestamp: '2026-01-02T03:04:05Z' } })?.leaving);
  t.true(node({ spec: { taints: [{ key: 'a' }, { key: 'ToBeDeletedByClusterAutoscaler' }] } })?.leaving);
  for (const taints of [undefined, null, 'x', [], [null, { key: 'node.kubernetes.io/unschedulable' }]])
    t.is(node({ spec: { taints } })?.leaving, undefined);
});

test('narrowNode takes podCIDR where podCIDRs is absent or empty, and nothing from neither', (t) => {
  t.deepEqual<unknown, unknown>(cidrs({ podCIDR: '10.1.0.0/24' }), ['10.1.0.0/24']);
  t.deepEqual<unknown, unknown>(cidrs({ podCIDR: '10.1.0.0/24', podCIDRs: [] }), ['10.1.0.0/24']);
  t.deepEqual<unknown, unknown>(cidrs({ podCIDR: '10.9.0.0/24', podCIDRs: ['fd00::/64', '10.1.0.0/24'] }), [
    'fd00::/64',
    '10.1.0.0/24',
  ]);
  for (const spec of [undefined, null, {}, { podCIDR: '' }, { podCIDRs: null, podCIDR: null }]) {
    t.deepEqual(cidrs(spec), []);
    t.deepEqual(node({ spec })?.problems, []);
  }
});

test('narrowNode turns every unusable field into a sentence that names it', (t) => {
  const problems = (fields: object) => node(fields)?.problems;
  const annotated = (value: unknown) =>
    problems({ metadata: { name: 'n1', annotations: { [UNDERLAY_IP_ANNOTATION]: value } } });
  const hostIp = 'expected the unicast address of a host';
  t.deepEqual(problems({ spec: { podCIDRs: ['10.1.0.0/33', 7, '10.1.0.0/24', '10.2.0.0/24'] } }), [
    'spec.podCIDRs has "10.1.0.0/33": expected a CIDR',
    'spec.podCIDRs has 7: expected a CIDR',
    'spec.podCIDRs has 10.2.0.0/24 beside 10.1.0.0/24: expected at most one a family, so the first is used',
  ]);
  t.deepEqual(
    problems({
      status: { addresses: [{ type: 'InternalIP', address: 'node.example' }, { type: 'InternalIP' }, null] },
    }),
    [
      `status.addresses, InternalIP has "node.example": ${hostIp}`,
      `status.addresses, InternalIP has undefined: ${hostIp}`,
    ],
  );
  t.deepEqual(annotated('192.0.2.1,192.0.2.2'), [
    `annotation ${UNDERLAY_IP_ANNOTATION} has 192.0.2.2 beside 192.0.2.1: expected at most one a family, so the first is used`,
  ]);
  t.deepEqual(annotated({}), [`annotation ${UNDERLAY_IP_ANNOTATION} has object: ${hostIp}`]);
  t.deepEqual(annotated('a\n-j ACCEPT'), [`annotation ${UNDERLAY_IP_ANNOTATION} has "a\\n-j ACCEPT": ${hostIp}`]);
  t.deepEqual(problems({ metadata: { name: 'n1', creationTimestamp: 'yesterday' } }), [
    'metadata.creationTimestamp is "yesterday": expected a time (RFC 3339)',
  ]);
});

for (const address of ['0.0.0.0', '0.1.2.3', '127.0.0.1', '224.0.0.1', '::', '::1', 'ff02::1', '::ffff:192.0.2.1']) {
  test(`narrowNode refuses ${address} as the address of a host`, (t) => {
    const narrowed = node({ status: { addresses: [{ type: 'InternalIP', address }] } });
    t.deepEqual(narrowed?.internalIps, []);
    t.is(narrowed?.problems.length, 1);
  });
}

test('narrowNode ranks a node without creation time after every other', (t) => {
  t.true((node({})?.creationMs ?? 0) > Date.UTC(2200, 0, 1));
});

test('narrowPod reads what the model has and tolerates the rest missing', (t) => {
  const { value } = narrowPod({
    metadata: { name: 'web', namespace: 'default', uid: 'u', creationTimestamp: '2026-01-02T03:04:05Z' },
    spec: { nodeName: 'n1', hostNetwork: true, containers: [] },
    status: { phase: 'Running', podIP: '10.1.0.5', podIPs: [{ ip: '10.1.0.5' }, { ip: 'FD00::5' }] },
  });
  const full = { namespace: 'default', name: 'web', uid: 'u', creationMs: Date.UTC(2026, 0, 2, 3, 4, 5) };
  t.deepEqual<unknown, unknown>(value, {
    ...full,
    nodeName: 'n1',
    hostNetwork: true,
    phase: 'Running',
    podIps: ['10.1.0.5', 'fd00::5'],
  });
  const bare = narrowPod({ metadata: { name: 'web', namespace: 'default' } });
  t.deepEqual(bare.problems, []);
  t.like(bare.value, { uid: '', nodeName: '', hostNetwork: false, phase: '', podIps: [] });
  t.deepEqual<unknown, unknown>(
    narrowPod({ metadata: { name: 'a', namespace: 'b' }, status: { podIP: '10.1.0.5' } }).value?.podIps,
    ['10.1.0.5'],
  );
});

const NAMELESS = [
  undefined,
  null,
  7,
  'x',
  [],
  {},
  { metadata: null },
  ...['', 'A', 'a/b', '../x', 'a b', 'a\n', '-a', 'a'.repeat(254), 'é'].map((name) => ({
    metadata: { name, namespace: 'x' },
  })),
];

test('narrowPod carries the annotation of addresses as it is, and the hash of a mirror pod only', (t) => {
  const narrowed = (annotations: unknown) => narrowPod({ metadata: { namespace: 'a', name: 'b', annotations } }).value;
  const hash = { 'kubernetes.io/config.hash': 'abc' };
  t.like(narrowed({ 'tulle.dev/ips': ' 10.0.0.9,x' }), { ipsAnnotation: ' 10.0.0.9,x' });
  t.regex(narrowed({ 'tulle.dev/ips': '1'.repeat(10_000) })?.ipsAnnotation ?? '', /^1{253}…$/);
  t.is(narrowed({ ...hash, 'kubernetes.io/config.mirror': 'abc' })?.staticPodUid, 'abc');
  for (const annotations of [undefined, null, [], hash, { 'tulle.dev/ips': 7, 'kubernetes.io/config.mirror': 'abc' }]) {
    t.false('ipsAnnotation' in (narrowed(annotations) ?? {}));
    t.false('staticPodUid' in (narrowed(annotations) ?? {}));
  }
});

test('an object without a name of DNS form is no object, and says so in short', (t) => {
  for (const raw of NAMELESS) {
    for (const { value, problems } of [narrowNode(raw), narrowPod(raw)]) {
      t.is(value, undefined);
      t.is(problems.length, 1);
      t.true((problems[0] as string).length < 300);
    }
    t.is(nameKey(raw), undefined);
    t.is(namespacedKey(raw), undefined);
  }
  t.is(namespacedKey({ metadata: { name: 'web', namespace: 'default' } }), 'default/web');
});

/** Arbitrary JSON, and objects of the right shape with arbitrary JSON in every place that is read. */
const anything = fc.oneof(
  fc.jsonValue(),
  fc.record(
    {
      metadata: fc.record(
        {
          name: fc.oneof(fc.constant('n'), fc.jsonValue()),
          namespace: fc.oneof(fc.constant('ns'), fc.jsonValue()),
          uid: fc.jsonValue(),
          creationTimestamp: fc.jsonValue(),
          annotations: fc.oneof(fc.jsonValue(), fc.record({ [UNDERLAY_IP_ANNOTATION]: fc.jsonValue() })),
        },
        { requiredKeys: [] },
      ),
      spec: fc.record(
        { podCIDR: fc.jsonValue(), podCIDRs: fc.jsonValue(), nodeName: fc.jsonValue() },
        { requiredKeys: [] },
      ),
      status: fc.record(
        { addresses: fc.jsonValue(), podIPs: fc.jsonValue(), phase: fc.jsonValue() },
        { requiredKeys: [] },
      ),
    },
    { requiredKeys: [] },
  ),
);

test('narrowing never throws, whatever the JSON', (t) => {
  fc.assert(
    fc.property(anything, (raw) => {
      for (const narrow of [narrowNode, narrowPod]) {
        const { value, problems } = narrow(raw);
        if (value === undefined && problems.length === 0) return false;
        if (problems.some((sentence) => sentence.length > 400 || /[\n\r]/.test(sentence))) return false;
      }
      return true;
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

test('lists and texts of absurd length cost little', (t) => {
  const long = 'x'.repeat(1_000_000);
  const value = node({
    metadata: { name: 'n1', uid: long, annotations: { [UNDERLAY_IP_ANNOTATION]: '1,'.repeat(100_000) } },
    spec: { podCIDRs: new Array(100_000).fill(long) },
  });
  t.is(value?.uid, '');
  t.true(JSON.stringify(value).length < 50_000);
});
