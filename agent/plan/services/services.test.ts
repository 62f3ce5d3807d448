import test from 'ava';
import fc from 'fast-check';
import { cidr, host, ip, node, settings } from '../../../test/support/cluster-values.ts';
import { MERGE } from '../../../test/support/fragments.ts';
import { clusterOf, selfNode, service, slice } from '../../../test/support/service-values.ts';
import type { Cluster } from '../../model/cluster.ts';
import type { Fragment } from '../../model/fragment.ts';
import { type AnyItem, APPLY_ORDER } from '../../model/items.ts';
import { type PersistentMap, persistentMap } from '../../model/persistent-map.ts';
import type { EndpointSlice, Frontend, Service } from '../../model/services.ts';
import { KernelState } from '../../reconcile/kernel-state.ts';
import { findLosses } from '../claims.ts';
import { type ServicesInput, ServicesPlanner } from './services.ts';

const on = { ...settings, 'services.mode': 'ebpf', 'services.externalAddresses': [cidr('192.0.2.0/24')] } as const;
const input = (cluster: Cluster, more: Partial<ServicesInput> = {}): ServicesInput => ({
  nodeName: 'a',
  cluster,
  losses: findLosses(cluster.nodes.values()),
  underlayIps: [],
  host: host(),
  settings: on,
  ...more,
});

const isForSockets = ({ kind }: AnyItem) => kind === 'backend-set' || kind === 'frontend';
const keysOf = (fragment: Fragment | undefined) => (fragment?.items ?? []).map(({ key }) => key);
const problemsOf = (fragments: PersistentMap<Fragment>) => [...fragments.values()].flatMap(({ problems }) => problems);

test('a Service is one fragment of its sets and then its frontends for sockets', (t) => {
  const { fragments } = new ServicesPlanner().plan(input(clusterOf([service('web')], [slice('web', '10.84.1.5')])));
  const own = [...fragments.values()].filter(({ shared }) => !shared);
  t.deepEqual(own.map(({ id }) => id).sort(), ['service default/web', 'services']);
  const { items, rank } = fragments.get('service default/web') as Fragment;
  t.deepEqual(
    items.filter(isForSockets).map(({ key }) => key.replace(/[0-9a-f]{32}/, 'SET')),
    ['backend-set SET', 'frontend internal 10.96.0.7:80/TCP', 'frontend internal 10.96.0.7:*'],
  );
  t.deepEqual(items[1]?.needs, [items[0]?.key as never]);
  t.is(rank, '000000000000000/web');
});

/** A hundred Services of which every tenth has a node port and every tenth an external address. */
const hundred = Array.from({ length: 100 }, (_, n) =>
  service(`s${n}`, {
    clusterIps: `10.96.1.${n}`,
    creationMs: n,
    ports: n % 10 === 0 ? `80=${30_000 + n}` : '80',
    externalIps: n % 10 === 5 ? `192.0.2.${n}` : '',
  }),
);
const slicesOfHundred = hundred.map(({ name }, n) => slice(name, `10.84.1.${n} 10.84.2.${n}`));

/** Plans one version after the other and says how many Services each took. */
function counting() {
  const planner = new ServicesPlanner();
  return (cluster: Cluster, more?: Partial<ServicesInput>) => {
    const before = planner.planned;
    const plan = planner.plan(input(cluster, more));
    return { ...plan, planned: planner.planned - before };
  };
}
const start = () => clusterOf(hundred, slicesOfHundred);
const withSlices = (cluster: Cluster, ...slices: EndpointSlice[]): Cluster => ({
  ...cluster,
  endpointSlices: cluster.endpointSlices.with(slices.map((each) => [`default/${each.name}`, each])),
});
const withServices = (cluster: Cluster, ...services: Service[]): Cluster => ({
  ...cluster,
  services: cluster.services.with(services.map((each) => [`default/${each.name}`, each])),
});
const withNodes = (cluster: Cluster, ...nodes: Parameters<typeof node>[]): Cluster => ({
  ...cluster,
  nodes: persistentMap([['a', selfNode], ...nodes.map((given) => [given[0], node(...given)] as const)]),
});

test('only what something changed for is planned again, and only that is another fragment', (t) => {
  const plan = counting();
  const first = plan(start());
  t.is(first.planned, 100);
  t.is(plan(start()).planned, 0, 'equal objects that keep their identity');

  const changed = withSlices(start(), slice('s7', '10.84.1.7'));
  const second = plan(changed);
  t.is(second.planned, 1);
  t.deepEqual([...second.fragments.changedSince(first.fragments)], ['service default/s7']);

  const renamed = withServices(changed, service('s8', { clusterIps: '10.96.1.8', ports: '81' }));
  t.is(plan(renamed).planned, 1);
  t.is(plan({ ...renamed, pods: new Map() }).planned, 0, 'Pods say nothing');
});

test('planning may pause after each object', (t) => {
  const steps = new ServicesPlanner().steps(input(start()));
  let pauses = 0;
  while (!steps.next().done) pauses++;
  t.is(pauses, 300, 'a hundred slices, a hundred Services, a hundred plans');
});

test('what this node is concerns those that depend on it', (t) => {
  const plan = counting();
  plan(start());
  const joined = withNodes(start(), ['b', { ips: '172.30.0.12', cidrs: '10.84.9.0/24', creationMs: 1 }]);
  t.is(plan(joined).planned, 20, 'a Node that joins: Services that are reached from outside');
  const covering = withNodes(start(), ['b', { ips: '172.30.0.12', cidrs: '10.96.1.0/26', creationMs: 1 }]);
  const refused = plan(covering);
  t.is(refused.planned, 64 + 3 + 4, 'and those whose cluster address is in its podCIDR');
  t.regex(
    problemsOf(refused.fragments)[0] ?? '',
    /cannot serve the cluster address 10\.96\.1\.\d+ of Service default\/s\d+: it is in the pods' /,
  );
  plan(start());
  t.is(plan(start(), { host: host({ ips: '192.0.2.200' }) }).planned, 0, 'the InternalIPs count');
  const elsewhere = { ...on, 'services.nodePortAddresses': [cidr('192.0.2.0/24')] };
  const ports = plan(start(), { host: host({ ips: '192.0.2.200' }), settings: elsewhere });
  t.true(keysOf(ports.fragments.get('service default/s10')).includes('frontend internal 192.0.2.200:30010/TCP'));
});

test('a zone label on this node changes what hints choose', (t) => {
  const hinted = clusterOf([service('web')], [slice('web', '10.84.1.5%z1 10.84.1.6%z2')]);
  const planner = new ServicesPlanner();
  const backends = (cluster: Cluster) => {
    const [set] = planner.plan(input(cluster)).fragments.get('service default/web')?.items ?? [];
    return set?.kind === 'backend-set' ? set.value.backends.map((each) => each.ip as string) : [];
  };
  t.deepEqual(backends(hinted), ['10.84.1.5']);
  t.deepEqual(backends({ ...hinted, nodes: new Map([['a', { ...selfNode, zone: 'z2' }]]) }), ['10.84.1.6']);
  t.deepEqual(backends({ ...hinted, nodes: new Map() }), ['10.84.1.5', '10.84.1.6']);
});

test("another Service's cluster address is nobody's external one, whoever came first", (t) => {
  const hostile = service('hostile', { clusterIps: '10.96.0.66', externalIps: '192.0.2.53', creationMs: 0 });
  const dns = service('dns', { clusterIps: '192.0.2.53', creationMs: 9 });
  const slices = [slice('hostile', '10.84.1.66'), slice('dns', '10.84.1.53')];
  const plan = counting();
  const isServed = ({ fragments }: ReturnType<typeof plan>) =>
    keysOf(fragments.get('service default/hostile')).includes('frontend internal 192.0.2.53:80/TCP');
  t.true(isServed(plan(clusterOf([hostile], slices))));
  const both = plan(clusterOf([hostile, dns], slices));
  t.is(both.planned, 2);
  t.false(isServed(both));
  t.regex(
    problemsOf(both.fragments).join(),
    /external address 192\.0\.2\.53 of Service default\/hostile: it is the cluster address of Service default\/dns/,
  );
  t.true(isServed(plan(clusterOf([hostile], slices))));
});

test("the API server's endpoints are guarded as soon as they are known", (t) => {
  const hostile = service('hostile', { externalIps: '192.0.2.1', ports: '6443 80' });
  const bare = clusterOf([hostile], []);
  const plan = counting();
  const served = (cluster: Cluster, more?: Partial<ServicesInput>) =>
    keysOf(plan(cluster, more).fragments.get('service default/hostile')).filter((key) =>
      key.startsWith('frontend internal 192.0.2.1:'),
    );
  t.is(served(bare).length, 2);
  t.deepEqual(served(withSlices(bare, slice('kubernetes', '192.0.2.1', { on: 'https:6443' }))), [
    'frontend internal 192.0.2.1:80/TCP',
  ]);
  t.is(served(bare, { settings: { ...on, apiServer: 'https://192.0.2.1:6443' } }).length, 1);
  const kubernetes = service('kubernetes', { clusterIps: '10.96.0.1', ports: 'https:443' });
  const byItsService = plan(clusterOf([kubernetes], []), { settings: { ...on, apiServer: 'https://10.96.0.1' } });
  t.deepEqual(problemsOf(byItsService.fragments), []);
});

test('slices of no Service are told, until there is one', (t) => {
  const plan = counting();
  const strays = (cluster: Cluster) =>
    [...plan(cluster).fragments].flatMap(([id, { problems }]) => (id.startsWith('endpointslice ') ? problems : []));
  t.deepEqual(strays(clusterOf([], [slice('web', '10.84.1.5')])), [
    'EndpointSlice default/web-1 is for Service default/web, which does not exist, has no address or is for another proxy',
  ]);
  t.deepEqual(strays(clusterOf([service('web')], [slice('web', '10.84.1.5')])), []);
  const many = Array.from({ length: 150 }, (_, n) => slice(`web${n}`, '10.84.1.5'));
  const some = clusterOf([], many.slice(0, 30));
  t.is(strays(some).length, 30);
  t.is(strays(clusterOf([], many)).length, 100);
  t.is(strays(clusterOf([], many.slice(0, 2))).length, 2);
});

test('health checks are those of Services that have one, with what is on this node', (t) => {
  const of = service('web', { healthCheckNodePort: 30001, externalTrafficPolicy: 'Local' });
  const plan = counting();
  const checks = (cluster: Cluster) => [...plan(cluster).healthChecks.values()];
  const check = { port: 30001, namespace: 'default', name: 'web', ips: [ip('172.30.0.11')] };
  const localEndpoints = (ipv4: number) => ({ ipv4, ipv6: 0 });
  t.deepEqual(checks(clusterOf([of], [slice('web', '10.84.0.5@')])), [{ ...check, localEndpoints: localEndpoints(1) }]);
  t.deepEqual(checks(clusterOf([of], [])), [{ ...check, localEndpoints: localEndpoints(0) }]);
  t.deepEqual(checks(clusterOf([service('web')], [])), []);
});

test('in the mode iptables a Service is rules, and brings the chains that lead to it, once', (t) => {
  const settingsOf = { ...on, 'services.mode': 'iptables' } as const;
  const planner = new ServicesPlanner();
  const plan = (endpoints: string) =>
    planner.plan(input(clusterOf([service('web')], [slice('web', endpoints)]), { settings: settingsOf })).fragments;
  const fragments = plan('10.84.1.5');
  t.deepEqual([...fragments.keys()].sort(), [
    'service default/web',
    'services',
    'services ipv4',
    'services ipv4 07',
    'services ipv4 7',
    'services ipv6',
  ]);
  const { requires } = fragments.get('service default/web') as Fragment;
  t.deepEqual([...requires].sort(), ['services ipv4', 'services ipv4 07']);
  const kinds = new Set([...fragments.values()].flatMap(keysOf).map((key) => key.split(' ')[0]));
  t.deepEqual([...kinds].sort(), ['chain-part', 'member', 'set']);
  t.deepEqual([...plan('10.84.1.6').changedSince(fragments)], ['service default/web']);
});

/** Few Services, addresses and ports, so that they contradict each other. */
const aService = fc
  .record({
    name: fc.constantFrom('a', 'b', 'c', 'd'),
    clusterIps: fc.constantFrom('10.96.0.1', '10.96.0.2', '10.96.0.1 fd96::1', '192.0.2.1'),
    externalIps: fc.constantFrom('', '192.0.2.1', '192.0.2.2 10.96.0.2', '172.30.0.11'),
    ports: fc.constantFrom('80', 'a:80 b:81=30080', '80=30080', '10250'),
    creationMs: fc.nat(2),
    local: fc.boolean(),
  })
  .map(({ name, local, ...rest }) => service(name, { ...rest, ...(local && { externalTrafficPolicy: 'Local' }) }));
const aSlice = fc
  .record({
    of: fc.constantFrom('a', 'b', 'c', 'd', 'nobody', 'kubernetes'),
    n: fc.nat(1),
    endpoints: fc.subarray(['10.84.1.5', '10.84.0.5@', '192.0.2.1~', '10.84.1.6%z1']),
    on: fc.constantFrom('8080', 'a:1 b:2', '80'),
  })
  .map(({ of, n, endpoints, on: ports }) => slice(of, endpoints.join(' '), { name: `${of}-${n}`, on: ports }));
const anEvent = fc.oneof(
  aService.map((object) => ({ kind: 'services', key: `default/${object.name}`, object }) as const),
  aSlice.map((object) => ({ kind: 'endpointSlices', key: `default/${object.name}`, object }) as const),
  fc
    .constantFrom('a', 'b', 'c', 'd')
    .map((name) => ({ kind: 'services', key: `default/${name}`, object: undefined }) as const),
  fc
    .constantFrom('a-0', 'b-0', 'c-1')
    .map((name) => ({ kind: 'endpointSlices', key: `default/${name}`, object: undefined }) as const),
);
type Event = typeof anEvent extends fc.Arbitrary<infer E> ? E : never;
const after = (cluster: Cluster, { kind, key, object }: Event): Cluster => ({
  ...cluster,
  [kind]: (cluster[kind] as PersistentMap<unknown>).with([[key, object]]),
});
/** Without what is shared: branches stay, and are of no effect while nobody requires them. */
const plain = (fragments: PersistentMap<Fragment>) =>
  Object.fromEntries([...fragments].filter(([, { shared }]) => !shared).sort());
const wanted = (state: KernelState) =>
  APPLY_ORDER.flatMap((kind) => [...state.keys(kind)].map((key) => [key, state.wanted(key)?.value] as const)).sort(
    ([a], [b]) => (a < b ? -1 : 1),
  );

test('whatever happens in whatever order: the plan is that of a fresh planner, the state that of one node as of another', (t) => {
  fc.assert(
    fc.property(fc.array(anEvent, { maxLength: 20 }), fc.infiniteStream(fc.nat()), (events, random) => {
      const planner = new ServicesPlanner();
      const state = new KernelState(MERGE);
      let entered = persistentMap<Fragment>();
      const enter = (fragments: PersistentMap<Fragment>) => {
        for (const id of fragments.changedSince(entered)) state.replace(id, fragments.get(id));
        entered = fragments;
      };
      let cluster = clusterOf([], []);
      for (const event of events) {
        cluster = after(cluster, event);
        if ((random.next().value as number) % 2 === 0) enter(planner.plan(input(cluster)).fragments);
      }
      enter(planner.plan(input(cluster)).fragments);

      const fresh = new ServicesPlanner().plan(input(cluster)).fragments;
      t.deepEqual(plain(entered), plain(fresh));
      const other = new KernelState(MERGE);
      for (const [id, fragment] of [...fresh].sort(() => ((random.next().value as number) % 2) - 0.5))
        other.replace(id, fragment);
      t.deepEqual(wanted(state), wanted(other));
      holdsInvariants(t, cluster, state);

      enter(planner.plan(input(clusterOf([], []))).fragments);
      t.deepEqual(wanted(state), []);
      t.deepEqual(problemsOf(entered), []);
    }),
  );
});

/** Every frontend has one winner, the oldest of those that want it; what it leads to is there; nothing leads astray. */
function holdsInvariants(t: { true(is: boolean, why?: string): void }, cluster: Cluster, state: KernelState): void {
  const clusterIps = new Map<string, string[]>();
  for (const [key, { clusterIps: ips }] of cluster.services)
    for (const each of ips) clusterIps.set(each, [...(clusterIps.get(each) ?? []), key]);
  for (const key of state.keys('frontend')) {
    const [winner, ...others] = state.claims(key);
    const frontend = state.wanted(key)?.value as Frontend;
    t.true(
      others.every(({ fragment }) => (winner?.fragment.rank ?? '') < fragment.rank),
      key,
    );
    if (!['refuse', 'drop'].includes(frontend.target))
      t.true(state.wanted(`backend-set ${frontend.target}`) !== undefined, key);
    const owners = clusterIps.get(frontend.ip) ?? [];
    t.true(owners.length === 0 || owners.includes(frontend.service.split(':')[0] as string), `${key} is hijacked`);
    t.true(!(frontend.ip === ip('172.30.0.11') && frontend.port === 10_250), key);
  }
}
