/**
 * Traffic between two pods that can be counted to the packet. Run inside the pods:
 *
 *     traffic.ts receive PORT             says `ready`; then reads how many datagrams were sent, as JSON; prints a Receipt
 *     traffic.ts send PORT ADDRESS...     says `ready` when every connection stands; ends with its standard input;
 *                                         prints a Sending
 *
 * To each address go a datagram a millisecond, numbered from 0, and over one TCP connection a number every 20 ms that
 * comes back.
 */
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { createInterface, type Interface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';

/** By the receiver's address. */
type Counts = Readonly<Record<string, number>>;

export interface Sending {
  readonly datagrams: Counts;
  readonly connections: readonly {
    readonly address: string;
    readonly sent: number;
    readonly echoed: number;
    /** The longest time without an echo. */
    readonly gapMs: number;
    /** How it ended before its time. */
    readonly broken?: string;
  }[];
}

export interface Receipt {
  /** Different numbers that arrived, and all datagrams. */
  readonly distinct: Counts;
  readonly datagrams: Counts;
  /** What the kernel threw away because this process did not read in time: no fault of the network. */
  readonly socketDrops: number;
}

const DATAGRAM_INTERVAL_MS = 1;
const HEARTBEAT_INTERVAL_MS = 20;
/** After a pause of this process, so that catching up is no burst that no queue can hold. */
const MAX_BURST = 20;
/** Bound against hanging. */
const END_DEADLINE_MS = 10_000;

async function receive(port: number): Promise<void> {
  const seen = new Map<string, Set<number>>();
  const datagrams: Record<string, number> = {};
  const socket = createSocket({ type: 'udp6', recvBufferSize: 1 << 22 });
  socket.on('message', (message) => {
    const [address = '', number] = message.toString().split(' ');
    if (number === undefined) return;
    datagrams[address] = (datagrams[address] ?? 0) + 1;
    seen.set(address, (seen.get(address) ?? new Set()).add(Number(number)));
  });
  socket.bind(port, '::');
  const echo = createServer((connection) => connection.on('error', () => connection.destroy()).pipe(connection));
  echo.listen(port, '::');
  await Promise.all([once(socket, 'listening'), once(echo, 'listening')]);
  console.log('ready');

  const input = createInterface({ input: process.stdin });
  const [line] = await Promise.race([once(input, 'line'), abandoned(input)]);
  const sent = JSON.parse(String(line)) as Counts;
  const distinct = () => Object.fromEntries([...seen].map(([address, numbers]) => [address, numbers.size]));
  const isComplete = () => Object.entries(sent).every(([address, count]) => distinct()[address] === count);
  const end = performance.now() + END_DEADLINE_MS;
  while (!isComplete() && performance.now() < end) await delay(5);
  print({ distinct: distinct(), datagrams, socketDrops: readSocketDrops(port) } satisfies Receipt);
  input.close();
  process.stdin.destroy();
  socket.close();
  echo.close();
}

/** Ends this process when nobody is there any more to ask it. */
async function abandoned(input: Interface): Promise<never> {
  await once(input, 'close');
  throw new Error('cannot count: expected how many datagrams were sent, got the end of the input');
}

/** Last column of the socket's line (Documentation/networking/proc_net_udp: drops). */
function readSocketDrops(port: number): number {
  const local = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const lines = readFileSync('/proc/net/udp6', 'utf8').split('\n');
  const line = lines.find((text) => text.trim().split(/\s+/)[1]?.endsWith(local));
  return Number(line?.trim().split(/\s+/).at(-1));
}

async function send(port: number, addresses: readonly string[]): Promise<void> {
  const stop = new AbortController();
  const connections = addresses.map((address) => heartbeats(address, port, stop.signal));
  await Promise.all(connections.map(({ connected }) => connected));
  const streams = addresses.map((address) => stream(address, port, stop.signal));
  console.log('ready');

  process.stdin.resume();
  await once(process.stdin, 'end');
  stop.abort();
  const counts = await Promise.all(streams);
  const datagrams = Object.fromEntries(addresses.map((address, i) => [address, counts[i] as number]));
  print({ datagrams, connections: await Promise.all(connections.map(({ ended }) => ended)) } satisfies Sending);
}

/** Resolves with how many datagrams left. Any that the kernel refuses to send is never numbered again, so it is missed. */
async function stream(address: string, port: number, signal: AbortSignal): Promise<number> {
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
  socket.on('error', (error) => console.error(error.message));
  const startMs = performance.now();
  let count = 0;
  while (!signal.aborted) {
    const due = Math.floor((performance.now() - startMs) / DATAGRAM_INTERVAL_MS);
    for (let burst = 0; count < due && burst < MAX_BURST; burst++) socket.send(`${address} ${count++}`, port, address);
    await delay(DATAGRAM_INTERVAL_MS);
  }
  // The last of them are queued behind the lookup of the address; close() would drop them.
  await new Promise((resolve) => socket.send(address, port, address, resolve));
  socket.close();
  return count;
}

function heartbeats(address: string, port: number, signal: AbortSignal) {
  const socket = connect({ host: address, port, noDelay: true });
  const end = Promise.withResolvers<void>();
  let [sent, echoed, gapMs, lastMs] = [0, 0, 0, performance.now()];
  let broken: string | undefined;
  const breakOff = (reason: string) => {
    broken ??= reason;
    end.resolve();
  };
  socket.on('error', (error) => breakOff(error.message)).on('close', () => breakOff('closed'));
  createInterface({ input: socket }).on('line', () => {
    echoed++;
    gapMs = Math.max(gapMs, performance.now() - lastMs);
    lastMs = performance.now();
    if (signal.aborted && echoed === sent) end.resolve();
  });
  const timer = setInterval(() => {
    if (!signal.aborted) socket.write(`${sent++}\n`);
    else if (echoed === sent) end.resolve();
  }, HEARTBEAT_INTERVAL_MS);
  const ended = Promise.race([end.promise, deadlineAfter(signal)]).then(() => {
    clearInterval(timer);
    const result = { address, sent, echoed, gapMs: Math.round(gapMs), ...(broken !== undefined && { broken }) };
    socket.destroy();
    return result;
  });
  return { connected: once(socket, 'connect'), ended };
}

/** A while after the signal. */
async function deadlineAfter(signal: AbortSignal): Promise<void> {
  await once(signal, 'abort');
  await delay(END_DEADLINE_MS, undefined, { ref: false });
}

const print = (value: object): void => console.log(JSON.stringify(value));

if (import.meta.main) {
  const [mode, port, ...addresses] = process.argv.slice(2);
  if (mode === 'receive') await receive(Number(port));
  else await send(Number(port), addresses);
}
