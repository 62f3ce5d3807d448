import { setImmediate as nextTurn } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { cidr } from '../../test/support/cluster-values.ts';
import { startControllers } from './controllers.ts';
import { KINDS } from './kinds.ts';
import { type ApiObject, arrayAt, textAt, valueAt } from './objects.ts';
import { ServiceAllocator } from './service-allocator.ts';
import { Store } from './store.ts';

const CIDRS = ['10.96.0.0/16', 'fd96::/108'].map((text) => cidr(text));
const NS = 'default';
const SERVICE_NAME = 'kubernetes.io/service-name';

interface PodOptions {
  readonly app?: string;
  readonly node?: string;
  readonly ips?: readonly string[];
  readonly ready?: boolean;
  readonly ports?: readonly unknown[];
  readonly spec?: object;
  readonly phase?: string;
}

function clusterOf(t: ExecutionContext, { historyLimit = 10_000 } = {}) {
  const store = new Store({ allocators: new Map([[KINDS.service, new ServiceAllocator(CIDRS)]]), historyLimit });
  const stop = new AbortController();
  t.teardown(() => stop.abort());
  startControllers(store, { clusterCidrs: [], serviceCidrs: CIDRS }, undefined, stop.signal);
  for (const [name, zone] of [
    ['n1', 'a'],
    ['n2', 'b'],
    ['n3', ''],
  ] as const)
    store.create(KINDS.node, { metadata: { name, labels: zone ? { 'topology.kubernetes.io/zone': zone } : {} } });
  const statusOf = ({ ready = true, ips = [], phase = 'Running' }: PodOptions) => ({
    phase,
    podIPs: ips.map((each) => ({ ip: each })),
    conditions: [{ type: 'Ready', status: ready ? 'True' : 'False' }],
  });
  const pod = (name: string, options: PodOptions = {}) => {
    const { app = 'web', node = 'n1', ports = [], spec } = options;
    const object = {
      metadata: { name, labels: { app, tier: 'x' } },
      spec: { nodeName: node, containers: [{ ports }], ...spec },
    };
    store.create(KINDS.pod, object, NS);
    report(name, options);
  };
  const report = (name: string, options: PodOptions) =>
    store.update(KINDS.pod, { namespace: NS, name }, (now) => ({ ...now, status: statusOf(options) }), {
      part: 'status',
    });
  const service = (name: string, spec: object = {}, labels = {}) =>
    store.create(
      KINDS.service,
      {
        metadata: { name, labels },
        spec: { selector: { app: 'web' }, ports: [{ port: 80, targetPort: 8080 }], ...spec },
      },
      NS,
    );
  const change = (name: string, spec: object) =>
    store.update(KINDS.service, { namespace: NS, name }, (now) => ({
      ...now,
      spec: { ...(now['spec'] as object), ...spec },
    }));
  const slices = (name: string) =>
    store
      .list(KINDS.endpointSlice)
      .objects.map(({ object }) => object)
      .filter(({ metadata }) => metadata.labels?.[SERVICE_NAME] === name);
  return { store, pod, report, service, change, slices };
}

async function settled(store: Store): Promise<void> {
  for (let before = -1; before !== store.revision; ) {
    before = store.revision;
    await nextTurn();
    await nextTurn();
  }
}

/** `IPv4 8080: 10.0.0.1 n1 a ready, ...`, a line a slice. */
function describe(slices: readonly ApiObject[]): readonly string[] {
  return slices
    .map((slice) => {
      const ports =
        slice['ports'] === null
          ? 'null'
          : arrayAt(slice, 'ports')
              .map((port) => valueAt(port, 'port'))
              .join('+');
      const endpoints =
        slice['endpoints'] === null ? 'null' : arrayAt(slice, 'endpoints').map(describeEndpoint).join(', ');
      return `${String(slice['addressType'])} ${ports}: ${endpoints}`;
    })
    .sort();
}

function describeEndpoint(endpoint: unknown): string {
  const conditions = ['ready', 'serving', 'terminating'].filter(
    (name) => valueAt(endpoint, 'conditions', name) === true,
  );
  const hints = ['forZones', 'forNodes'].flatMap((field) =>
    arrayAt(endpoint, 'hints', field).map((each) => `${field}=${textAt(each, 'name')}`),
  );
  return [
    ...arrayAt(endpoint, 'addresses'),
    textAt(endpoint, 'nodeName'),
    textAt(endpoint, 'zone') || '-',
    conditions.join('+') || 'none',
    ...hints,
  ].join(' ');
}

test('one slice a family, with the ports, places and states of its Pods', async (t) => {
  const { store, pod, service, slices } = clusterOf(t);
  pod('p1', { ips: ['10.0.0.1', 'fd00::1'] });
  pod('p2', { ips: ['10.0.0.2'], node: 'n2', ready: false });
  pod('p3', { ips: ['10.0.0.3'], node: 'n3' });
  pod('other', { ips: ['10.0.0.4'], app: 'db' });
  pod('done', { ips: ['10.0.0.5'], phase: 'Succeeded' });
  pod('lost', { ips: ['10.0.0.6'], node: 'gone' });
  pod('bare');
  service(
    'web',
    { ipFamilyPolicy: 'RequireDualStack' },
    { team: 'x', 'service.kubernetes.io/service-proxy-name': 'own' },
  );
  await settled(store);
  t.deepEqual(describe(slices('web')), [
    'IPv4 8080: 10.0.0.1 n1 a ready+serving, 10.0.0.2 n2 b none, 10.0.0.3 n3 - ready+serving',
    'IPv6 8080: fd00::1 n1 a ready+serving',
  ]);
  const [slice] = slices('web');
  const { uid } = store.get(KINDS.service, { namespace: NS, name: 'web' }).object.metadata;
  t.like(slice, {
    metadata: {
      labels: {
        team: 'x',
        'service.kubernetes.io/service-proxy-name': 'own',
        [SERVICE_NAME]: 'web',
        'endpointslice.kubernetes.io/managed-by': 'endpointslice-controller.k8s.io',
      },
      ownerReferences: { 0: { kind: 'Service', name: 'web', uid } },
    },
    endpoints: { 0: { targetRef: { kind: 'Pod', namespace: NS, name: 'p1' } } },
    ports: { 0: { name: '', port: 8080, protocol: 'TCP' } },
  });
});

test('a Pod that becomes ready, drains and goes is followed, and nothing else is written', async (t) => {
  const { store, pod, report, service, slices } = clusterOf(t);
  pod('p1', { ips: ['10.0.0.1'] });
  pod('p2', { ips: ['10.0.0.2'], ready: false });
  service('web');
  service('db', { selector: { app: 'db' } });
  await settled(store);
  const steps: readonly (readonly [() => void, string])[] = [
    [() => report('p2', { ips: ['10.0.0.2'] }), 'IPv4 8080: 10.0.0.1 n1 a ready+serving, 10.0.0.2 n1 a ready+serving'],
    [
      () => store.delete(KINDS.pod, { namespace: NS, name: 'p1' }, { graceSeconds: 30 }),
      'IPv4 8080: 10.0.0.1 n1 a serving+terminating, 10.0.0.2 n1 a ready+serving',
    ],
    [
      () => store.delete(KINDS.pod, { namespace: NS, name: 'p1' }, { graceSeconds: 0 }),
      'IPv4 8080: 10.0.0.2 n1 a ready+serving',
    ],
    [() => store.delete(KINDS.pod, { namespace: NS, name: 'p2' }), 'IPv4 null: null'],
    [() => pod('p3', { ips: ['10.0.0.3'] }), 'IPv4 8080: 10.0.0.3 n1 a ready+serving'],
    [() => store.delete(KINDS.node, { namespace: '', name: 'n1' }), 'IPv4 null: null'],
  ];
  for (const [step, expected] of steps) {
    const before = store.history(KINDS.endpointSlice).next;
    step();
    await settled(store);
    t.deepEqual(describe(slices('web')), [expected]);
    t.is(store.history(KINDS.endpointSlice).next - before, 1, expected);
  }
  t.deepEqual(describe(slices('db')), ['IPv4 null: null']);
});

test('a Pod whose labels change leaves one Service and joins the other', async (t) => {
  const { store, pod, service, slices } = clusterOf(t);
  pod('p1', { ips: ['10.0.0.1'] });
  service('web');
  service('db', { selector: { tier: 'x', app: 'db' } });
  await settled(store);
  store.update(KINDS.pod, { namespace: NS, name: 'p1' }, (now) => ({
    ...now,
    metadata: { ...now.metadata, labels: { app: 'db', tier: 'x' } },
  }));
  await settled(store);
  t.deepEqual(
    [describe(slices('web')), describe(slices('db'))],
    [['IPv4 null: null'], ['IPv4 8080: 10.0.0.1 n1 a ready+serving']],
  );
});

test('publishNotReadyAddresses makes every Pod ready', async (t) => {
  const { store, pod, service, slices } = clusterOf(t);
  pod('p1', { ips: ['10.0.0.1'], ready: false });
  pod('p2', { ips: ['10.0.0.2'], node: 'gone', ready: false });
  service('web', { publishNotReadyAddresses: true });
  store.delete(KINDS.pod, { namespace: NS, name: 'p1' }, { graceSeconds: 30 });
  await settled(store);
  t.deepEqual(describe(slices('web')), ['IPv4 8080: 10.0.0.1 n1 a ready+terminating, 10.0.0.2 gone - ready']);
});

test('named target ports: a slice for each number that Pods mean by the name', async (t) => {
  const { store, pod, service, slices } = clusterOf(t);
  const named = (containerPort: number, protocol = 'TCP') => [{ name: 'http', containerPort, protocol }];
  pod('p1', { ips: ['10.0.0.1'], ports: named(8080) });
  pod('p2', { ips: ['10.0.0.2'], ports: named(9090) });
  pod('p3', { ips: ['10.0.0.3'], ports: named(8080, 'UDP') });
  pod('p4', { ips: ['10.0.0.4'], spec: { initContainers: [{ restartPolicy: 'Always', ports: named(8080) }] } });
  service('web', { ports: [{ port: 80, targetPort: 'http' }] });
  await settled(store);
  t.deepEqual(describe(slices('web')), [
    'IPv4 8080: 10.0.0.1 n1 a ready+serving, 10.0.0.4 n1 a ready+serving',
    'IPv4 9090: 10.0.0.2 n1 a ready+serving',
    'IPv4 : 10.0.0.3 n1 a ready+serving',
  ]);
});

test('hints for ready endpoints, as trafficDistribution says and the zones of Nodes change', async (t) => {
  const { store, pod, service, change, slices } = clusterOf(t);
  pod('p1', { ips: ['10.0.0.1'] });
  pod('p2', { ips: ['10.0.0.2'], node: 'n3' });
  pod('p3', { ips: ['10.0.0.3'], ready: false });
  service('web', { trafficDistribution: 'PreferClose' });
  const line = (first: string, second: string) => [
    `IPv4 8080: 10.0.0.1 n1 ${first}, 10.0.0.2 n3 - ready+serving${second}, 10.0.0.3 n1 ${first.slice(0, 1)} none`,
  ];
  await settled(store);
  t.deepEqual(describe(slices('web')), line('a ready+serving forZones=a', ''));
  change('web', { trafficDistribution: 'PreferSameNode' });
  await settled(store);
  t.deepEqual(describe(slices('web')), line('a ready+serving forZones=a forNodes=n1', ' forNodes=n3'));
  change('web', { trafficDistribution: 'PreferSameZone' });
  await settled(store);
  t.deepEqual(describe(slices('web')), line('a ready+serving forZones=a', ''));
  const labels = { 'topology.kubernetes.io/zone': 'c' };
  store.update(KINDS.node, { namespace: '', name: 'n1' }, (now) => ({ ...now, metadata: { ...now.metadata, labels } }));
  await settled(store);
  t.deepEqual(describe(slices('web')), line('c ready+serving forZones=c', ''));
  change('web', { trafficDistribution: undefined });
  await settled(store);
  t.deepEqual(describe(slices('web')), line('c ready+serving', ''));
});

test('headless Services have the label, those without a selector and ExternalName no slices of this controller', async (t) => {
  const { store, pod, service, slices } = clusterOf(t);
  pod('p1', { ips: ['10.0.0.1'], spec: { hostname: 'first', subdomain: 'h' } });
  service('h', { clusterIP: 'None', ports: [] });
  service('manual', { selector: undefined });
  service('e', { type: 'ExternalName', externalName: 'example.org' });
  await settled(store);
  t.like(slices('h')[0], {
    metadata: { labels: { 'service.kubernetes.io/headless': '' } },
    endpoints: { 0: { hostname: 'first' } },
  });
  t.deepEqual([slices('manual'), slices('e')], [[], []]);
});

test('at most 100 endpoints a slice; endpoints stay where they are, and free places are filled', async (t) => {
  const { store, pod, service, slices } = clusterOf(t);
  for (let i = 0; i < 250; i++) pod(`p${i}`, { ips: [`10.0.${i >> 7}.${i & 127}`] });
  service('web');
  await settled(store);
  const sizes = () =>
    slices('web')
      .map((slice) => arrayAt(slice, 'endpoints').length)
      .sort((a, b) => b - a);
  t.deepEqual(sizes(), [100, 100, 50]);
  const before = store.history(KINDS.endpointSlice).next;
  store.delete(KINDS.pod, { namespace: NS, name: 'p0' });
  pod('new', { ips: ['10.1.0.1'] });
  await settled(store);
  t.deepEqual(sizes(), [100, 100, 50]);
  t.is(store.history(KINDS.endpointSlice).next - before, 1, 'the slice that lost one took the new one');
  for (let i = 1; i < 201; i++) store.delete(KINDS.pod, { namespace: NS, name: `p${i}` });
  await settled(store);
  t.is(
    sizes().reduce((a, b) => a + b, 0),
    50,
  );
});

test('slices come back as they were, and go with their Service', async (t) => {
  const { store, pod, service, slices } = clusterOf(t);
  pod('p1', { ips: ['10.0.0.1'] });
  service('web');
  store.create(
    KINDS.endpointSlice,
    { metadata: { name: 'own', labels: { [SERVICE_NAME]: 'web' } }, addressType: 'IPv4' },
    NS,
  );
  await settled(store);
  const managed = () => slices('web').filter(({ metadata }) => metadata.name !== 'own');
  const [slice] = managed();
  store.update(KINDS.endpointSlice, { namespace: NS, name: slice?.metadata.name ?? '' }, (now) => ({
    ...now,
    endpoints: [],
  }));
  await settled(store);
  t.deepEqual(describe(managed()), ['IPv4 8080: 10.0.0.1 n1 a ready+serving']);
  store.delete(KINDS.endpointSlice, { namespace: NS, name: slice?.metadata.name ?? '' });
  await settled(store);
  t.deepEqual(describe(managed()), ['IPv4 8080: 10.0.0.1 n1 a ready+serving']);
  store.delete(KINDS.service, { namespace: NS, name: 'web' });
  const { uid } = service('web').object.metadata;
  await settled(store);
  t.deepEqual(
    managed().map((each) => valueAt(arrayAt(each.metadata, 'ownerReferences')[0], 'uid')),
    [uid],
  );
  store.delete(KINDS.service, { namespace: NS, name: 'web' });
  await settled(store);
  t.deepEqual(
    slices('web').map(({ metadata }) => metadata.name),
    ['own'],
    'what it did not make it does not delete',
  );
});

test('a controller that lost the history of changes finds out what they came to', async (t) => {
  const { store, pod, service, slices } = clusterOf(t, { historyLimit: 4 });
  for (let i = 0; i < 20; i++) {
    pod(`p${i}`, { ips: [`10.0.0.${i}`] });
    service(`s${i}`, { selector: { app: `a${i}` } });
  }
  service('web');
  await settled(store);
  t.is(arrayAt(slices('web')[0], 'endpoints').length, 20);
  for (let i = 0; i < 19; i++) {
    store.delete(KINDS.pod, { namespace: NS, name: `p${i}` });
    store.delete(KINDS.service, { namespace: NS, name: `s${i}` });
  }
  await settled(store);
  t.deepEqual(describe(slices('web')), ['IPv4 8080: 10.0.0.19 n1 a ready+serving']);
  t.is(store.list(KINDS.endpointSlice).objects.length, 2);
});

test('whatever happens in whatever order, slices tell of the Pods that there are', async (t) => {
  const place = fc.constantFrom('n1', 'n2', 'n3', 'gone');
  const step = fc.record({
    what: fc.constantFrom('pod', 'unready', 'dying', 'remove', 'service', 'unservice', 'pause'),
    index: fc.integer({ min: 0, max: 5 }),
    app: fc.constantFrom('web', 'db'),
    node: place,
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
      const { store, pod, report, service, slices } = clusterOf(t);
      const has = (row: typeof KINDS.pod | typeof KINDS.service, name: string) =>
        store.find(row, { namespace: NS, name });
      for (const { what, index, app, node } of steps) {
        const [name, ips] = [`p${index}`, [`10.0.0.${index}`]];
        const ref = { namespace: NS, name };
        if (what === 'pod' && !has(KINDS.pod, name)) pod(name, { app, node, ips });
        else if (what === 'unready' && has(KINDS.pod, name)) report(name, { ips, ready: false });
        else if (what === 'dying' && has(KINDS.pod, name)) store.delete(KINDS.pod, ref, { graceSeconds: 5 });
        else if (what === 'remove' && has(KINDS.pod, name)) store.delete(KINDS.pod, ref, { graceSeconds: 0 });
        else if (what === 'service' && !has(KINDS.service, app)) service(app, { selector: { app } });
        else if (what === 'unservice' && has(KINDS.service, app))
          store.delete(KINDS.service, { namespace: NS, name: app });
        else if (what === 'pause') await nextTurn();
      }
      await settled(store);
      for (const app of ['web', 'db']) {
        const pods = store.list(KINDS.pod).objects.map(({ object }) => object);
        const expected = pods
          .filter((each) => each.metadata.labels?.['app'] === app && textAt(each, 'spec', 'nodeName') !== 'gone')
          .map((each) => {
            const serving = valueAt(arrayAt(each, 'status', 'conditions')[0], 'status') === 'True';
            const terminating = each.metadata.deletionTimestamp !== undefined;
            return `${each.metadata.name} ${serving && !terminating} ${serving} ${terminating}`;
          });
        const found = slices(app).flatMap((slice) =>
          arrayAt(slice, 'endpoints').map((endpoint) => {
            const { ready, serving, terminating } = valueAt(endpoint, 'conditions') as Record<string, boolean>;
            return `${textAt(endpoint, 'targetRef', 'name')} ${ready} ${serving} ${terminating}`;
          }),
        );
        t.deepEqual(found.sort(), has(KINDS.service, app) ? expected.sort() : []);
        t.is(slices(app).length, has(KINDS.service, app) ? 1 : 0);
      }
    }),
    { numRuns: 60 },
  );
});
