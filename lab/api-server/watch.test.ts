import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import fc from 'fast-check';
import { startTestApi } from '../../test/support/lab-api.ts';
import { until } from '../../test/support/until.ts';
import { KINDS } from './kinds.ts';
import { type ApiObject, withField } from './objects.ts';
import { parseLabelSelector } from './selectors.ts';
import { Store } from './store.ts';
import { lineOf } from './watch.ts';

const NODES = '/api/v1/nodes';
const PODS = '/api/v1/pods';

const ref = (name: string, namespace = '') => ({ namespace, name });
const create = (store: Store, name: string, rest = {}) => store.create(KINDS.node, { metadata: { name }, ...rest });
const label = (value: string) => (object: ApiObject) => ({
  ...object,
  metadata: { ...object.metadata, labels: { app: value } },
});

// biome-ignore lint/suspicious/noExplicitAny: events carry objects of many shapes.
const text = ({ type, object }: any) => `${type} ${object.metadata?.name ?? object.reason}`;

test('watch: from a version everything after it, as plain objects', async (t) => {
  const { watch, server } = await startTestApi(t);
  create(server.store, 'before');
  const { revision } = server.store;
  create(server.store, 'a');
  const open = await watch(`${NODES}?watch=true&resourceVersion=${revision}`);
  server.store.update(KINDS.node, ref('a'), (node) => withField(node, 'spec', { x: 1 }));
  server.store.delete(KINDS.node, ref('a'));
  const events = [await open.next(), await open.next(), await open.next()];
  t.deepEqual(events.map(text), ['ADDED a', 'MODIFIED a', 'DELETED a']);
  t.like(events[1].object, { kind: 'Node', apiVersion: 'v1', spec: { x: 1 } });
  t.deepEqual(
    events.map(({ object }) => Number(object.metadata.resourceVersion) - revision),
    [1, 2, 3],
  );
  // A deleted object is shown as it was, at the version of its deletion.
  t.like(events[2].object, { spec: { x: 1 } });
});

test('watch: without a version, or from 0, what exists comes first', async (t) => {
  const { watch, server } = await startTestApi(t);
  for (const name of ['b', 'a']) create(server.store, name);
  for (const query of ['', '&resourceVersion=0', '&resourceVersion=']) {
    const open = await watch(`${NODES}?watch=1${query}`);
    t.deepEqual([await open.next(), await open.next()].map(text), ['ADDED a', 'ADDED b']);
    open.close();
  }
});

test('watch: namespaces, names and selectors; what stops matching was deleted, what begins to was added', async (t) => {
  const { watch, server } = await startTestApi(t);
  const { store } = server;
  store.create(KINDS.pod, { metadata: { name: 'p' } }, 'kube-system');
  const { revision } = store;
  const from = `watch=1&resourceVersion=${revision}`;
  const opened = [
    await watch(`/api/v1/namespaces/default/pods?${from}`),
    await watch(`/api/v1/namespaces/kube-system/pods/p?${from}`),
    await watch(`${PODS}?${from}&labelSelector=app%3Dweb`),
    await watch(`${PODS}?${from}&fieldSelector=metadata.name%3Dp`),
  ];
  store.create(KINDS.pod, { metadata: { name: 'q' } }, 'default');
  store.update(KINDS.pod, ref('p', 'kube-system'), label('web'));
  store.update(KINDS.pod, ref('p', 'kube-system'), label('db'));
  store.update(KINDS.pod, ref('p', 'kube-system'), label('web'));
  store.delete(KINDS.pod, ref('p', 'kube-system'));
  server.closeWatches();
  const all = await Promise.all(opened.map(async (open) => (await open.rest()).map(text).join(', ')));
  const whole = 'MODIFIED p, MODIFIED p, MODIFIED p, DELETED p';
  t.deepEqual(all, ['ADDED q', whole, 'ADDED p, DELETED p, ADDED p, DELETED p', whole]);
});

test('watch: an object that stops matching is told as it was, at the version of the change', async (t) => {
  const { watch, server } = await startTestApi(t);
  create(server.store, 'a', { metadata: { name: 'a', labels: { app: 'web' } } });
  const open = await watch(`${NODES}?watch=1&resourceVersion=${server.store.revision}&labelSelector=app%3Dweb`);
  const { revision } = server.store.update(KINDS.node, ref('a'), label('db'));
  t.like(await open.next(), {
    type: 'DELETED',
    object: { metadata: { labels: { app: 'web' }, resourceVersion: String(revision) } },
  });
});

test('watch: bookmarks at the interval, for who asked for them', async (t) => {
  const { watch, server } = await startTestApi(t, { bookmarkIntervalMs: 20 });
  const from = `watch=1&resourceVersion=${server.store.revision}`;
  const asking = await watch(`${NODES}?${from}&allowWatchBookmarks=true`);
  const silent = await watch(`${NODES}?${from}`);
  // A version of another kind: a bookmark moves past what the watcher never sees.
  const { revision } = server.store.create(KINDS.pod, { metadata: { name: 'p' } }, 'default');
  let event = await asking.next();
  while (event.object.metadata.resourceVersion !== String(revision)) event = await asking.next();
  t.like(event, { type: 'BOOKMARK', object: { kind: 'Node', apiVersion: 'v1' } });
  t.like(await asking.next(), { type: 'BOOKMARK', object: { metadata: { resourceVersion: String(revision) } } });
  server.closeWatches();
  t.deepEqual(await silent.rest(), []);
});

test('watch: the last bookmark comes just before the end, also with a long interval', async (t) => {
  const { watch, server } = await startTestApi(t);
  const { revision } = server.store;
  create(server.store, 'a');
  const open = await watch(`${NODES}?watch=1&allowWatchBookmarks=1&timeoutSeconds=1&resourceVersion=${revision}`);
  t.deepEqual(
    (await open.rest()).map(({ type }) => type),
    ['ADDED', 'BOOKMARK'],
  );
  await until(() => server.watchCount === 0, 'the watch is forgotten');
});

test('watch: 410 for a version before the history', async (t) => {
  const { call, server } = await startTestApi(t, { historyLimit: 3 });
  const { revision } = server.store;
  for (const name of ['a', 'b', 'c', 'd']) create(server.store, name);
  const { code, json } = await call('GET', `${NODES}?watch=1&resourceVersion=${revision}`);
  t.is(code, 410);
  t.like(json, {
    kind: 'Status',
    reason: 'Expired',
    message: `too old resource version: ${revision} (${revision + 1})`,
  });
});

test('watch: a version of a former life of the server is answered with 410', async (t) => {
  const former = new Store();
  create(former, 'a');
  await sleep(20);
  const { call } = await startTestApi(t);
  t.is((await call('GET', `${NODES}?watch=1&resourceVersion=${former.revision}`)).code, 410);
});

test('watch: ERROR 410 and the end when history overtakes a watcher', async (t) => {
  const { watch, server } = await startTestApi(t);
  const open = await watch(`${NODES}?watch=1&resourceVersion=${server.store.revision}`);
  server.stall();
  create(server.store, 'a');
  server.compact();
  server.stall(false);
  const events = await open.rest();
  t.deepEqual(events.map(text), ['ERROR Expired']);
  t.like(events[0].object, { kind: 'Status', status: 'Failure', code: 410 });
});

test('watch: compact leaves alone who has seen everything', async (t) => {
  const { watch, server } = await startTestApi(t);
  const open = await watch(`${NODES}?watch=1`);
  create(server.store, 'a');
  t.is(text(await open.next()), 'ADDED a');
  server.compact();
  create(server.store, 'b');
  t.is(text(await open.next()), 'ADDED b');
});

test('watch: a version that is yet to come is waited for', async (t) => {
  const { watch, server } = await startTestApi(t);
  const open = await watch(`${NODES}?watch=1&resourceVersion=${server.store.revision + 2}`);
  for (const name of ['a', 'b', 'c']) create(server.store, name);
  t.is(text(await open.next()), 'ADDED c');
});

test('watch: sendInitialEvents is refused as by servers without it, a bad version and selector with 400', async (t) => {
  const { call } = await startTestApi(t);
  const { code, json } = await call('GET', `${NODES}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan`);
  t.is(code, 422);
  t.is(json.details.causes[0].field, 'sendInitialEvents');
  for (const query of ['resourceVersion=x', 'fieldSelector=x', 'labelSelector=%3D']) {
    t.is((await call('GET', `${NODES}?watch=1&${query}`)).code, 400);
  }
});

test('watch: closeWatches ends all of them and the server goes on', async (t) => {
  const { watch, server } = await startTestApi(t);
  const opened = await Promise.all([1, 2].map(() => watch(`${NODES}?watch=1&allowWatchBookmarks=1`)));
  t.is(server.watchCount, 2);
  server.closeWatches();
  for (const open of opened) t.deepEqual(await open.rest(), []);
  await until(() => server.watchCount === 0, 'the watches are forgotten');
  t.truthy(await watch(`${NODES}?watch=1`));
});

test('watch: a client that goes away is forgotten', async (t) => {
  const { watch, server } = await startTestApi(t);
  (await watch(`${NODES}?watch=1`)).close();
  await until(() => server.watchCount === 0, 'the watch is forgotten');
  create(server.store, 'a');
  t.pass();
});

test('watch: a slow reader loses nothing and holds nobody up', async (t) => {
  const { watch, server } = await startTestApi(t);
  const from = `watch=1&resourceVersion=${server.store.revision}`;
  const [slow, quick] = [await watch(`${NODES}?${from}`), await watch(`${NODES}?${from}`)];
  slow.message.pause();
  const names = Array.from({ length: 300 }, (_, i) => `n${i}`);
  // More than the buffers of both ends hold.
  for (const name of names) create(server.store, name, { spec: { padding: 'x'.repeat(50_000) } });
  for (const name of names) t.is(text(await quick.next()), `ADDED ${name}`);
  slow.message.resume();
  for (const name of names) t.is(text(await slow.next()), `ADDED ${name}`);
});

test('watch: what a reader does not take is not kept for it without bound: history overtakes it', async (t) => {
  const { watch, server } = await startTestApi(t, { historyLimit: 10 });
  const from = `watch=1&resourceVersion=${server.store.revision}`;
  const [slow, quick] = [await watch(`${NODES}?${from}`), await watch(`${NODES}?${from}`)];
  slow.message.pause();
  for (let i = 0; i < 400; i++) {
    create(server.store, `n${i}`, { spec: { padding: 'x'.repeat(50_000) } });
    t.is(text(await quick.next()), `ADDED n${i}`);
  }
  slow.message.resume();
  t.is(text((await slow.rest()).at(-1)), 'ERROR Expired');
});

test('watch: a Table for kubectl get -w', async (t) => {
  const { call, server } = await startTestApi(t);
  create(server.store, 'a');
  const accept = 'application/json;as=Table;v=v1;g=meta.k8s.io,application/json';
  const { text: lines } = await call('GET', `${NODES}?watch=1&timeoutSeconds=1`, undefined, { headers: { accept } });
  t.like(JSON.parse(lines), { type: 'ADDED', object: { kind: 'Table' } });
  t.is(JSON.parse(lines).object.rows[0].cells[0], 'a');
});

test('watch: three watchers of 5,000 Nodes all see everything, and an object is put into text once', async (t) => {
  const { watch, server } = await startTestApi(t);
  const opened = await Promise.all([1, 2, 3].map(() => watch(`${NODES}?watch=1`)));
  let serialised = 0;
  const count = 5000;
  for (let i = 0; i < count; i++) {
    const spec = Object.defineProperty({ x: 1 }, 'toJSON', { value: () => ++serialised, enumerable: false });
    create(server.store, `n${i}`, { spec });
  }
  await Promise.all(
    opened.map(async (open) => {
      for (let i = 0; i < count; i++) t.is((await open.next()).object.metadata.name, `n${i}`);
    }),
  );
  t.is(serialised, count);
});

test('lineOf: a watcher that follows its events holds exactly what it selects', (t) => {
  const step = fc.record({ name: fc.constantFrom('a', 'b', 'c'), value: fc.constantFrom('web', 'db', 'gone') });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const store = new Store();
      const matches = parseLabelSelector('app=web');
      const held = new Map<string, string | undefined>();
      for (const { name, value } of steps) {
        const exists = store.find(KINDS.node, ref(name)) !== undefined;
        if (value === 'gone') exists && store.delete(KINDS.node, ref(name));
        else if (exists) store.update(KINDS.node, ref(name), label(value));
        else create(store, name, { metadata: { name, labels: { app: value } } });
      }
      const history = store.history(KINDS.node);
      for (let position = history.oldest; position < history.next; position++) {
        const line = lineOf(history.at(position), matches);
        if (!line) continue;
        const { name, resourceVersion } = line.stored.object.metadata;
        t.is(held.has(name), line.type !== 'ADDED');
        if (line.type === 'DELETED') held.delete(name);
        else held.set(name, resourceVersion);
      }
      const selected = store.list(KINDS.node).objects.filter(({ object }) => matches(object));
      const expected = selected.map(({ object }) => [object.metadata.name, object.metadata.resourceVersion] as const);
      t.deepEqual([...held].sort(), expected);
    }),
  );
});
