/**
 * Calls sockets on command, one JSON line in, one out, in whatever namespace and cgroup it runs; calls of a list are made side
 * by side and answered by a list. `socket-caller.ts serve ADDRESS...` answers at port 8080 of each address, over TCP and UDP,
 * with that address (`tell` adds the client's); without arguments it calls.
 */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { flushCompileCache } from 'node:module';
import { connect, createServer, type Socket as Stream } from 'node:net';
import { createInterface } from 'node:readline';

export interface Call {
  /**
   * `tcp` connects, `tcp-open` asks over one connection that stays, `udp` sends without being connected, `udp-connected` connects first. `load` makes connections at the
   * rate until the next line comes.
   */
  readonly how: 'tcp' | 'tcp-open' | 'udp' | 'udp-connected' | 'load';
  readonly ip: string;
  readonly port: number;
  /** A socket of an earlier call with this name is used again; one of datagrams that is connected elsewhere is connected anew. */
  readonly socket?: string;
  readonly perSecond?: number;
  /** How long to wait for an answer that may not come. */
  readonly deadlineMs?: number;
}

export interface Answer {
  /** Which server answered: its address. */
  readonly from?: string;
  /** Whom the socket takes for its peer: getpeername, or for `udp` where the datagram came from. */
  readonly peer?: string;
  /** Errno of what failed. */
  readonly error?: string;
  /** Of a load: answers by server (the first word of what it says), and what failed by errno. */
  readonly answers?: Readonly<Record<string, number>>;
  readonly errors?: Readonly<Record<string, number>>;
}

const DEADLINE_MS = 5_000;
/** Calls of one list that are made at a time. */
const SIDE_BY_SIDE = 24;
/** Connections of a load. */
const UNDER_WAY_MAX = 64;
const SERVER_PORT = 8080;

const show = (address: string | undefined, port: number | undefined): string => `${address} ${port}`;
const errorOf = (error: unknown): Answer => ({ error: (error as NodeJS.ErrnoException).code ?? String(error) });

async function callTcp({ ip, port, deadlineMs = DEADLINE_MS }: Call): Promise<Answer> {
  const socket = connect({ host: ip, port, signal: AbortSignal.timeout(deadlineMs) } as never);
  try {
    await once(socket, 'connect');
    const peer = show(socket.remoteAddress, socket.remotePort);
    // Servers of the lab's pods wait for the end of what says nothing.
    socket.end();
    let from = '';
    for await (const chunk of socket) from += String(chunk);
    return { from: from.trimEnd(), peer };
  } catch (error) {
    return errorOf(error);
  } finally {
    socket.destroy();
  }
}

const streams = new Map<string, Stream>();

async function callOpenTcp({ ip, port, socket: name = '', deadlineMs = DEADLINE_MS }: Call): Promise<Answer> {
  const signal = AbortSignal.timeout(deadlineMs);
  try {
    const stream = streams.get(name) ?? connect({ host: ip, port });
    if (!streams.has(name)) {
      // What happens to it between two calls is told by the next one.
      stream.on('error', () => {});
      await once(stream, 'connect', { signal });
      streams.set(name, stream);
    }
    stream.write('?');
    const [answer] = (await once(stream, 'data', { signal })) as [Buffer];
    return { from: String(answer).trimEnd(), peer: show(stream.remoteAddress, stream.remotePort) };
  } catch (error) {
    return errorOf(error);
  }
}

const sockets = new Map<string, Socket>();
/** Where connected ones were connected to. */
const targets = new WeakMap<Socket, string>();

async function openDatagrams({ ip, port, how, socket: name }: Call): Promise<Socket> {
  const known = name === undefined ? undefined : sockets.get(name);
  const target = show(ip, port);
  if (known && (how === 'udp' || targets.get(known) === target)) return known;
  if (known) known.disconnect();
  if (known) return connectDatagrams(known, ip, port);
  const socket = createSocket(ip.includes(':') ? 'udp6' : 'udp4');
  if (name !== undefined) sockets.set(name, socket);
  // What happens to it between two calls is told by the next one.
  socket.on('error', () => {});
  return how === 'udp' ? socket : connectDatagrams(socket, ip, port);
}

async function connectDatagrams(socket: Socket, ip: string, port: number): Promise<Socket> {
  targets.set(socket, show(ip, port));
  try {
    socket.connect(port, ip);
    await once(socket, 'connect', { signal: AbortSignal.timeout(DEADLINE_MS) });
    return socket;
  } catch (error) {
    socket.close();
    throw error;
  }
}

async function callUdp(call: Call): Promise<Answer> {
  const { ip, port, how, socket: name, deadlineMs = DEADLINE_MS } = call;
  let socket: Socket | undefined;
  try {
    socket = await openDatagrams(call);
    const answered = once(socket, 'message', { signal: AbortSignal.timeout(deadlineMs) });
    answered.catch(() => {});
    const sent = Promise.withResolvers<void>();
    const onSent = (error: Error | null): void => (error ? sent.reject(error) : sent.resolve());
    if (how === 'udp') socket.send('?', port, ip, onSent);
    else socket.send('?', onSent);
    await sent.promise;
    const [message, { address, port: fromPort }] = (await answered) as [Buffer, { address: string; port: number }];
    // What recvmsg said and what getpeername says must be the same.
    const peer = how === 'udp' ? undefined : socket.remoteAddress();
    const source = show(address, fromPort);
    const asked = peer && show(peer.address, peer.port);
    return {
      from: String(message).trimEnd(),
      peer: asked === undefined || asked === source ? source : `${source}, getpeername ${asked}`,
    };
  } catch (error) {
    return errorOf(error);
  } finally {
    if (name === undefined) socket?.close();
  }
}

let stopLoad: (() => void) | undefined;

async function load(call: Call): Promise<Answer> {
  const answers: Record<string, number> = {};
  const errors: Record<string, number> = {};
  const add = (to: Record<string, number>, key: string): void => {
    to[key] = (to[key] ?? 0) + 1;
  };
  const open = new Set<Promise<void>>();
  const stopped = Promise.withResolvers<void>();
  const startMs = performance.now();
  let count = 0;
  const timer = setInterval(() => {
    const due = Math.floor(((performance.now() - startMs) * (call.perSecond ?? 500)) / 1000);
    for (; count < due; count++) {
      // A machine that cannot keep up makes fewer, rather than wait for its own crowd.
      if (open.size >= UNDER_WAY_MAX) continue;
      const done = callTcp(call).then(({ from, error }) => {
        add(error === undefined ? answers : errors, error ?? from?.split(' ')[0] ?? '');
        open.delete(done);
      });
      open.add(done);
    }
  }, 2);
  stopLoad = stopped.resolve;
  await stopped.promise;
  clearInterval(timer);
  await Promise.all(open);
  return { answers, errors };
}

const isList = (asked: Call | readonly Call[]): asked is readonly Call[] => Array.isArray(asked);

function callOnce(call: Call): Promise<Answer> {
  if (call.how === 'tcp-open') return callOpenTcp(call);
  return call.how === 'tcp' ? callTcp(call) : callUdp(call);
}

async function callSideBySide(calls: readonly Call[]): Promise<readonly Answer[]> {
  const answers: Answer[] = [];
  const left = calls.entries();
  const worker = async (): Promise<void> => {
    for (const [i, call] of left) answers[i] = await callOnce(call);
  };
  await Promise.all(Array.from({ length: SIDE_BY_SIDE }, worker));
  return answers;
}

async function callAll(): Promise<void> {
  console.log('ready');
  for await (const line of createInterface({ input: process.stdin })) {
    if (stopLoad) {
      stopLoad();
      stopLoad = undefined;
      continue;
    }
    const asked = JSON.parse(line) as Call | readonly Call[];
    const answer = isList(asked) ? callSideBySide(asked) : asked.how === 'load' ? load(asked) : callOnce(asked);
    const printed = answer.then((value) => console.log(JSON.stringify(value)));
    if (isList(asked) || asked.how !== 'load') await printed;
  }
  for (const socket of sockets.values()) socket.close();
  for (const stream of streams.values()) stream.destroy();
}

/** What is said to a client: the server's address, or with `tell` the client's address behind it. */
type Words = (server: string, client: string | undefined) => string;

async function serve(addresses: readonly string[], words: Words): Promise<void> {
  for (const address of addresses) {
    const server = createServer((socket) =>
      socket.on('error', () => socket.destroy()).end(words(address, socket.remoteAddress)),
    );
    server.listen({ host: address, port: SERVER_PORT, backlog: 4096 });
    const datagrams = createSocket(address.includes(':') ? 'udp6' : 'udp4');
    datagrams.on('message', (_, { address: to, port }) => datagrams.send(words(address, to), port, to));
    datagrams.bind(SERVER_PORT, address);
    await Promise.all([once(server, 'listening'), once(datagrams, 'listening')]);
  }
  console.log('ready');
}

if (import.meta.main) {
  // For the next one: this process ends by a signal that leaves no time for it.
  flushCompileCache();
  const [mode, ...addresses] = process.argv.slice(2);
  if (mode === 'serve') await serve(addresses, (server) => server);
  else if (mode === 'tell') await serve(addresses, (server, client) => `${server} ${client}`);
  else await callAll();
}
