import { once } from 'node:events';
import { connect } from 'node:tls';
import test from 'ava';
import { startTestApi, TOKEN } from '../../test/support/lab-api.ts';
import { until } from '../../test/support/until.ts';
import { createCa, createClientCertificate } from '../pki.ts';
import { KINDS } from './kinds.ts';
import { startApiServer } from './server.ts';

const NODES = '/api/v1/nodes';
const PODS = '/api/v1/namespaces/default/pods';
const MERGE = { headers: { 'content-type': 'application/merge-patch+json' } };
const TABLE = {
  headers: {
    accept:
      'application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json',
  },
};
const signal = AbortSignal.timeout(60_000);

test('an object lives from POST to DELETE', async (t) => {
  const { call } = await startTestApi(t);
  const created = await call('POST', PODS, {
    kind: 'Pod',
    apiVersion: 'v1',
    metadata: { name: 'p' },
    spec: { nodeName: 'n1' },
  });
  t.is(created.code, 201);
  t.like(created.json, { kind: 'Pod', apiVersion: 'v1', metadata: { name: 'p', namespace: 'default' } });
  t.deepEqual((await call('GET', `${PODS}/p`)).json, created.json);
  const replaced = await call('PUT', `${PODS}/p`, { ...created.json, spec: { nodeName: 'n2' } });
  t.is(replaced.json.spec.nodeName, 'n2');
  t.is((await call('PUT', `${PODS}/p`, { ...created.json, spec: {} })).json.reason, 'Conflict');
  const status = await call('PUT', `${PODS}/p/status`, { ...replaced.json, spec: {}, status: { phase: 'Running' } });
  t.like(status.json, { spec: { nodeName: 'n2' }, status: { phase: 'Running' } });
  t.like((await call('GET', `${PODS}/p/status`)).json, { status: { phase: 'Running' } });
  const labelled = await call('PATCH', `${PODS}/p`, { metadata: { labels: { app: 'web' } } }, MERGE);
  t.like(labelled.json, { metadata: { labels: { app: 'web' } }, status: { phase: 'Running' } });
  const deleted = await call('DELETE', `${PODS}/p`);
  t.like(deleted.json, {
    kind: 'Status',
    status: 'Success',
    details: { name: 'p', kind: 'pods', uid: created.json.metadata.uid },
  });
  t.like((await call('GET', `${PODS}/p`)).json, {
    kind: 'Status',
    status: 'Failure',
    reason: 'NotFound',
    code: 404,
    message: 'pods "p" not found',
  });
});

test('DELETE: DeleteOptions are read from the body and from the query', async (t) => {
  const { call } = await startTestApi(t);
  await call('POST', PODS, { metadata: { name: 'p' } });
  const marked = await call('DELETE', `${PODS}/p`, { kind: 'DeleteOptions', apiVersion: 'v1', gracePeriodSeconds: 30 });
  t.is(marked.json.metadata.deletionGracePeriodSeconds, 30);
  t.is((await call('DELETE', `${PODS}/p`, { preconditions: { uid: 'other' } })).code, 409);
  t.is((await call('DELETE', `${PODS}/p?gracePeriodSeconds=x`)).code, 400);
  t.is((await call('DELETE', `${PODS}/p?gracePeriodSeconds=0&dryRun=All`)).json.status, 'Success');
  t.is((await call('DELETE', `${PODS}/p?gracePeriodSeconds=0`)).json.status, 'Success');
  t.is((await call('GET', `${PODS}/p`)).code, 404);
});

test('DELETE of a collection: removes what the selectors match and answers with it', async (t) => {
  const { call } = await startTestApi(t);
  for (const [name, app] of [
    ['a', 'web'],
    ['b', 'db'],
    ['c', 'web'],
  ]) {
    await call('POST', PODS, { metadata: { name, labels: { app } } });
  }
  const { json } = await call('DELETE', `${PODS}?labelSelector=app%3Dweb`);
  t.like(json, { kind: 'PodList', items: [{ metadata: { name: 'a' } }, { metadata: { name: 'c' } }] });
  t.like((await call('GET', PODS)).json.items, { length: 1, 0: { metadata: { name: 'b' } } });
});

test('PATCH: all three formats, and what each refuses', async (t) => {
  const { call } = await startTestApi(t);
  const created = await call('POST', NODES, { metadata: { name: 'n' } });
  const patch = (type: string, body: unknown) =>
    call('PATCH', `${NODES}/n`, body, { headers: { 'content-type': `application/${type}` } });
  t.like((await patch('strategic-merge-patch+json', { metadata: { annotations: { a: '1' } } })).json, {
    metadata: { annotations: { a: '1' } },
  });
  t.like((await patch('json-patch+json', [{ op: 'add', path: '/metadata/labels', value: { l: '1' } }])).json, {
    metadata: { labels: { l: '1' } },
  });
  t.is((await patch('json-patch+json', [{ op: 'remove', path: '/spec' }])).code, 422);
  t.is(
    (await patch('merge-patch+json', { metadata: { resourceVersion: created.json.metadata.resourceVersion } })).code,
    409,
  );
  t.is((await patch('merge-patch+json', { metadata: { name: 'other' } })).code, 400);
  t.is((await patch('merge-patch+json', 'no json')).code, 400);
  t.is((await patch('apply-patch+yaml; charset=utf-8', {})).json.reason, 'UnsupportedMediaType');
  t.is((await call('PATCH', `${NODES}/absent`, {}, MERGE)).code, 404);
});

test('refusals of paths, methods, bodies and media types are Status objects', async (t) => {
  const { call } = await startTestApi(t);
  const cases: readonly (readonly [method: string, path: string, code: number])[] = [
    ['GET', '/nowhere', 404],
    ['GET', '/api/v1/unknown', 404],
    ['GET', '/api/v1/pods/p', 404],
    ['GET', '/api/v1/namespaces/default/nodes', 404],
    ['GET', '/apis/discovery.k8s.io/v1/nodes', 404],
    ['GET', `${NODES}/n/status/more`, 404],
    ['GET', '/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/e/status', 404],
    ['GET', '/api/v1/namespaces/%', 400],
    ['POST', `${NODES}/n`, 405],
    ['PUT', NODES, 405],
    ['DELETE', `${NODES}/n/status`, 405],
    ['OPTIONS', NODES, 405],
    ['POST', NODES, 400],
  ];
  for (const [method, path, code] of cases) {
    const answer = await call(method, path);
    t.is(answer.code, code, `${method} ${path}`);
    t.like(answer.json, { kind: 'Status', status: 'Failure', code });
  }
  t.is((await call('POST', NODES, '{')).code, 400);
  t.is((await call('POST', NODES, 'a: b', { headers: { 'content-type': 'application/yaml' } })).code, 415);
  t.is((await call('GET', NODES, undefined, { headers: { accept: 'application/vnd.kubernetes.protobuf' } })).code, 406);
  t.is((await call('POST', NODES, { metadata: { name: 'n' }, x: 'y'.repeat(3 * 1024 * 1024) })).code, 413);
  t.is((await call('POST', `${NODES}?dryRun=Some`, { metadata: { name: 'n' } })).code, 400);
});

test('the status of a Namespace is not a resource called status inside it', async (t) => {
  const { call } = await startTestApi(t);
  const { json } = await call('GET', '/api/v1/namespaces/default/status');
  t.like(json, { kind: 'Namespace', metadata: { name: 'default' }, status: { phase: 'Active' } });
});

test('discovery: what kubectl asks first', async (t) => {
  const { call, server } = await startTestApi(t);
  const get = async (path: string) => (await call('GET', path)).json;
  t.like(await get('/version'), { major: '1' });
  t.like(await get('/api'), {
    kind: 'APIVersions',
    versions: ['v1'],
    serverAddressByClientCIDRs: [{ serverAddress: server.url.slice(8) }],
  });
  t.deepEqual(
    (await get('/apis')).groups.map(({ name }: { name: string }) => name),
    ['discovery.k8s.io', 'networking.k8s.io'],
  );
  t.like(await get('/apis/networking.k8s.io'), {
    kind: 'APIGroup',
    preferredVersion: { groupVersion: 'networking.k8s.io/v1' },
  });
  const { resources } = await get('/api/v1');
  const pods = resources.find(({ name }: { name: string }) => name === 'pods');
  t.like(pods, { kind: 'Pod', namespaced: true, singularName: 'pod', shortNames: ['po'] });
  t.true(resources.some(({ name }: { name: string }) => name === 'pods/status'));
  for (const path of ['/healthz', '/livez', '/readyz', '/readyz/']) t.is((await call('GET', path)).text, 'ok');
  const { paths } = await get('/openapi/v3');
  t.like(await get(paths['api/v1'].serverRelativeURL), {
    paths: { '/api/v1/nodes/{name}': { patch: { parameters: [{ name: 'fieldValidation' }] } } },
  });
});

test('Table: columns for people, with the metadata of each object', async (t) => {
  const { call } = await startTestApi(t);
  await call('POST', PODS, { metadata: { name: 'p' }, spec: { nodeName: 'n1', containers: [{}] } });
  const { json } = await call('GET', PODS, undefined, TABLE);
  t.like(json, { kind: 'Table', apiVersion: 'meta.k8s.io/v1' });
  t.deepEqual(
    json.columnDefinitions.map(({ name }: { name: string }) => name),
    ['Name', 'Ready', 'Status', 'Age', 'IP', 'Node'],
  );
  t.deepEqual(json.rows[0].cells, ['p', '0/1', 'Pending', json.rows[0].cells[3], '<none>', 'n1']);
  t.regex(json.rows[0].cells[3], /^\d+s$/);
  t.like(json.rows[0].object, { kind: 'PartialObjectMetadata', metadata: { name: 'p', namespace: 'default' } });
  t.is((await call('GET', `${PODS}/p`, undefined, TABLE)).json.rows[0].cells[0], 'p');
  t.is((await call('GET', `${PODS}?includeObject=Object`, undefined, TABLE)).json.rows[0].object.spec.nodeName, 'n1');
  t.is((await call('GET', `${PODS}?includeObject=All`, undefined, TABLE)).code, 400);
});

test('access: anonymous, tokens that change, and users who may only read', async (t) => {
  const { call, server } = await startTestApi(t);
  const as = (authorization: string, method = 'GET', path = NODES) =>
    call(method, path, undefined, { headers: { authorization } });
  for (const authorization of ['', 'Bearer', 'Bearer wrong', 'Basic dGVzdA==', `Bearer ${TOKEN} x`]) {
    t.like(await as(authorization), { code: 401, json: { reason: 'Unauthorized' } });
  }
  for (const path of ['/healthz', '/version']) t.is((await as('', 'GET', path)).code, 200);
  t.is((await as('', 'GET', '/apis')).code, 401);
  server.access.setToken('agent-token', 'agent');
  server.access.setReadOnly('agent', true);
  t.is((await as('Bearer agent-token')).code, 200);
  t.is(server.access.writeAttempts('agent'), 0);
  const refused = await as('Bearer agent-token', 'DELETE', `${PODS}/p`);
  t.is(refused.code, 403);
  t.is(
    refused.json.message,
    'pods "p" is forbidden: User "agent" cannot delete resource "pods" in API group "" in the namespace "default"',
  );
  t.is(server.access.writeAttempts('agent'), 1);
  server.access.setReadOnly('agent', false);
  t.is((await as('Bearer agent-token', 'DELETE', `${PODS}/p`)).code, 404);
  server.access.revokeToken('agent-token');
  t.is((await as('Bearer agent-token')).code, 401);
});

test('access: a client certificate of the lab authority is a user, one of another authority is nobody', async (t) => {
  const { call, server, ca, directory } = await startTestApi(t);
  server.access.setReadOnly('viewer', true);
  const viewer = await createClientCertificate(
    { directory, name: 'viewer', ca, user: 'viewer', group: 'people' },
    signal,
  );
  t.is((await call('GET', NODES, undefined, { clientCert: viewer })).code, 200);
  t.regex((await call('POST', NODES, {}, { clientCert: viewer })).json.message, /User "viewer" cannot create/);
  const other = await createCa({ directory, name: 'other' }, signal);
  const stranger = await createClientCertificate({ directory, name: 'stranger', ca: other, user: 'admin' }, signal);
  t.is((await call('GET', NODES, undefined, { clientCert: stranger })).code, 401);
});

test('requests are counted by verb and resource', async (t) => {
  const { call, server } = await startTestApi(t);
  await call('GET', NODES);
  await call('GET', `${NODES}?limit=5`);
  await call('PUT', `${PODS}/p/status`, {});
  t.deepEqual(Object.fromEntries(server.requests), { 'list nodes': 2, 'update pods/status': 1 });
});

test('setUnavailable: open connections are reset and new ones refused, until it is over', async (t) => {
  const { call, watch, server } = await startTestApi(t);
  const open = await watch(`${NODES}?watch=1`);
  server.setUnavailable(true);
  await t.throwsAsync(open.rest());
  await t.throwsAsync(call('GET', '/healthz'));
  server.setUnavailable(false);
  t.is((await call('GET', '/healthz')).text, 'ok');
  t.is(server.watchCount, 0);
});

test('stall: connections are accepted and nothing is sent; afterwards everything is answered', async (t) => {
  const { call, watch, server } = await startTestApi(t, { bookmarkIntervalMs: 10 });
  const open = await watch(`${NODES}?watch=1&allowWatchBookmarks=1`);
  server.stall();
  let answered = false;
  const answer = call('POST', NODES, { metadata: { name: 'n' } }).finally(() => (answered = true));
  let heard = false;
  const event = open.next().then((line) => {
    heard = true;
    return line;
  });
  const { hostname, port } = new URL(server.url);
  const socket = connect({ host: hostname, port: Number(port), rejectUnauthorized: false });
  t.teardown(() => socket.destroy());
  await once(socket, 'secureConnect');
  server.store.create(KINDS.namespace, { metadata: { name: 'x' } });
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.false(answered || heard);
  server.stall(false);
  t.is((await answer).code, 201);
  t.true(['BOOKMARK', 'ADDED'].includes((await event).type));
});

test('stall: a client that went away meanwhile is not answered', async (t) => {
  const { server, call } = await startTestApi(t);
  server.stall();
  const gone = new AbortController();
  const asked = call('GET', `${NODES}?watch=1`, undefined, { signal: gone.signal });
  await until(() => server.requests.get('watch nodes') === 1, 'the request arrives');
  gone.abort();
  await t.throwsAsync(asked);
  await until(() => server.connectionCount === 0, 'the connection ends');
  server.stall(false);
  await new Promise((resolve) => setImmediate(resolve));
  t.is(server.watchCount, 0);
});

test('close: ends requests, watches and timers, and can be repeated', async (t) => {
  const { watch, server } = await startTestApi(t);
  const open = await watch(`${NODES}?watch=1`);
  await Promise.all([server.close(), server.close()]);
  await t.throwsAsync(open.rest());
  await server.close();
  t.is(server.watchCount, 0);
});

test('startApiServer: an address in use is an error; an aborted signal ends the server', async (t) => {
  const { server, ca } = await startTestApi(t);
  const tls = { cert: ca.cert, key: ca.key, clientCa: ca.cert };
  const options = { host: '127.0.0.1', port: Number(new URL(server.url).port), tls };
  await t.throwsAsync(startApiServer(options, signal), { code: 'EADDRINUSE' });
  const stop = new AbortController();
  const second = await startApiServer({ ...options, port: 0 }, stop.signal);
  stop.abort();
  await second.close();
  await t.throwsAsync(startApiServer(options, stop.signal), { name: 'AbortError' });
});
