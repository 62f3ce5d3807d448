import { once } from 'node:events';
import { connect, createServer, type Server } from 'node:net';
import { text } from 'node:stream/consumers';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import { ip } from '../../test/support/cluster-values.ts';
import { until } from '../../test/support/until.ts';
import { type PersistentMap, persistentMap } from '../model/persistent-map.ts';
import type { HealthCheck } from '../model/services.ts';
import { HealthChecks } from './health-checks.ts';

const IPS = [ip('127.0.0.1'), ip('::1')];
const hostOf = (address: string) => (address.includes(':') ? `[${address}]` : address);

/** A port that nobody has at either address. */
async function freePort(): Promise<number> {
  const server = await occupy(0);
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Both families. */
async function occupy(port: number): Promise<Server> {
  const server = createServer().listen(port, '::');
  await once(server, 'listening');
  return server;
}

const check = (port: number, [ipv4, ipv6]: readonly [number, number], ips = IPS, name = 'web'): HealthCheck => ({
  port,
  namespace: 'default',
  name,
  ips,
  localEndpoints: { ipv4, ipv6 },
});

function stand(t: ExecutionContext, nodePort = 0) {
  const lines: string[] = [];
  const state = { obstacles: [] as readonly string[], asked: [] as (string | undefined)[], isLeaving: false };
  const health = new HealthChecks({
    nodePort,
    obstacles: (service) => {
      state.asked.push(service);
      return state.obstacles;
    },
    isLeaving: () => state.isLeaving,
    log: pino({}, { write: (line: string) => void lines.push(line) }),
  });
  t.teardown(() => health.close());
  let healthChecks: PersistentMap<HealthCheck> = persistentMap();
  const nodePortIps = IPS;
  /** Changes some of them; undefined: gone. */
  const change = (changes: Readonly<Record<string, HealthCheck | undefined>>) => {
    healthChecks = healthChecks.with(Object.entries(changes).map(([name, each]) => [`default/${name}`, each] as const));
    return health.follow({ healthChecks, nodePortIps });
  };
  return { health, lines, state, change };
}

async function get(address: string, port: number, path = '/healthz', method = 'GET') {
  const answer = await fetch(`http://${hostOf(address)}:${port}${path}`, { method });
  return {
    status: answer.status,
    weight: answer.headers.get('x-load-balancing-endpoint-weight'),
    body: (await answer.text()).trim(),
  };
}

const isRefused = (address: string, port: number): Promise<boolean> =>
  get(address, port).then(
    () => false,
    (error: Error) => (error.cause as { code?: string }).code === 'ECONNREFUSED',
  );

test('a Service is asked for by any path and method, and answers for the family that it is asked over', async (t) => {
  const { change, state } = stand(t);
  const port = await freePort();
  await change({ web: check(port, [2, 0]) });
  const body = (localEndpoints: number, serviceProxyHealthy = true) =>
    JSON.stringify({ service: { namespace: 'default', name: 'web' }, localEndpoints, serviceProxyHealthy });
  for (const [path, method] of [
    ['/healthz', 'GET'],
    ['/', 'POST'],
    ['/__proto__?x', 'OPTIONS'],
  ] as const)
    t.deepEqual(await get('127.0.0.1', port, path, method), { status: 200, weight: '2', body: body(2) });
  t.deepEqual(await get('127.0.0.1', port, '/', 'HEAD'), { status: 200, weight: '2', body: '' });
  t.deepEqual(await get('::1', port), { status: 503, weight: '0', body: body(0) });
  await change({ web: check(port, [0, 1]) });
  t.is((await get('127.0.0.1', port)).status, 503);
  t.is((await get('::1', port)).status, 200);
  state.obstacles = ['a rule cannot be written'];
  t.deepEqual(await get('::1', port), { status: 503, weight: '1', body: body(1, false) });
  t.deepEqual([...new Set(state.asked)], ['default/web']);
});

test('ports are followed: moved, given on, and gone', async (t) => {
  const { change, health } = stand(t);
  const [a, b] = [await freePort(), await freePort()];
  await change({ web: check(a, [1, 1]) });
  await change({ web: check(b, [1, 1]) });
  t.true(await isRefused('127.0.0.1', a));
  t.is((await get('::1', b)).status, 200);
  // Each takes the other's, at once.
  await change({ api: check(a, [1, 0], IPS, 'api') });
  await change({ api: check(b, [1, 0], IPS, 'api'), web: check(a, [1, 1]) });
  t.regex((await get('127.0.0.1', b)).body, /"name":"api"/);
  t.regex((await get('::1', a)).body, /"name":"web"/);
  await change({ api: undefined, web: check(a, [1, 1], IPS.slice(0, 1)) });
  t.true(await isRefused('127.0.0.1', b));
  t.true(await isRefused('::1', a));
  t.is((await get('127.0.0.1', a)).status, 200);
  t.deepEqual(health.problems(), []);
  health.close();
  t.true(await isRefused('127.0.0.1', a));
});

test('a port that is taken is a problem until it is free, whoever had it', async (t) => {
  const { change, health, lines } = stand(t);
  const port = await freePort();
  const other = await occupy(port);
  t.teardown(() => other.close());
  await change({ web: check(port, [1, 1]) });
  for (const [i, each] of IPS.entries()) {
    const start = `cannot serve the health check of Service default/web on ${hostOf(each)}:${port}: expected to listen`;
    t.true(health.problems()[i]?.startsWith(start));
  }
  t.regex(
    health.problems()[0] ?? '',
    /got EADDRINUSE; stop what has port \d+ .* or make the Service again with another/,
  );
  const told = lines.length;
  await change({ api: check(port, [1, 1], IPS, 'api') });
  t.is(lines.length, told + 2, 'once a place');
  await new Promise((resolve) => other.close(resolve));
  await until(() => health.problems().length === 2, 'one of the two to take the port by itself');
  t.regex((await get('127.0.0.1', port)).body, /"name":"web"/);
  await change({ web: undefined });
  t.deepEqual(health.problems(), []);
  t.regex((await get('::1', port)).body, /"name":"api"/);
});

test('the node: healthy as long as nothing is in the way, and not for new clients when it is leaving', async (t) => {
  const port = await freePort();
  const { change, state } = stand(t, port);
  await change({});
  for (const address of IPS) t.is((await get(address, port)).status, 200, address);
  t.is((await get('::1', port, '/else')).status, 404);
  state.isLeaving = true;
  t.like(await get('::1', port), { status: 503 });
  t.regex((await get('::1', port)).body, /"serviceProxyHealthy":true,"nodeEligible":false/);
  t.is((await get('::1', port, '/livez')).status, 200);
  state.obstacles = ['secret'];
  for (const path of ['/healthz', '/livez']) t.is((await get('::1', port, path)).status, 503);
  t.notRegex((await get('::1', port)).body, /secret/);
  t.deepEqual([...new Set(state.asked)], [undefined]);
});

test('connections are bounded over all ports together, and those who say nothing go first', async (t) => {
  const { change } = stand(t);
  const [a, b] = [await freePort(), await freePort()];
  await change({ web: check(a, [1, 1]), api: check(b, [1, 1], IPS, 'api') });
  const silent = await Promise.all(
    Array.from({ length: 200 }, async (_, i) => {
      const socket = connect(i % 2 ? a : b, '127.0.0.1');
      t.teardown(() => socket.destroy());
      socket.on('error', () => undefined);
      await once(socket, 'connect');
      return socket;
    }),
  );
  const ends = silent.map((socket) => text(socket).catch(() => ''));
  t.is((await get('127.0.0.1', a)).status, 200);
  const ended = () => silent.filter((socket) => socket.destroyed).length;
  // Sooner than silence would end any.
  await until(() => ended() >= 72, 'the end of the oldest', 4_000);
  t.is(ended(), 73, 'one of them for the one that asked');
  for (const socket of silent) socket.destroy();
  await Promise.all(ends);
});
