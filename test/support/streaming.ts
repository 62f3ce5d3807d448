/** Traffic between two pods of a lab while something disturbs it, counted to the packet. See traffic.ts. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { inPod } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { type TestLab, TIMEOUT_MS } from './lab.ts';
import type { Receipt, Sending } from './traffic.ts';

const PORT = '7000';
const TRAFFIC = fileURLToPath(new URL('traffic.ts', import.meta.url));
/** Fewer prove nothing. */
const MIN_DATAGRAMS = 500;

interface Program {
  readonly child: ChildProcess;
  readonly lines: Interface;
}

export interface Journey {
  readonly lab: TestLab;
  readonly from: PodStatus;
  readonly to: PodStatus;
}

/** What arrived of it, by the receiver's address. */
export interface Stream {
  readonly sent: Sending;
  readonly received: Receipt;
}

/** From one pod to another, over both families, while `disturb` does its work. Connections were opened before. */
export async function streamWhile(
  t: ExecutionContext,
  { lab, from, to }: Journey,
  disturb: () => Promise<void>,
): Promise<Stream> {
  const receiver = await start(t, lab, to, 'receive', PORT);
  const sender = await start(t, lab, from, 'send', PORT, ...to.addresses);
  await disturb();
  sender.child.stdin?.end();
  const sent = JSON.parse(await nextLine(sender)) as Sending;
  receiver.child.stdin?.write(`${JSON.stringify(sent.datagrams)}\n`);
  return { sent, received: JSON.parse(await nextLine(receiver)) as Receipt };
}

/** The same: every datagram has to arrive, and every heartbeat over a connection to come back. */
export async function whileStreaming(
  t: ExecutionContext,
  journey: Journey,
  disturb: () => Promise<void>,
): Promise<void> {
  const { sent, received } = await streamWhile(t, journey, disturb);
  const { datagrams, connections } = sent;
  const { distinct, socketDrops } = received;
  t.log(`sent ${JSON.stringify(datagrams)}, arrived ${JSON.stringify(distinct)}`);
  t.log(
    `connections: ${connections.map(({ echoed, gapMs }) => `${echoed} echoes, at most ${gapMs} ms apart`).join('; ')}`,
  );
  t.is(socketDrops, 0, 'the receiver read too slowly: this says nothing of the network');
  t.is(Object.keys(datagrams).length, journey.to.addresses.length);
  for (const [address, count] of Object.entries(datagrams)) {
    t.true(count > MIN_DATAGRAMS, `${count} datagrams to ${address} prove nothing`);
    t.is(count - (distinct[address] ?? 0), 0, `datagrams to ${address} that were lost`);
  }
  keptAlive(t, sent);
}

/** Whatever was lost on the way, every heartbeat came back in the end. */
export function keptAlive(t: ExecutionContext, { connections }: Sending): void {
  for (const { address, sent, echoed, broken } of connections) {
    t.is(broken, undefined, address);
    t.is(sent - echoed, 0, `heartbeats over the connection to ${address} without an echo`);
  }
}

/** In a pod, before all others in the queue for a processor: a receiver that sleeps loses what the network brought. */
async function start(t: ExecutionContext, lab: TestLab, pod: PodStatus, ...args: readonly string[]): Promise<Program> {
  const argv = ['nice', '-n', '-15', process.execPath, TRAFFIC, ...args];
  const [file, ...rest] = inPod(lab.node(pod.node), pod.netns, argv);
  const child = spawn(file, rest, { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const program = { child, lines: createInterface({ input: child.stdout as Readable }) };
  t.is(await nextLine(program), 'ready');
  return program;
}

async function nextLine({ lines }: Program): Promise<string> {
  return String((await once(lines, 'line', { signal: AbortSignal.timeout(TIMEOUT_MS) }))[0]);
}
