/** The agent's cluster watch against the lab's API server: what both must agree on, and every fault between them. */

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { pino } from 'pino';
import { ApiClient } from '../agent/cluster/api-client.ts';
import { ClusterWatch } from '../agent/cluster/cluster.ts';
import { type CredentialsSource, serviceAccount } from '../agent/cluster/credentials.ts';
import { kubeconfig } from '../agent/cluster/kubeconfig.ts';
import type { ListWatchTiming } from '../agent/cluster/list-watch.ts';
import { narrowNode, narrowPod } from '../agent/cluster/narrow.ts';
import type { Cluster } from '../agent/model/cluster.ts';
import type { IpAddress } from '../agent/model/ip.ts';
import { persistentMap } from '../agent/model/persistent-map.ts';
import { until } from '../test/support/until.ts';
import { KINDS } from './api-server/kinds.ts';
import { type ApiServer, startApiServer } from './api-server/server.ts';
import { createCa, createClientCertificate, createServingCertificate, writeKubeconfig } from './pki.ts';

const TOKEN = 'node-token';
const USER = 'system:serviceaccount:tulle:agent';

async function setUp(t: ExecutionContext, options: { historyLimit?: number; bookmarkIntervalMs?: number } = {}) {
  const directory = await mkdtemp(join(tmpdir(), 'tulle-test-lab-'));
  const controller = new AbortController();
  const { signal } = controller;
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const ca = await createCa({ directory, name: 'ca' }, signal);
  const serving = await createServingCertificate(
    { directory, name: 'server', ca, names: ['kubernetes.default.svc'], ips: ['10.96.0.1' as IpAddress] },
    signal,
  );
  const tls = { cert: serving.cert, key: serving.key, clientCa: ca.cert };
  const server = await startApiServer(
    { host: '127.0.0.1', port: 0, tls, tokens: new Map([[TOKEN, USER]]), ...options },
    signal,
  );
  t.teardown(async () => {
    controller.abort();
    await server.close();
  });
  await writeFile(join(directory, 'ca.crt'), ca.cert);
  await writeFile(join(directory, 'token'), TOKEN);
  return { server, ca, directory, signal };
}

/** Credentials as a pod has them, with the address overridden: the certificate does not name 127.0.0.1. */
const account = (server: ApiServer, directory: string): CredentialsSource =>
  serviceAccount({ apiServer: server.url, directory, rereadMs: 0 });

function watchWith(
  t: ExecutionContext,
  credentials: CredentialsSource,
  timing: Partial<ListWatchTiming> = {},
  answerMs = 20_000,
) {
  const client = new ApiClient({ credentials, limits: { answerMs } });
  const controller = new AbortController();
  const watch = new ClusterWatch({
    client,
    nodeName: 'n1',
    log: pino({ level: 'silent' }),
    timing: { backoffMinMs: 2, backoffMaxMs: 30, ...timing },
  });
  const stop = async () => {
    controller.abort();
    await watch.stopped();
    client.close();
  };
  t.teardown(stop);
  watch.start(controller.signal);
  return { watch, stop };
}

const addNode = ({ store }: ApiServer, name: string, podCIDR?: string) =>
  store.create(KINDS.node, { metadata: { name }, spec: podCIDR === undefined ? {} : { podCIDR, podCIDRs: [podCIDR] } });
const addPod = ({ store }: ApiServer, name: string, nodeName = 'n1') =>
  store.create(KINDS.pod, { metadata: { name }, spec: { nodeName, containers: [] } }, 'default');

/** What the watch must come to show. */
function contentOf({ store }: ApiServer): Pick<Cluster, 'nodes' | 'pods'> {
  const nodes = store.list(KINDS.node).objects.flatMap(({ object }) => narrowNode(object).value ?? []);
  const pods = store.list(KINDS.pod).objects.flatMap(({ object }) => narrowPod(object).value ?? []);
  const own = pods.filter(({ nodeName }) => nodeName === 'n1');
  return {
    nodes: persistentMap(nodes.map((node) => [node.name, node] as const)),
    pods: persistentMap(own.map((pod) => [`${pod.namespace}/${pod.name}`, pod] as const)),
  };
}

const agrees = (server: ApiServer, { nodes, pods }: Cluster) => isDeepStrictEqual({ nodes, pods }, contentOf(server));
const isConnected = (watch: ClusterWatch) => watch.status().resources.every(({ connected }) => connected);

test('nodes and the own pods arrive, with a token and with a client certificate from a kubeconfig, and nothing is written', async (t) => {
  const { server, ca, directory, signal } = await setUp(t);
  for (let i = 0; i < 7; i++) addNode(server, `n${i}`, `10.244.${i}.0/24`);
  addPod(server, 'own');
  addPod(server, 'foreign', 'n2');
  const clientCert = await createClientCertificate({ directory, name: 'client', ca, user: 'tulle' }, signal);
  for (const [name, user] of Object.entries({ token: { token: TOKEN }, certificate: { clientCert } })) {
    const path = join(directory, name);
    await writeKubeconfig({ path, server: 'https://kubernetes.default.svc:6443', ca: ca.cert, user });
    const { watch, stop } = watchWith(t, kubeconfig({ path, apiServer: server.url }), { pageSize: 3 });
    await watch.synced;
    t.true(agrees(server, watch.snapshot()));
    t.deepEqual([watch.snapshot().nodes.size, watch.snapshot().pods.size], [7, 1]);
    await stop();
  }
  t.deepEqual(server.access.writeAttempts(USER) + server.access.writeAttempts('tulle'), 0);
});

test('an expired token is said, and its rotation is enough', async (t) => {
  const { server, directory } = await setUp(t);
  addNode(server, 'n1');
  const { watch } = watchWith(t, account(server, directory));
  await watch.synced;
  await until(() => isConnected(watch), 'connected');
  server.access.revokeToken(TOKEN);
  server.closeWatches();
  await until(() => /got 401 Unauthorized/.test(watch.status().resources[0]?.error ?? ''), 'the refusal');
  addNode(server, 'n2');
  server.access.setToken('next-token', USER);
  await writeFile(join(directory, 'token'), 'next-token');
  await until(() => agrees(server, watch.snapshot()), 'the new node');
  t.is(watch.status().resources[0]?.relists, 0);
});

test('an outage is survived without a list, unless history is gone; then the difference arrives', async (t) => {
  const { server, directory } = await setUp(t);
  addNode(server, 'n1', '10.244.1.0/24');
  addNode(server, 'n2');
  const { watch } = watchWith(t, account(server, directory));
  await watch.synced;
  const outage = async (during: () => void) => {
    server.setUnavailable(true);
    await until(() => !isConnected(watch), 'the outage shows');
    during();
    server.setUnavailable(false);
    await until(() => isConnected(watch) && agrees(server, watch.snapshot()), 'everything is known again');
  };
  const n1 = watch.snapshot().nodes.get('n1');
  await outage(() => void addNode(server, 'n3'));
  t.is(watch.status().resources[0]?.relists, 0);
  await outage(() => {
    server.store.delete(KINDS.node, { namespace: '', name: 'n2' });
    addNode(server, 'n4');
    server.compact();
  });
  t.is(watch.status().resources[0]?.relists, 1);
  t.is(watch.snapshot().nodes.get('n1'), n1);
});

test('bookmarks keep the version of a quiet resource young enough to resume', async (t) => {
  const { server, directory } = await setUp(t, { bookmarkIntervalMs: 20 });
  const { watch } = watchWith(t, account(server, directory));
  await watch.synced;
  await until(() => isConnected(watch), 'connected');
  for (let i = 0; i < 20; i++) addNode(server, `n${i}`);
  const versions = () => watch.status().resources.map(({ resourceVersion }) => Number(resourceVersion));
  await until(() => versions().every((version) => version === server.store.revision), 'bookmarks for both');
  server.compact();
  server.closeWatches();
  await until(() => server.requests.get('watch pods') === 2 && isConnected(watch), 'watching again');
  t.deepEqual(
    watch.status().resources.map(({ relists }) => relists),
    [0, 0],
  );
});

test('a server that stalls is left and found again', async (t) => {
  const { server, directory } = await setUp(t);
  const { watch } = watchWith(t, account(server, directory), { watchSeconds: [1, 1], graceMs: 300 }, 500);
  await watch.synced;
  server.stall();
  await until(
    () => /expected something within .* got nothing/.test(watch.status().resources[0]?.error ?? ''),
    'the silence is noticed',
  );
  addNode(server, 'n1');
  server.stall(false);
  await until(() => agrees(server, watch.snapshot()), 'the node arrives');
  t.pass();
});

type Step = (server: ApiServer) => Promise<void> | void;

const name = fc.constantFrom('a', 'b', 'c', 'd');
const ignoring =
  (act: Step): Step =>
  async (server) => {
    // Creating what exists, or deleting what does not, is no step.
    await Promise.resolve(act(server)).catch(() => {});
  };
/** The version that the watches would resume from is gone. */
const expire: Step = (server) => {
  addNode(server, `passing-${server.store.revision}`);
  server.closeWatches();
  server.compact();
};
const cut: Step = async (server) => {
  server.setUnavailable(true);
  await sleep(10);
  server.setUnavailable(false);
};
const step: fc.Arbitrary<readonly [string, Step]> = fc.oneof(
  {
    weight: 4,
    arbitrary: name.map((node) => [`create node ${node}`, ignoring(async (s) => void addNode(s, node))] as const),
  },
  {
    weight: 4,
    arbitrary: fc.tuple(name, fc.nat(3)).map(
      ([node, value]) =>
        [
          `annotate node ${node} ${value}`,
          ignoring(async ({ store }) => {
            const change = (object: { metadata: object }) => ({
              ...object,
              metadata: { ...object.metadata, annotations: { 'tulle.dev/underlay-ip': `192.0.2.${value + 1}` } },
            });
            store.update(KINDS.node, { namespace: '', name: node }, change as never);
          }),
        ] as const,
    ),
  },
  {
    weight: 2,
    arbitrary: fc
      .tuple(name, fc.nat(9))
      .map(
        ([node, value]) =>
          [
            `heartbeat of node ${node}`,
            ignoring(
              async ({ store }) =>
                void store.update(
                  KINDS.node,
                  { namespace: '', name: node },
                  (object) => ({ ...object, status: { heartbeat: value } }),
                  { part: 'status' },
                ),
            ),
          ] as const,
      ),
  },
  {
    weight: 3,
    arbitrary: name.map(
      (node) =>
        [
          `delete node ${node}`,
          ignoring(async ({ store }) => void store.delete(KINDS.node, { namespace: '', name: node })),
        ] as const,
    ),
  },
  {
    weight: 3,
    arbitrary: fc
      .tuple(name, fc.constantFrom('n1', 'n2'))
      .map(
        ([pod, node]) => [`create pod ${pod} on ${node}`, ignoring(async (s) => void addPod(s, pod, node))] as const,
      ),
  },
  {
    weight: 2,
    arbitrary: name.map(
      (pod) =>
        [
          `delete pod ${pod}`,
          ignoring(async ({ store }) => void store.delete(KINDS.pod, { namespace: 'default', name: pod })),
        ] as const,
    ),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom(
      ['close watches', (s: ApiServer) => s.closeWatches()] as const,
      ['expire', expire] as const,
      ['cut', cut] as const,
    ),
  },
  { weight: 1, arbitrary: fc.constant(['compact', (s: ApiServer) => s.compact()] as const) },
  {
    weight: 1,
    arbitrary: fc.boolean().map((down) => [down ? 'down' : 'up', (s: ApiServer) => s.setUnavailable(down)] as const),
  },
  { weight: 8, arbitrary: fc.nat(20).map((ms) => [`wait ${ms} ms`, async () => void (await sleep(ms))] as const) },
);

/** Every announced key has another value than before; every other key has the same, identical one. */
function unrealChanges(
  before: ReadonlyMap<string, unknown>,
  after: ReadonlyMap<string, unknown>,
  announced: ReadonlySet<string>,
): string[] {
  const keys = new Set([...before.keys(), ...after.keys(), ...announced]);
  return [...keys].filter((key) => {
    const same = before.get(key) === after.get(key);
    const equal = isDeepStrictEqual(before.get(key), after.get(key));
    return same !== equal || same === announced.has(key);
  });
}

test("after any history with disconnects, 410s, closes and bookmarks the content is the server's, and every change was real", async (t) => {
  const { server, directory } = await setUp(t, { bookmarkIntervalMs: 10 });
  let changes = 0;
  let relists = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
      const { watch, stop } = watchWith(t, account(server, directory), { pageSize: 2, healthyMs: 50 });
      let seen = watch.snapshot();
      const unreal: string[] = [];
      watch.onChange((changed) => {
        const now = watch.snapshot();
        unreal.push(
          ...unrealChanges(seen.nodes, now.nodes, changed.nodes),
          ...unrealChanges(seen.pods, now.pods, changed.pods),
        );
        seen = now;
        changes++;
      });
      await watch.synced;
      for (const [, act] of steps) await act(server);
      server.setUnavailable(false);
      await until(() => watch.snapshot().synced && agrees(server, watch.snapshot()), 'the contents agree');
      t.deepEqual(unreal, []);
      t.is(seen, watch.snapshot());
      relists += watch.status().resources.reduce((sum, resource) => sum + resource.relists, 0);
      await stop();
    }),
    { numRuns: 60, interruptAfterTimeLimit: 30_000 },
  );
  t.log(`${changes} changes, ${relists} relists`);
});
