/**
 * The one wrapper around the `netlink` package, of which only the raw socket is used: it hands over whole datagrams with
 * their flags (the package's own request layer drops DUMP_INTR, error codes and extended acks, and has no time limit).
 *
 * The package ends the process when the kernel reports ENOBUFS to it, so every socket opened here asks not to be told
 * (NETLINK_NO_ENOBUFS) and gets a large receive buffer; what was lost is counted by the kernel and read by `drops`.
 */
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { RawNetlinkSocket } from 'netlink/dist/raw.js';
import { KernelError } from '../errors.ts';
import { fileIdentity, inNetns, netlinkPort, setsockoptInt } from '../libc.ts';
import {
  Answer,
  encode,
  NETLINK_EXT_ACK,
  NETLINK_GET_STRICT_CHK,
  NETLINK_PROTOCOL,
  type NetlinkClient,
  type NetlinkMessage,
  type NetlinkRequest,
  nameOf,
  type Outcome,
  SOL_NETLINK,
  splitDatagram,
  unwrap,
  wholeDump,
} from './message.ts';

const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const NETLINK_NO_ENOBUFS = 5;
/** A million queued notifications are a full list anyway; 20,000 need 32 MiB. */
const RECEIVE_BUFFER_BYTES = 32 << 20;

/** Requests whose answers are awaited at once: their ACKs must fit any receive buffer. */
const WINDOW = 64;
const DEFAULT_TIMEOUT_MS = 5_000;

interface Pending {
  readonly answer: Answer;
  readonly resolve: (outcome: Outcome) => void;
}

export interface NetlinkOptions {
  /** Open the socket in this network namespace; the caller keeps the fd open. */
  readonly netnsFd?: number;
  /** Limit for the answer to one request or dump. */
  readonly timeoutMs?: number;
}

/** A request socket. Nothing else than answers arrives on it: a dump on a socket with memberships breaks. */
export class NetlinkSocket implements NetlinkClient {
  readonly #protocol: number;
  readonly #netnsFd: number | undefined;
  readonly #timeoutMs: number;
  #socket: RawNetlinkSocket;
  readonly #pending = new Map<number, Pending>();
  #sequence = 1;
  #closed = false;
  /** Requests and dumps run one after the other; a batch is one turn. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(protocol: number, { netnsFd, timeoutMs = DEFAULT_TIMEOUT_MS }: NetlinkOptions = {}) {
    this.#protocol = protocol;
    this.#netnsFd = netnsFd;
    this.#timeoutMs = timeoutMs;
    this.#socket = this.#open();
  }

  request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return this.#inTurn(() => this.#ask(request).then(unwrap));
  }

  batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]> {
    return this.#inTurn(async () => {
      const errors: (KernelError | undefined)[] = [];
      for (let at = 0; at < requests.length; at += WINDOW) {
        const outcomes = await this.#exchange(requests.slice(at, at + WINDOW));
        for (const outcome of outcomes) errors.push(outcome instanceof KernelError ? outcome : undefined);
      }
      return errors;
    });
  }

  dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return this.#inTurn(() => wholeDump(request, (asDump) => this.#ask(asDump)));
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.close();
    this.#failAll('ECANCELED');
  }

  #open(): RawNetlinkSocket {
    const { socket } = openRawNetlink(this.#protocol, { netnsFd: this.#netnsFd });
    socket.on('message', (datagram) => this.#receive(datagram));
    socket.on('error', (error) => this.#reopen(error));
    socket.unref();
    return socket;
  }

  /** After an error the package reads nothing from a socket any more. */
  #reopen(cause: Error): void {
    this.#failAll('EIO', cause);
    if (this.#closed) return;
    this.#socket.close();
    this.#socket = this.#open();
  }

  #inTurn<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(action);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  async #ask(request: NetlinkRequest): Promise<Outcome> {
    const [outcome] = await this.#exchange([request]);
    return outcome as Outcome;
  }

  /** Sends all requests in one datagram and resolves when each has been answered or the time is over. */
  async #exchange(requests: readonly NetlinkRequest[]): Promise<readonly Outcome[]> {
    if (this.#closed) return requests.map((request) => new KernelError({ code: 'ECANCELED', ...nameOf(request) }));
    const expected = requests.map((request) => this.#expect(request));
    const datagram = Buffer.concat(expected.map(({ bytes }) => bytes));
    this.#socket.ref();
    const timer = setTimeout(() => this.#failAll('ETIMEDOUT'), this.#timeoutMs);
    try {
      this.#socket.send(datagram, {}, (error) => error && this.#failAll(error.code, error));
      return await Promise.all(expected.map(({ outcome }) => outcome));
    } finally {
      clearTimeout(timer);
      if (!this.#closed) this.#socket.unref();
    }
  }

  #expect(request: NetlinkRequest): { bytes: Buffer; outcome: Promise<Outcome> } {
    const sequence = this.#sequence;
    this.#sequence = (this.#sequence % 0xffffffff) + 1;
    const outcome = new Promise<Outcome>((resolve) => {
      this.#pending.set(sequence, { answer: new Answer(request), resolve });
    });
    return { bytes: encode(request, sequence, this.#socket.address().port), outcome };
  }

  #receive(datagram: Buffer): void {
    for (const { sequence, message } of splitDatagram(datagram)) {
      const pending = this.#pending.get(sequence);
      const outcome = pending?.answer.take(message);
      if (!pending || !outcome) continue;
      this.#pending.delete(sequence);
      pending.resolve(outcome);
    }
  }

  #failAll(code: string, cause?: unknown): void {
    const all = [...this.#pending.values()];
    this.#pending.clear();
    for (const { answer, resolve } of all) resolve(new KernelError({ code, ...nameOf(answer.request), cause }));
  }
}

/** A raw socket of the package with the options that keep the process alive, and its inode for the drop counter. */
export function openRawNetlink(
  protocol: number,
  {
    netnsFd,
    receiveBufferBytes = RECEIVE_BUFFER_BYTES,
  }: { netnsFd?: number | undefined; receiveBufferBytes?: number | undefined } = {},
): { socket: RawNetlinkSocket; inode: string } {
  const open = () => {
    const likelyFd = lowestFreeFd();
    const socket = new RawNetlinkSocket(protocol);
    const fd = fdOfPort(likelyFd, socket.address().port);
    setsockoptInt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
    setsockoptInt(fd, SOL_SOCKET, SO_RCVBUFFORCE, receiveBufferBytes);
    setsockoptInt(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    if (protocol === NETLINK_PROTOCOL.ROUTE) setsockoptInt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
    return { socket, inode: fileIdentity(fd).inode };
  };
  return netnsFd === undefined ? open() : inNetns(netnsFd, open);
}

/** The package does not tell its fd. The kernel hands out the lowest free one, so it is nearly always this. */
function lowestFreeFd(): number {
  const fd = openSync('/dev/null', 'r');
  closeSync(fd);
  return fd;
}

/** The fd of the netlink socket with this port; another thread may have taken the likely one meanwhile. */
function fdOfPort(likelyFd: number, port: number): number {
  if (netlinkPort(likelyFd) === port) return likelyFd;
  for (const name of readdirSync('/proc/self/fd')) {
    if (isSocket(name) && netlinkPort(Number(name)) === port) return Number(name);
  }
  throw new KernelError({ code: 'EBADF', operation: 'find', object: `netlink socket with port ${port}` });
}

function isSocket(fd: string): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:');
  } catch {
    // The directory's own fd is closed by the time it is looked at.
    return false;
  }
}

/** How many messages the kernel dropped for the socket with this inode (column Drops of /proc/net/netlink). */
export function drops(inode: string): number {
  for (const line of readFileSync('/proc/thread-self/net/netlink', 'latin1').split('\n')) {
    const columns = line.trim().split(/\s+/);
    if (columns[9] === inode) return Number(columns[8]);
  }
  return 0;
}
