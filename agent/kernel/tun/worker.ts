/**
 * A thread that carries packets one way. It waits in the call that gives it packets, and looks for messages of the main thread
 * when that one says so, for which it is interrupted: it has no event loop, and nobody waits for it. To wait in poll(2) for a
 * second descriptor, and then to ask for what is there, took a third of the time of a small packet.
 */
import { writeSync } from 'node:fs';
import { flushCompileCache } from 'node:module';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { bare, errnoOfLastCall, threadId } from '../libc.ts';
import { Counters, INBOUND, OUTBOUND } from './counters.ts';
import { ErrorQueue, type SocketError } from './error-queue.ts';
import { Inbound } from './inbound.ts';
import { arena } from './memory.ts';
import { ATTENTION, type FromThread, type ThreadData, type ToThread } from './messages.ts';
import { Outbound } from './outbound.ts';
import { readPathMtu } from './path-mtu.ts';
import { type Peer, type PeerEntry, Peers } from './peers.ts';
import { PerSecond } from './per-second.ts';
import { VNET } from './super-packet.ts';
import { tooBig } from './too-big.ts';
import { DATA_HEADER, SEAL_BYTES } from './wire.ts';

const POLLOUT = 4;
/** How long a full socket buffer is waited for before packets are dropped. */
const WRITABLE_MS = 100;

// The main thread keeps what it has compiled itself. To strip types takes this one 25 MB, which it does not give back.
flushCompileCache();

const data = workerData as ThreadData;
const peers = new Peers();
const tell = (message: FromThread): void => parentPort?.postMessage(message);
const pathMtus = new Int32Array(data.pathMtus);
const isEncrypted = data.encryption !== 'none';

/** struct pollfd of the socket, for waiting until it takes more. */
const poll = arena(8);
poll.bytes.writeInt32LE(data.socketFd, 0);
poll.bytes.writeInt16LE(POLLOUT, 4);

const attention = new Int32Array(data.attention);

interface Direction {
  /** Waits for packets and carries them. False when the thread cannot go on. */
  turn(): boolean;
  changed(entry: PeerEntry): void;
}

function outbound(): Direction {
  const way = new Outbound({
    ...data,
    peers,
    isEncrypted,
    pathMtus,
    onPending: takeErrors,
    counters: new Counters(OUTBOUND, data.counters),
    waitWritable: () => bare.poll(poll.address, 1, WRITABLE_MS) > 0,
    askPathMtu(peer) {
      const mtuBytes = readPathMtu(data.askingFd, peer.name, peer.nameLength);
      if (mtuBytes !== undefined) notePathMtu(peer.entry.slot, peer.name.bytes[0] === AF_INET, mtuBytes);
    },
    onTooLarge: (packet, mtuBytes, peer) => answerTooLarge(packet, mtuBytes, peer),
  });
  return { turn: () => way.turn(), changed: (entry) => way.useKey(entry) };
}

function inbound(): Direction {
  const way = new Inbound({
    ...data,
    peers,
    isEncrypted,
    onPending: takeErrors,
    counters: new Counters(INBOUND, data.counters),
    onControl(slot, bytes) {
      const isAllowed = controls.allows(slot);
      if (isAllowed) tell({ kind: 'control', slot, bytes: Uint8Array.from(bytes) });
      return isAllowed;
    },
    onUnknownSession(slot) {
      if (complaints.allows(slot)) tell({ kind: 'unknown-session', slot });
    },
  });
  return { turn: () => way.turn(), changed: (entry) => way.useKeys(entry) };
}

/** Of each peer, or of whoever has its address, in a second: far more than agents say, far less than fills memory. */
const controls = new PerSecond(100);
const complaints = new PerSecond(10);

const ECONNREFUSED = 111;
const EMSGSIZE = 90;

/** What a datagram has besides the packet that it carries. */
const overheadOf = (isIpv4: boolean): number =>
  (isIpv4 ? 20 : 40) + UDP_HEADER_BYTES + DATA_HEADER.bytes + (isEncrypted ? SEAL_BYTES : 0);

const errors = new ErrorQueue(data.socketFd);
const takeErrors = (): void => errors.drain(takeError);

function takeError(to: Buffer, { errno, info }: SocketError): void {
  const slot = peers.byEnd(to, 0)?.entry.slot;
  if (slot === undefined) return;
  if (errno === ECONNREFUSED && complaints.allows(slot)) tell({ kind: 'refused', slot });
  if (errno === EMSGSIZE) notePathMtu(slot, to[0] === AF_INET, info);
}

function notePathMtu(slot: number, isIpv4: boolean, mtuBytes: number): void {
  if (mtuBytes >= LEAST_MTU_BYTES[isIpv4 ? 'ipv4' : 'ipv6']) pathMtus[slot] = mtuBytes - overheadOf(isIpv4);
}

/** What the kernel would believe, too: nobody makes the way to a node useless by a message. */
const LEAST_MTU_BYTES = { ipv4: 552, ipv6: 1280 } as const;
const AF_INET = 2;
const UDP_HEADER_BYTES = 8;

/** As many answers as a kernel gives (sysctl icmp_msgs_per_sec is 1,000; icmp_ratelimit one a second to each). */
const answers = new PerSecond(200);

function answerTooLarge(packet: Buffer, mtuBytes: number, peer: Peer): void {
  if (!answers.allows()) return;
  const source = peer.gateway((packet[0] as number) >>> 4 === 4 ? 4 : 16);
  if (!source) return;
  const answer = Buffer.concat([Buffer.alloc(VNET.bytes), tooBig(packet, mtuBytes, source)]);
  try {
    writeSync(data.tunFd, answer);
  } catch {
    // The device is down, and so is the way back: the sender will ask again.
  }
}

/** False: the thread is to end. */
function readMessages(direction: Direction): boolean {
  // Before they are read: what comes afterwards is said again.
  Atomics.store(attention, ATTENTION.isAsked, 0);
  for (;;) {
    const received = receiveMessageOnPort(parentPort as NonNullable<typeof parentPort>);
    if (!received) return true;
    const message = received.message as ToThread;
    if (message.kind === 'stop') return false;
    if (message.kind === 'no-peer') peers.delete(message.slot);
    else {
      peers.set(message.entry);
      direction.changed(message.entry);
      tell({ kind: 'taken', number: message.number });
    }
  }
}

function carry(): void {
  const direction = data.role === 'outbound' ? outbound() : inbound();
  Atomics.store(attention, ATTENTION.thread, threadId());
  for (;;) {
    if (Atomics.load(attention, ATTENTION.isAsked) !== 0 && !readMessages(direction)) return;
    if (direction.turn()) continue;
    const what = data.role === 'outbound' ? 'the TUN device' : 'the socket';
    tell({ kind: 'broken', reason: `${what} cannot be read: it has gone, or errno ${errnoOfLastCall()}` });
    return;
  }
}

carry();
parentPort?.close();
