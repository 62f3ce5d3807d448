import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import { ip } from '../../test/support/cluster-values.ts';
import { until } from '../../test/support/until.ts';
import { Endpoint, type Pages, plainPage } from './endpoint.ts';

const PAGES: Pages = {
  '/ok': () => plainPage(200, ['ok']),
  '/broken': () => {
    throw new Error('no figures');
  },
};

const WORDS = { purpose: 'metrics and health', alternative: 'set metrics.address to another one' };

/** A port that was free a moment ago. */
async function freePort(host: string): Promise<number> {
  const server = createServer().listen(0, host);
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

async function start(t: ExecutionContext, host = '127.0.0.1') {
  const lines: string[] = [];
  const log = pino({}, { write: (line: string) => void lines.push(line) });
  const port = await freePort(host);
  const endpoint = new Endpoint({ address: { ip: ip(host), port }, pages: PAGES, ...WORDS, log });
  t.teardown(() => endpoint.close());
  await endpoint.listen();
  const open = async (): Promise<Socket> => {
    const socket = connect(port, host);
    t.teardown(() => socket.destroy());
    // What an end of the other side does to it shows in what it received.
    socket.on('error', () => undefined);
    await once(socket, 'connect');
    return socket;
  };
  const ask = async (request: string): Promise<string> => {
    const socket = await open();
    socket.write(request);
    return text(socket);
  };
  const get = async (method: string, path: string) => {
    const answer = await ask(`${method} ${path} HTTP/1.1\r\nhost: x\r\n\r\n`);
    const [head = '', body = ''] = answer.split('\r\n\r\n');
    return { status: Number(head.split(' ')[1]), head, body };
  };
  return { endpoint, lines, port, open, ask, get };
}

for (const host of ['127.0.0.1', '::1']) {
  test(`${host}: a page, and an answer to whatever else is asked`, async (t) => {
    const { get, ask } = await start(t, host);
    t.like(await get('GET', '/ok?x=1'), { status: 200, body: 'ok\n' });
    t.like(await get('GET', '/none'), { status: 404, body: 'expected one of /ok, /broken\n' });
    t.is((await get('GET', '/__proto__')).status, 404);
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
      const { status, head } = await get(method, '/ok');
      t.is(status, 405, method);
      t.regex(head, /allow: GET, HEAD/);
    }
    t.like(await get('HEAD', '/ok'), { status: 200, body: '' });
    t.like(await get('GET', '/broken'), { status: 500, body: 'cannot make /broken: no figures\n' });
    t.regex(await ask('no HTTP at all\r\n\r\n'), /^HTTP\/1.1 400 /);
    t.regex(await ask(`GET /ok HTTP/1.1\r\nx: ${'x'.repeat(20_000)}\r\n\r\n`), /^HTTP\/1.1 431 /);
    t.is((await get('GET', '/ok')).status, 200);
  });
}

test('[::] is all addresses of both families', async (t) => {
  const { port } = await start(t, '::');
  for (const host of ['127.0.0.1', '[::1]']) t.is((await fetch(`http://${host}:${port}/ok`)).status, 200, host);
});

test('connections that say nothing keep nobody out, and the oldest go first', async (t) => {
  const { open, get } = await start(t);
  const silent: Socket[] = [];
  for (let i = 0; i < 100; i++) {
    const socket = await open();
    socket.write('GET /ok HT');
    silent.push(socket);
  }
  t.is((await get('GET', '/ok')).status, 200);
  await until(() => silent.slice(0, 69).every((socket) => socket.destroyed), 'the end of the oldest');
  t.true(silent.slice(70).every((socket) => !socket.destroyed));
});

test('a request that comes byte by byte ends by its deadline', async (t) => {
  const { open } = await start(t);
  const socket = await open();
  socket.write('GET /ok HTTP/1.1\r\nx: ');
  const timer = setInterval(() => socket.write('x'), 200);
  t.teardown(() => clearInterval(timer));
  const answer = await text(socket).catch(() => 'reset');
  t.regex(answer, /^HTTP\/1.1 408 |^reset$/);
});

test('a port that is taken is told once, with the remedy, and taken over when it is free', async (t) => {
  const { endpoint, port } = await start(t);
  const lines: string[] = [];
  const log = pino({}, { write: (line: string) => void lines.push(line) });
  const other = new Endpoint({ address: { ip: ip('127.0.0.1'), port }, pages: PAGES, ...WORDS, log });
  t.teardown(() => other.close());
  await other.listen();
  await other.listen();
  t.is(lines.length, 1);
  t.regex(
    lines[0] ?? '',
    /cannot serve metrics and health on 127\.0\.0\.1:\d+: expected to listen there, got EADDRINUSE; stop what has port \d+ .* or set metrics\.address/,
  );
  endpoint.close();
  await until(() => {
    void other.listen();
    return lines.length > 1;
  }, 'the port to be free');
  t.regex(lines[1] ?? '', /"purpose":"metrics and health"/);
});

test('an address that this host has not is told', async (t) => {
  const lines: string[] = [];
  const log = pino({}, { write: (line: string) => void lines.push(line) });
  const endpoint = new Endpoint({ address: { ip: ip('192.0.2.1'), port: 9440 }, pages: PAGES, ...WORDS, log });
  await endpoint.listen();
  t.regex(lines.join(), /got EADDRNOTAVAIL; give this host the address 192\.0\.2\.1 or set metrics\.address/);
});
