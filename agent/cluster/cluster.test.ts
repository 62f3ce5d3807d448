import type { ServerResponse } from 'node:http';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import {
  eventLine,
  listOf,
  nodeObject,
  type Script,
  sendJson,
  startScriptedApi,
} from '../../test/support/scripted-api.ts';
import { until } from '../../test/support/until.ts';
import { type ClusterChange, ClusterWatch } from './cluster.ts';

const podObject = (name: string, resourceVersion: string, phase = 'Running') => ({
  metadata: { name, namespace: 'default', uid: `uid-${name}`, resourceVersion },
  spec: { nodeName: 'n1' },
  status: { phase },
});

const namesOf = ([synced, { nodes, pods }]: [boolean, ClusterChange]) => [synced, [...nodes], [...pods]];

async function setUp(t: ExecutionContext, script: Script, { services = false } = {}) {
  const api = await startScriptedApi(t, script);
  const controller = new AbortController();
  const errors: string[] = [];
  const log = pino({ level: 'error' }, { write: (line: string) => void errors.push(JSON.parse(line).msg) });
  const watch = new ClusterWatch({
    client: api.client(),
    nodeName: 'n1',
    services,
    log,
    timing: { backoffMinMs: 5, backoffMaxMs: 40 },
  });
  t.teardown(() => {
    controller.abort();
    return watch.stopped();
  });
  return { api, watch, controller, errors };
}

/** A server of node `n1` and pod `default/web` that holds its watches open, and hands them out. */
function quietServer() {
  const open = new Map<string, ServerResponse>();
  const script: Script = ({ path, query }, response) => {
    const pods = path.endsWith('/pods');
    if (query.has('watch')) {
      response.flushHeaders();
      open.set(pods ? 'pods' : 'nodes', response);
    } else if (pods) sendJson(response, listOf('Pod', [podObject('web', '1')], '10'));
    else sendJson(response, listOf('Node', [nodeObject('n1', '1', '10.0.1.0/24')], '10'));
  };
  return { script, open };
}

test('ClusterWatch is synced when both lists are in, and asks only for the pods of its node', async (t) => {
  const { script } = quietServer();
  let answerPods: () => void = () => {};
  const podsMayAnswer = new Promise<void>((resolve) => {
    answerPods = resolve;
  });
  const { api, watch, controller } = await setUp(t, async (request, response) => {
    if (request.path.endsWith('/pods')) await podsMayAnswer;
    script(request, response);
  });
  const changes: [boolean, ClusterChange][] = [];
  watch.onChange((changed) => changes.push([watch.snapshot().synced, changed]));
  t.is(watch.snapshot().synced, false);
  t.is(watch.snapshot().nodes.size, 0);
  watch.start(controller.signal);
  await until(() => changes.length === 1, 'the nodes are listed');
  t.deepEqual(changes.map(namesOf), [[false, ['n1'], []]]);
  t.false(watch.snapshot().synced);
  answerPods();
  await watch.synced;
  t.deepEqual(changes.slice(1).map(namesOf), [[true, [], ['default/web']]]);
  t.is(watch.snapshot().pods.get('default/web')?.nodeName, 'n1');
  for (const { path, query } of api.requests)
    t.is(query.get('fieldSelector'), path.endsWith('/pods') ? 'spec.nodeName=n1' : null);
});

test('ClusterWatch tells when it becomes synced also where there is nothing', async (t) => {
  const { watch, controller } = await setUp(t, ({ path, query }, response) => {
    if (query.has('watch')) response.flushHeaders();
    else sendJson(response, listOf(path.endsWith('/pods') ? 'Pod' : 'Node', [], '1'));
  });
  const changes: ClusterChange[] = [];
  watch.onChange((changed) => changes.push(changed));
  watch.start(controller.signal);
  await watch.synced;
  t.deepEqual(
    changes.map((change) => Object.values(change).flatMap((names) => [...names])),
    [[]],
  );
  t.true(watch.snapshot().synced);
});

test('events that arrive together are one snapshot, and what did not change keeps its map', async (t) => {
  const { script, open } = quietServer();
  const { watch, controller } = await setUp(t, script);
  watch.start(controller.signal);
  await watch.synced;
  await until(() => open.size === 2, 'both watches are open');
  const before = watch.snapshot();
  const changes: ClusterChange[] = [];
  const end = watch.onChange((changed) => changes.push(changed));
  open
    .get('nodes')
    ?.write(Array.from({ length: 50 }, (_, i) => eventLine('ADDED', nodeObject(`m${i}`, String(20 + i)))).join(''));
  await until(() => changes.length > 0, 'the nodes arrived');
  t.is(changes.length, 1);
  t.is(changes[0]?.nodes.size, 50);
  const after = watch.snapshot();
  t.is(after.nodes.size, 51);
  t.is(before.nodes.size, 1);
  t.is(after.pods, before.pods);
  t.true(Object.isFrozen(after));
  // A heartbeat.
  open.get('pods')?.write(eventLine('MODIFIED', podObject('web', '99')));
  await until(() => watch.status().resources[1]?.resourceVersion === '99', 'the heartbeat arrived');
  t.is(watch.snapshot(), after);
  end();
  open.get('pods')?.write(eventLine('MODIFIED', podObject('web', '100', 'Failed')));
  await until(() => watch.snapshot().pods.get('default/web')?.phase === 'Failed', 'the pod changed');
  t.is(changes.length, 1);
});

test('a listener that throws is an error in the log and disturbs nobody', async (t) => {
  const { script, open } = quietServer();
  const { api, watch, controller, errors } = await setUp(t, script);
  watch.onChange(() => {
    throw new Error('a bug');
  });
  let heard = 0;
  watch.onChange(() => heard++);
  watch.start(controller.signal);
  await watch.synced;
  await until(() => open.size === 2, 'both watches are open');
  t.is(heard, 2);
  t.deepEqual(errors, ['listener of cluster changes failed', 'listener of cluster changes failed']);
  t.is(api.requests.length, 4);
});

test('status says where each resource stands, and the last snapshot stays through an outage', async (t) => {
  const { script } = quietServer();
  let down = false;
  const { api, watch, controller } = await setUp(t, (request, response) =>
    down ? response.destroy() : script(request, response),
  );
  watch.start(controller.signal);
  await watch.synced;
  const connected = () => watch.status().resources.every((resource) => resource.connected);
  await until(connected, 'connected');
  t.like(watch.status().resources[0], {
    resource: 'nodes',
    synced: true,
    objects: 1,
    resourceVersion: '10',
    relists: 0,
    error: undefined,
    problems: [],
    problemCount: 0,
  });
  const { nodes } = watch.snapshot();
  down = true;
  api.cut();
  await until(() => watch.status().resources.every(({ error }) => error !== undefined), 'the outage shows');
  t.regex(watch.status().resources[1]?.error ?? '', /^cannot watch pods at https:\S+: expected a whole answer, got /);
  t.true(watch.snapshot().synced);
  t.is(watch.snapshot().nodes, nodes);
  down = false;
  await until(connected, 'connected again');
  t.is(watch.status().resources[0]?.error, undefined);
});

test('an unusable object is named in the status and takes no other with it', async (t) => {
  const { watch, controller } = await setUp(t, ({ path, query }, response) => {
    if (query.has('watch')) response.flushHeaders();
    else if (path.endsWith('/pods'))
      sendJson(response, listOf('Pod', [podObject('web', '1'), { metadata: { name: 'x' } }, null], '1'));
    else sendJson(response, listOf('Node', [nodeObject('n1', '1', 'bad'), nodeObject('n2', '1')], '1'));
  });
  watch.start(controller.signal);
  await watch.synced;
  t.deepEqual([...watch.snapshot().nodes.keys()].sort(), ['n1', 'n2']);
  t.deepEqual([...watch.snapshot().pods.keys()], ['default/web']);
  t.deepEqual(watch.status().resources[0]?.problems, ['n1: spec.podCIDRs has "bad": expected a CIDR']);
  t.deepEqual(watch.status().resources[0]?.troubled, [['n1', 1]]);
  t.is(watch.status().resources[1]?.problemCount, 2);
  t.deepEqual(watch.status().resources[1]?.troubled, [], 'without a usable name');
  t.is(watch.problems().length, 3);
});

test('synced rejects when the signal aborts before, and stopped resolves', async (t) => {
  const { watch, controller } = await setUp(t, () => {});
  watch.start(controller.signal);
  controller.abort(new Error('stop'));
  await t.throwsAsync(watch.synced, { message: 'stop' });
  await watch.stopped();
});

test('a node name that could alter the selector is refused', (t) => {
  for (const nodeName of ['', 'a,metadata.name=b', 'A']) {
    t.throws(() => new ClusterWatch({ client: {} as never, nodeName, log: pino({ level: 'silent' }) }), {
      instanceOf: TypeError,
    });
  }
});

test('Services and EndpointSlices are watched when asked for, without those of other proxies', async (t) => {
  const service = {
    metadata: { name: 'web', namespace: 'default', uid: 'u', labels: {} },
    spec: { clusterIP: '10.96.0.7', ports: [{ port: 80 }] },
  };
  const slice = {
    metadata: { name: 'web-1', namespace: 'default', labels: { 'kubernetes.io/service-name': 'web' } },
    addressType: 'IPv4',
    ports: [{ name: '', port: 8080 }],
    endpoints: [{ addresses: ['10.84.0.5'], nodeName: 'n1' }],
  };
  const lists: Readonly<Record<string, object>> = {
    '/api/v1/services': listOf('Service', [service], '10'),
    '/apis/discovery.k8s.io/v1/endpointslices': listOf('EndpointSlice', [slice], '10'),
  };
  const { api, watch, controller } = await setUp(
    t,
    ({ path, query }, response) => {
      if (query.has('watch')) response.flushHeaders();
      else sendJson(response, lists[path] ?? listOf('Other', [], '10'));
    },
    { services: true },
  );
  watch.start(controller.signal);
  await watch.synced;
  t.is(watch.snapshot().services.get('default/web')?.ports[0]?.port, 80);
  t.deepEqual<unknown, unknown>(watch.snapshot().endpointSlices.get('default/web-1')?.endpoints, [
    { ip: '10.84.0.5', state: 'ready', local: true },
  ]);
  const selectors = new Set(
    api.requests.filter(({ path }) => path in lists).map(({ query }) => query.get('labelSelector')),
  );
  t.deepEqual(selectors, new Set(['!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless']));
});
