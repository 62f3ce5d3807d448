/**
 * The one wrapper around the `netlink` package, of which only the raw socket is used: it hands over whole datagrams with
 * their flags (the package's own request layer drops DUMP_INTR, error codes and extended acks, and has no time limit).
 *
 * The package ends the process when the kernel reports ENOBUFS to it, so every socket opened here asks not to be told
 * (NETLINK_NO_ENOBUFS) and gets a large receive buffer; what was lost is counted by the kernel and read by `drops`.
 */
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { getSystemErrorName } from 'node:util';
import { RawNetlinkSocket } from 'netlink/dist/raw.js';
import { KernelError } from '../errors.ts';
import { fileIdentity, inNetns, netlinkPort, setsockoptInt } from '../libc.ts';
import { parseAttributes, textOf } from './attributes.ts';

/** nlmsg_flags (linux/netlink.h). */
export const NLM = {
  REQUEST: 0x1,
  MULTI: 0x2,
  ACK: 0x4,
  DUMP_INTR: 0x10,
  REPLACE: 0x100,
  EXCL: 0x200,
  CREATE: 0x400,
  DUMP: 0x300,
} as const;

/** Netlink families (linux/netlink.h). */
export const NETLINK_PROTOCOL = { ROUTE: 0, SOCK_DIAG: 4, NETFILTER: 12 } as const;

const NLMSG_NOOP = 1;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const HEADER_BYTES = 16;
/** In an error message: the request was not echoed, only its header (NLM_F_CAPPED); attributes follow (NLM_F_ACK_TLVS). */
const NLM_F_CAPPED = 0x100;
const NLM_F_ACK_TLVS = 0x200;
const NLMSGERR_ATTR_MSG = 1;

const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const SOL_NETLINK = 270;
const NETLINK_NO_ENOBUFS = 5;
const NETLINK_EXT_ACK = 11;
const NETLINK_GET_STRICT_CHK = 12;
/** A million queued notifications are a full list anyway; 20,000 need 32 MiB. */
const RECEIVE_BUFFER_BYTES = 32 << 20;

/** Requests whose answers are awaited at once: their ACKs must fit any receive buffer. */
const WINDOW = 64;
const DEFAULT_TIMEOUT_MS = 5_000;
const DUMP_ATTEMPTS = 10;

export interface NetlinkRequest {
  /** nlmsg_type. */
  readonly type: number;
  /** nlmsg_flags beyond REQUEST and ACK. */
  readonly flags?: number;
  /** Family header and attributes. */
  readonly payload: Uint8Array;
  /** For errors: the verb and what it was done to. */
  readonly operation: string;
  readonly object: string;
}

export interface NetlinkMessage {
  readonly type: number;
  readonly flags: number;
  /** nlmsg_pid: the port of the socket whose request caused a notification. */
  readonly port: number;
  /** Family header and attributes. */
  readonly payload: Buffer;
}

/** What drivers need of netlink; the fake kernel of the tests implements it too. */
export interface NetlinkClient {
  /** One acknowledged request; resolves with the messages that came before the ACK. Rejects with KernelError. */
  request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]>;
  /** Many acknowledged requests in few datagrams, in order; a failure does not stop the others. */
  batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]>;
  /** A dump, asked for again while the kernel says that it changed meanwhile (DUMP_INTR). */
  dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]>;
  close(): void;
}

interface Pending {
  readonly request: NetlinkRequest;
  readonly messages: NetlinkMessage[];
  readonly resolve: (messages: readonly NetlinkMessage[]) => void;
  readonly reject: (error: KernelError) => void;
  interrupted: boolean;
}

export interface NetlinkOptions {
  /** Open the socket in this network namespace; the caller keeps the fd. */
  readonly netnsFd?: number;
  /** Limit for the answer to one request or dump. */
  readonly timeoutMs?: number;
}

/** A request socket. Nothing else than answers arrives on it: a dump on a socket with memberships breaks. */
export class NetlinkSocket implements NetlinkClient {
  readonly #socket: RawNetlinkSocket;
  readonly #port: number;
  readonly #timeoutMs: number;
  readonly #pending = new Map<number, Pending>();
  #sequence = 1;
  #closed = false;
  /** Requests and dumps run one after the other; a batch is one turn. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(protocol: number, { netnsFd, timeoutMs = DEFAULT_TIMEOUT_MS }: NetlinkOptions = {}) {
    this.#socket = openRawNetlink(protocol, { netnsFd }).socket;
    this.#port = this.#socket.address().port;
    this.#timeoutMs = timeoutMs;
    this.#socket.on('message', (datagram) => this.#receive(datagram));
    this.#socket.on('error', (error) => this.#failAll('EIO', error));
    this.#socket.unref();
  }

  request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return this.#inTurn(() => this.#exchange([request]).then(([answer]) => unwrap(answer as Answer)));
  }

  batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]> {
    return this.#inTurn(async () => {
      const outcomes: (KernelError | undefined)[] = [];
      for (let at = 0; at < requests.length; at += WINDOW) {
        const answers = await this.#exchange(requests.slice(at, at + WINDOW));
        for (const answer of answers) outcomes.push(answer instanceof KernelError ? answer : undefined);
      }
      return outcomes;
    });
  }

  dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    const asDump = { ...request, flags: NLM.DUMP | (request.flags ?? 0) };
    return this.#inTurn(async () => {
      for (let attempt = 1; attempt <= DUMP_ATTEMPTS; attempt++) {
        const messages = unwrap((await this.#exchange([asDump]))[0] as Answer);
        if (messages !== INTERRUPTED) return messages;
      }
      throw new KernelError({
        code: 'EINTR',
        ...nameOf(request),
        detail: `changed during each of ${DUMP_ATTEMPTS} dumps`,
      });
    });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.close();
    this.#failAll('ECANCELED');
  }

  #inTurn<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(action);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  /** Sends all requests in one datagram and resolves when each has been answered or the time is over. */
  async #exchange(requests: readonly NetlinkRequest[]): Promise<readonly Answer[]> {
    if (this.#closed) return requests.map((request) => new KernelError({ code: 'ECANCELED', ...nameOf(request) }));
    const answers = requests.map((request) => this.#expect(request));
    const datagram = Buffer.concat(answers.map(({ bytes }) => bytes));
    this.#socket.ref();
    const timer = setTimeout(() => this.#failAll('ETIMEDOUT'), this.#timeoutMs);
    try {
      this.#socket.send(datagram, {}, (error) => error && this.#failAll(error.code, error));
      return await Promise.all(answers.map(({ answer }) => answer));
    } finally {
      clearTimeout(timer);
      if (!this.#closed) this.#socket.unref();
    }
  }

  #expect(request: NetlinkRequest): { bytes: Buffer; answer: Promise<Answer> } {
    const sequence = this.#sequence;
    this.#sequence = (this.#sequence % 0xffffffff) + 1;
    const answer = new Promise<Answer>((resolve) => {
      this.#pending.set(sequence, { request, messages: [], interrupted: false, resolve, reject: resolve });
    });
    return { bytes: encode(request, sequence, this.#port), answer };
  }

  #receive(datagram: Buffer): void {
    for (const { sequence, message } of splitDatagram(datagram)) {
      const pending = this.#pending.get(sequence);
      if (!pending || message.type === NLMSG_NOOP) continue;
      if (message.flags & NLM.DUMP_INTR) pending.interrupted = true;
      if (message.type === NLMSG_ERROR || message.type === NLMSG_DONE) {
        this.#pending.delete(sequence);
        finish(pending, message);
      } else pending.messages.push(message);
    }
  }

  #failAll(code: string, cause?: unknown): void {
    const all = [...this.#pending.values()];
    this.#pending.clear();
    for (const { request, reject } of all) reject(new KernelError({ code, ...nameOf(request), cause }));
  }
}

/** Stands for a dump whose content changed while it was written. */
const INTERRUPTED: readonly NetlinkMessage[] = [];
type Answer = readonly NetlinkMessage[] | KernelError;

function unwrap(answer: Answer): readonly NetlinkMessage[] {
  if (answer instanceof KernelError) throw answer;
  return answer;
}

/** ERROR carries a negative errno (0: ACK); DONE may carry one too when a dump fails half-way. */
function finish(pending: Pending, message: NetlinkMessage): void {
  const errno = message.payload.length >= 4 ? message.payload.readInt32LE(0) : 0;
  if (errno < 0) {
    const detail = extendedAck(message);
    pending.reject(new KernelError({ code: errnoName(errno), ...nameOf(pending.request), detail }));
  } else pending.resolve(pending.interrupted ? INTERRUPTED : pending.messages);
}

/** The kernel's own words about a refused request (NLMSGERR_ATTR_MSG). */
function extendedAck({ flags, payload }: NetlinkMessage): string | undefined {
  if (!(flags & NLM_F_ACK_TLVS) || payload.length < 4 + HEADER_BYTES) return undefined;
  const echoed = flags & NLM_F_CAPPED ? HEADER_BYTES : payload.readUInt32LE(4);
  return textOf(parseAttributes(payload, 4 + ((echoed + 3) & ~3)).get(NLMSGERR_ATTR_MSG));
}

export const errnoName = (errno: number): string => {
  try {
    return getSystemErrorName(errno);
  } catch {
    // Numbers beyond POSIX (ENOTSUPP, 524) have no name in libuv.
    return errno === -524 ? 'ENOTSUPP' : `errno ${-errno}`;
  }
};

const nameOf = ({ operation, object }: NetlinkRequest) => ({ operation, object });

function encode({ type, flags = 0, payload }: NetlinkRequest, sequence: number, port: number): Buffer {
  const length = HEADER_BYTES + payload.length;
  const bytes = Buffer.alloc((length + 3) & ~3);
  bytes.writeUInt32LE(length, 0);
  bytes.writeUInt16LE(type, 4);
  bytes.writeUInt16LE(flags | NLM.REQUEST | NLM.ACK, 6);
  bytes.writeUInt32LE(sequence, 8);
  bytes.writeUInt32LE(port, 12);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

/** The messages of one datagram; a length that cannot be right ends it. */
export function* splitDatagram(datagram: Buffer): Generator<{ sequence: number; message: NetlinkMessage }> {
  let at = 0;
  while (at + HEADER_BYTES <= datagram.length) {
    const length = datagram.readUInt32LE(at);
    if (length < HEADER_BYTES || at + length > datagram.length) return;
    yield {
      sequence: datagram.readUInt32LE(at + 8),
      message: {
        type: datagram.readUInt16LE(at + 4),
        flags: datagram.readUInt16LE(at + 6),
        port: datagram.readUInt32LE(at + 12),
        payload: datagram.subarray(at + HEADER_BYTES, at + length),
      },
    };
    at += (length + 3) & ~3;
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
