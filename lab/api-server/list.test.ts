import test from 'ava';
import { startTestApi } from '../../test/support/lab-api.ts';
import { KINDS } from './kinds.ts';
import type { Store } from './store.ts';

const NODES = '/api/v1/nodes';

function createNodes(store: Store, count: number): void {
  for (let i = 0; i < count; i++) {
    store.create(KINDS.node, { metadata: { name: `n${String(i).padStart(5, '0')}`, labels: { odd: String(i % 2) } } });
  }
}

const namesOf = ({ items }: { items: readonly { metadata: { name: string } }[] }) =>
  items.map(({ metadata }) => metadata.name);

test('list: items are sorted and carry neither kind nor apiVersion, as a real server sends them', async (t) => {
  const { call, server } = await startTestApi(t);
  for (const name of ['b', 'a', 'a.b', 'a-b']) server.store.create(KINDS.node, { metadata: { name } });
  const { json } = await call('GET', NODES);
  t.like(json, { kind: 'NodeList', apiVersion: 'v1', metadata: { resourceVersion: String(server.store.revision) } });
  t.deepEqual(namesOf(json), ['a', 'a-b', 'a.b', 'b']);
  t.deepEqual(Object.keys(json.items[0]), ['metadata']);
  t.deepEqual((await call('GET', '/apis/networking.k8s.io/v1/networkpolicies')).json.items, []);
});

test('list: one namespace or all of them, by label and by field', async (t) => {
  const { call, server } = await startTestApi(t);
  for (const [namespace, name, nodeName] of [
    ['default', 'p', 'n1'],
    ['default', 'q', 'n2'],
    ['kube-system', 'p', 'n1'],
  ] as const) {
    server.store.create(KINDS.pod, { metadata: { name, labels: { on: nodeName } }, spec: { nodeName } }, namespace);
  }
  const count = async (path: string) => (await call('GET', path)).json.items.length;
  t.is(await count('/api/v1/pods'), 3);
  t.is(await count('/api/v1/namespaces/default/pods'), 2);
  t.is(await count('/api/v1/namespaces/absent/pods'), 0);
  t.is(await count('/api/v1/pods?fieldSelector=spec.nodeName%3Dn1'), 2);
  t.is(await count('/api/v1/pods?fieldSelector=spec.nodeName%3Dn1,metadata.namespace!%3Ddefault'), 1);
  t.is(await count('/api/v1/namespaces/default/pods?labelSelector=on+notin+(n1)'), 1);
  t.is((await call('GET', '/api/v1/pods?fieldSelector=spec.foo%3Dx')).code, 400);
  t.is((await call('GET', '/api/v1/pods?labelSelector=%3D')).code, 400);
});

test('list: pages show one version of the collection, whatever is written meanwhile', async (t) => {
  const { call, server } = await startTestApi(t);
  createNodes(server.store, 5);
  const first = (await call('GET', `${NODES}?limit=2`)).json;
  t.is(first.metadata.remainingItemCount, 3);
  server.store.delete(KINDS.node, { namespace: '', name: 'n00002' });
  server.store.create(KINDS.node, { metadata: { name: 'n00000a' } });
  server.store.create(KINDS.node, { metadata: { name: 'n00003a' } });
  const page = (token: string) => call('GET', `${NODES}?limit=2&continue=${token}`);
  const second = (await page(first.metadata.continue)).json;
  const third = (await page(second.metadata.continue)).json;
  t.deepEqual([first, second, third].flatMap(namesOf), ['n00000', 'n00001', 'n00002', 'n00003', 'n00004']);
  t.is(third.metadata.continue, undefined);
  for (const { metadata } of [second, third]) t.is(metadata.resourceVersion, first.metadata.resourceVersion);
});

test('list: pages of any size together are the whole list, in namespaces whose names begin alike and by selectors', async (t) => {
  const { call, server } = await startTestApi(t);
  for (const namespace of ['default', 'kube-system'])
    for (const name of ['a', 'a-b', 'ab', 'b', 'c'])
      server.store.create(
        KINDS.service,
        { metadata: { name, labels: { short: String(name.length < 2) } }, spec: { ports: [{ port: 80 }] } },
        namespace,
      );
  for (const query of ['', 'labelSelector=short%3Dtrue']) {
    const whole = (await call('GET', `/api/v1/services?${query}`)).json.items;
    for (const limit of [1, 2, 3, whole.length, whole.length + 1]) {
      const found: unknown[] = [];
      for (let token: string | undefined = ''; token !== undefined; ) {
        const { json } = await call('GET', `/api/v1/services?${query}&limit=${limit}&continue=${token}`);
        found.push(...json.items);
        token = json.metadata.continue;
        const left = query === '' && token !== undefined ? whole.length - found.length : undefined;
        t.is(json.metadata.remainingItemCount, left);
      }
      t.deepEqual(found, whole);
    }
  }
});

test('list: a selected page does not count what is left', async (t) => {
  const { call, server } = await startTestApi(t);
  createNodes(server.store, 8);
  const { json } = await call('GET', `${NODES}?limit=3&labelSelector=odd%3D1`);
  t.deepEqual(namesOf(json), ['n00001', 'n00003', 'n00005']);
  t.truthy(json.metadata.continue);
  t.is(json.metadata.remainingItemCount, undefined);
});

test('list: a continue token outlives its history with 410, and a forged one with 400', async (t) => {
  const { call, server } = await startTestApi(t);
  createNodes(server.store, 3);
  const { metadata } = (await call('GET', `${NODES}?limit=1`)).json;
  server.store.create(KINDS.node, { metadata: { name: 'x' } });
  server.compact();
  const { json, code } = await call('GET', `${NODES}?limit=1&continue=${metadata.continue}`);
  t.is(code, 410);
  t.is(json.reason, 'Expired');
  t.regex(json.message, /start a new list without the continue parameter/);
  for (const token of ['x', 'e30', Buffer.from('null').toString('base64url')]) {
    t.is((await call('GET', `${NODES}?continue=${token}`)).code, 400, token);
  }
});

test('list: resourceVersion and resourceVersionMatch', async (t) => {
  const { call, server } = await startTestApi(t);
  createNodes(server.store, 1);
  const before = server.store.revision;
  server.store.create(KINDS.node, { metadata: { name: 'later' } });
  const list = (query: string) => call('GET', `${NODES}?${query}`);
  t.is((await list('resourceVersion=0')).json.items.length, 2);
  t.is((await list(`resourceVersion=${before}`)).json.items.length, 2);
  const exact = (await list(`resourceVersion=${before}&resourceVersionMatch=Exact`)).json;
  t.deepEqual([exact.items.length, exact.metadata.resourceVersion], [1, String(before)]);
  t.is((await list(`resourceVersion=${before + 1000}`)).code, 504);
  t.is((await list('resourceVersion=1&resourceVersionMatch=Exact')).code, 410);
  for (const query of ['resourceVersion=x', 'resourceVersion=-1', 'limit=x', 'limit=-1', 'resourceVersionMatch=Some']) {
    t.is((await list(query)).code, 400, query);
  }
});

test('list: 5,000 Nodes in pages of 500', async (t) => {
  const { call, server } = await startTestApi(t);
  createNodes(server.store, 5000);
  const names: string[] = [];
  let token = '';
  let pages = 0;
  do {
    const { json } = await call('GET', `${NODES}?limit=500&continue=${token}`);
    names.push(...namesOf(json));
    token = json.metadata.continue ?? '';
    pages++;
  } while (token !== '');
  t.is(pages, 10);
  t.is(new Set(names).size, 5000);
});
