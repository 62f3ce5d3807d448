/**
 * A thread that carries packets one way. It waits in poll(2) for its descriptor and for its eventfd, and looks for messages of
 * the main thread when that one says so: it has no event loop, and nobody waits for it.
 */
import { readSync } from 'node:fs';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { bare, errnoOfLastCall } from '../libc.ts';
import { Counters, INBOUND, OUTBOUND } from './counters.ts';
import { Inbound } from './inbound.ts';
import { arena } from './memory.ts';
import type { FromThread, ThreadData, ToThread } from './messages.ts';
import { Outbound } from './outbound.ts';
import { type PeerEntry, Peers } from './peers.ts';

const POLLIN = 1;
const POLLOUT = 4;
const POLLERR = 8;
const POLLHUP = 16;
const POLLNVAL = 32;
const EINTR = 4;
/** How long a full socket buffer is waited for before packets are dropped. */
const WRITABLE_MS = 100;

const data = workerData as ThreadData;
const peers = new Peers();
const tell = (message: FromThread): void => parentPort?.postMessage(message);
const pathMtus = new Int32Array(data.pathMtus);
const isEncrypted = data.encryption !== 'none';

/** struct pollfd: the descriptor that packets come from, the eventfd, the socket for waiting until it takes more. */
const poll = arena(24);
const fds = new Int32Array(poll.bytes.buffer);
const events = new Int16Array(poll.bytes.buffer);
const packetsFd = data.role === 'outbound' ? data.tunFd : data.socketFd;
for (const [i, [fd, wanted]] of [
  [packetsFd, POLLIN],
  [data.wakeFd, POLLIN],
  [data.socketFd, POLLOUT],
].entries()) {
  fds[2 * i] = fd as number;
  events[4 * i + 2] = wanted as number;
}
const returned = (i: number): number => events[4 * i + 3] as number;

interface Direction {
  /** False when the thread cannot go on. */
  turn(): boolean;
  changed(entry: PeerEntry): void;
}

function outbound(): Direction {
  const way = new Outbound({
    ...data,
    peers,
    isEncrypted,
    pathMtus,
    counters: new Counters(OUTBOUND, data.counters),
    waitWritable: () => bare.poll(poll.address + 16, 1, WRITABLE_MS) > 0,
    onTooLarge: () => undefined,
  });
  return { turn: () => way.turn(), changed: (entry) => way.useKey(entry) };
}

function inbound(): Direction {
  const way = new Inbound({
    ...data,
    peers,
    isEncrypted,
    counters: new Counters(INBOUND, data.counters),
    onControl: (slot, bytes) => tell({ kind: 'control', slot, bytes: Uint8Array.from(bytes) }),
    onUnknownSession: (slot) => tell({ kind: 'unknown-session', slot }),
  });
  return {
    turn() {
      way.turn();
      return true;
    },
    changed: (entry) => way.useKeys(entry),
  };
}

/** False: the thread is to end. */
function readMessages(direction: Direction): boolean {
  readSync(data.wakeFd, Buffer.alloc(8));
  for (;;) {
    const received = receiveMessageOnPort(parentPort as NonNullable<typeof parentPort>);
    if (!received) return true;
    const message = received.message as ToThread;
    if (message.kind === 'stop') return false;
    if (message.kind === 'no-peer') peers.delete(message.slot);
    else {
      peers.set(message.entry);
      direction.changed(message.entry);
    }
  }
}

function carry(): void {
  const direction = data.role === 'outbound' ? outbound() : inbound();
  for (;;) {
    if (bare.poll(poll.address, 2, -1) < 0) {
      const errno = errnoOfLastCall();
      if (errno === EINTR) continue;
      tell({ kind: 'broken', reason: `poll failed with errno ${errno}` });
      return;
    }
    if (returned(1) !== 0 && !readMessages(direction)) return;
    const what = returned(0);
    if (what === 0) continue;
    if (data.role === 'outbound' && (what & (POLLERR | POLLHUP | POLLNVAL)) !== 0) {
      tell({ kind: 'broken', reason: 'the TUN device has gone' });
      return;
    }
    if (!direction.turn()) {
      tell({ kind: 'broken', reason: 'the TUN device cannot be read' });
      return;
    }
  }
}

carry();
parentPort?.close();
