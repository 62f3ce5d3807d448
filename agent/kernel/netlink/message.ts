/** Netlink messages (linux/netlink.h): what is sent, what comes back, and when an answer is complete. No socket, no I/O. */
import { getSystemErrorName } from 'node:util';
import { KernelError } from '../errors.ts';
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

/** Level and options of setsockopt(2): explain refusals, and refuse or obey what a dump request asks for. */
export const SOL_NETLINK = 270;
export const NETLINK_EXT_ACK = 11;
export const NETLINK_GET_STRICT_CHK = 12;

const NLMSG_NOOP = 1;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const HEADER_BYTES = 16;
/** In an error message: the request was not echoed, only its header (NLM_F_CAPPED); attributes follow (NLM_F_ACK_TLVS). */
const NLM_F_CAPPED = 0x100;
const NLM_F_ACK_TLVS = 0x200;
const NLMSGERR_ATTR_MSG = 1;

export interface NetlinkRequest {
  /** nlmsg_type. */
  readonly type: number;
  /** nlmsg_flags beyond REQUEST and ACK, which sending sets. */
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
  /** One request; resolves with the messages that came before the ACK. Rejects with KernelError. */
  request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]>;
  /** Many requests in few datagrams, in order; a failure does not stop the others. What they answer is not read. */
  batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]>;
  /** A dump, asked for again while the kernel says that it changed meanwhile (DUMP_INTR). */
  dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]>;
  close(): void;
}

/** The messages that answer a request, or why it was refused. */
export type Outcome = readonly NetlinkMessage[] | KernelError;

/** Stands for a dump whose content changed while it was written. */
export const INTERRUPTED: readonly NetlinkMessage[] = [];

/** Collects what answers one request. */
export class Answer {
  readonly request: NetlinkRequest;
  readonly #messages: NetlinkMessage[] = [];
  #interrupted = false;

  constructor(request: NetlinkRequest) {
    this.request = request;
  }

  /** Takes the next message; returns the outcome with the last one. */
  take(message: NetlinkMessage): Outcome | undefined {
    if (message.flags & NLM.DUMP_INTR) this.#interrupted = true;
    if (message.type === NLMSG_NOOP) return undefined;
    if (message.type !== NLMSG_ERROR && message.type !== NLMSG_DONE) {
      this.#messages.push(message);
      return undefined;
    }
    // ERROR carries a negative errno (0: ACK); DONE may carry one too when a dump fails half-way.
    const errno = message.payload.length >= 4 ? message.payload.readInt32LE(0) : 0;
    if (errno < 0)
      return new KernelError({ code: errnoName(errno), ...nameOf(this.request), detail: extendedAck(message) });
    return this.#interrupted ? INTERRUPTED : this.#messages;
  }
}

/** Throws a refusal. */
export function unwrap(outcome: Outcome): readonly NetlinkMessage[] {
  if (outcome instanceof KernelError) throw outcome;
  return outcome;
}

const DUMP_ATTEMPTS = 10;

/** Asks for a dump until it was not interrupted. Throws KernelError EINTR after ten times. */
export async function wholeDump(
  request: NetlinkRequest,
  ask: (request: NetlinkRequest) => Outcome | Promise<Outcome>,
): Promise<readonly NetlinkMessage[]> {
  const asDump = { ...request, flags: NLM.DUMP | (request.flags ?? 0) };
  for (let attempt = 1; attempt <= DUMP_ATTEMPTS; attempt++) {
    const messages = unwrap(await ask(asDump));
    if (messages !== INTERRUPTED) return messages;
  }
  throw new KernelError({ code: 'EINTR', ...nameOf(request), detail: `changed during each of ${DUMP_ATTEMPTS} dumps` });
}

/** The kernel's own words about a refused request (NLMSGERR_ATTR_MSG). */
function extendedAck({ flags, payload }: NetlinkMessage): string | undefined {
  if (!(flags & NLM_F_ACK_TLVS) || payload.length < 4 + HEADER_BYTES) return undefined;
  const echoed = flags & NLM_F_CAPPED ? HEADER_BYTES : payload.readUInt32LE(4);
  return textOf(parseAttributes(payload, 4 + ((echoed + 3) & ~3)).get(NLMSGERR_ATTR_MSG));
}

/** ENOTSUPP (linux/errno.h) reaches user space, but no C library has a name for it. */
const ENOTSUPP = -524;

const errnoName = (errno: number): string => (errno === ENOTSUPP ? 'ENOTSUPP' : getSystemErrorName(errno));

/** What a KernelError says about a request. */
export const nameOf = ({ operation, object }: NetlinkRequest) => ({ operation, object });

/** One datagram of requests numbered from `first` on. The last gets the flag ACK; a refusal needs none. */
export function encodeAll(requests: readonly NetlinkRequest[], first: number): Buffer {
  let size = 0;
  for (const { payload } of requests) size += paddedBytes(payload);
  const bytes = Buffer.allocUnsafe(size).fill(0);
  let at = 0;
  let sequence = first;
  for (const { type, flags = 0, payload } of requests) {
    const isLast = sequence === first + requests.length - 1;
    bytes.writeUInt32LE(HEADER_BYTES + payload.length, at);
    bytes.writeUInt16LE(type, at + 4);
    bytes.writeUInt16LE(flags | NLM.REQUEST | (isLast ? NLM.ACK : 0), at + 6);
    bytes.writeUInt32LE(sequence++, at + 8);
    bytes.set(payload, at + HEADER_BYTES);
    at += paddedBytes(payload);
  }
  return bytes;
}

const paddedBytes = (payload: Uint8Array): number => (HEADER_BYTES + payload.length + 3) & ~3;

/** The messages of one datagram; a length that cannot be right ends it. */
export function splitDatagram(datagram: Buffer): readonly { sequence: number; message: NetlinkMessage }[] {
  const messages: { sequence: number; message: NetlinkMessage }[] = [];
  let at = 0;
  while (at + HEADER_BYTES <= datagram.length) {
    const length = datagram.readUInt32LE(at);
    if (length < HEADER_BYTES || at + length > datagram.length) break;
    messages.push({
      sequence: datagram.readUInt32LE(at + 8),
      message: {
        type: datagram.readUInt16LE(at + 4),
        flags: datagram.readUInt16LE(at + 6),
        port: datagram.readUInt32LE(at + 12),
        payload: datagram.subarray(at + HEADER_BYTES, at + length),
      },
    });
    at += (length + 3) & ~3;
  }
  return messages;
}
