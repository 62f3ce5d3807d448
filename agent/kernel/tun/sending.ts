/**
 * Datagrams to peers, gathered and sent many at once: those of equal size to one peer in one message that the kernel cuts
 * (UDP_SEGMENT, linux/udp.h), all messages in one sendmmsg(2). Nothing is copied: messages point to where the bytes are,
 * which therefore stay untouched until flush().
 */
import { bare, errnoOfLastCall } from '../libc.ts';
import { type Arena, arena, Iovecs, Messages, writeLong } from './memory.ts';
import type { Peer } from './peers.ts';
import { MAX_DATAGRAM_BYTES } from './wire.ts';

/** UDP_MAX_SEGMENTS before Linux 6.9. */
const MAX_SEGMENTS = 64;
const MESSAGES = 128;
const IOVECS = 4096;
/** UIO_MAXIOV (linux/uio.h). */
const IOVECS_OF_MESSAGE = 1000;

const SOL_UDP = 17;
const UDP_SEGMENT = 103;
/** CMSG_SPACE and CMSG_LEN of a u16 (cmsg(3)). */
const CONTROL_BYTES = 24;
const CONTROL_LENGTH = 18;

const MSG_DONTWAIT = 0x40;
const [EINTR, EIO, EAGAIN, EINVAL, EMSGSIZE, ENOBUFS] = [4, 5, 11, 22, 90, 105];
/** Of an earlier datagram, told to whoever calls next (ip(7), IP_RECVERR): ENETUNREACH, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH. */
const PENDING = new Set([101, 111, 112, 113]);

/** Whether an errno may tell of an earlier datagram (ip(7), IP_RECVERR); EMSGSIZE may be about the one at hand. */
export const isPending = (errno: number): boolean => errno === EMSGSIZE || PENDING.has(errno);

/** Told what became of datagrams that were not sent. */
export type Drop = (peer: Peer, datagrams: number, why: 'overflow' | 'tooLarge' | 'unreachable') => void;

/** Asked when datagrams of `bytes` could not be cut: whether the path to the peer takes less. */
export type IsTooNarrow = (peer: Peer, bytes: number) => boolean;

export interface SendingOptions {
  readonly fd: number;
  /** Waits for room in the socket's buffer, for a while. */
  readonly waitWritable: () => boolean;
  readonly drop: Drop;
  readonly isTooNarrow: IsTooNarrow;
  /** The socket has errors of earlier datagrams. */
  readonly onPending: () => void;
}

export class Sending {
  readonly #fd: number;
  readonly #waitWritable: () => boolean;
  readonly #drop: Drop;
  readonly #isTooNarrow: IsTooNarrow;
  readonly #onPending: () => void;
  readonly #messages = new Messages(MESSAGES);
  readonly #iovecs = new Iovecs(IOVECS);
  readonly #controls: Arena = arena(MESSAGES * CONTROL_BYTES);
  readonly #peers: (Peer | undefined)[] = new Array(MESSAGES);
  readonly #datagrams = new Uint32Array(MESSAGES);
  #count = 0;
  /** 1 where the kernel or a device below cannot cut datagrams. */
  #maxSegments = MAX_SEGMENTS;
  // The message that is being filled.
  #firstIovec = 0;
  #size = 0;
  #bytes = 0;
  #isOpen = false;
  #end = 0;

  constructor({ fd, waitWritable, drop, isTooNarrow, onPending }: SendingOptions) {
    this.#fd = fd;
    this.#waitWritable = waitWritable;
    this.#drop = drop;
    this.#isTooNarrow = isTooNarrow;
    this.#onPending = onPending;
    for (let i = 0; i < MESSAGES; i++) {
      const at = (i * CONTROL_BYTES) / 4;
      writeLong(this.#controls.words, at, CONTROL_LENGTH);
      this.#controls.words[at + 2] = SOL_UDP;
      this.#controls.words[at + 3] = UDP_SEGMENT;
    }
  }

  /**
   * Begins a datagram of `bytes`; its pieces follow. `fits`: it needs no fragments, which the kernel asks of what it is to cut.
   * Returns false when flush() has to come first.
   */
  begin(peer: Peer, bytes: number, fits: boolean): boolean {
    if (this.#iovecs.count + 4 > IOVECS) return false;
    const last = this.#count - 1;
    const joins =
      fits &&
      this.#isOpen &&
      this.#peers[last] === peer &&
      bytes <= this.#size &&
      (this.#datagrams[last] as number) < this.#maxSegments &&
      this.#bytes + bytes <= MAX_DATAGRAM_BYTES &&
      this.#iovecs.count - this.#firstIovec < IOVECS_OF_MESSAGE;
    if (joins) {
      this.#datagrams[last] = (this.#datagrams[last] as number) + 1;
      this.#bytes += bytes;
      // A shorter one can only be the last.
      this.#isOpen = bytes === this.#size;
      return true;
    }
    if (this.#count === MESSAGES) return false;
    this.#finish();
    this.#peers[this.#count] = peer;
    this.#datagrams[this.#count] = 1;
    this.#messages.setName(this.#count, peer.name.address, peer.nameLength);
    this.#count++;
    this.#firstIovec = this.#iovecs.count;
    this.#size = bytes;
    this.#bytes = bytes;
    this.#isOpen = fits;
    this.#end = 0;
    return true;
  }

  /** The next bytes of the datagram. */
  piece(address: number, length: number): void {
    if (address === this.#end) this.#iovecs.extend(length);
    else this.#iovecs.add(address, length);
    this.#end = address + length;
  }

  #finish(): void {
    if (this.#count === 0) return;
    const last = this.#count - 1;
    this.#messages.setIovecs(last, this.#iovecs.addressOf(this.#firstIovec), this.#iovecs.count - this.#firstIovec);
    const isCut = (this.#datagrams[last] as number) > 1;
    if (isCut) this.#controls.words[(last * CONTROL_BYTES) / 4 + 4] = this.#size;
    this.#messages.setControl(last, this.#controls.address + last * CONTROL_BYTES, isCut ? CONTROL_BYTES : 0);
  }

  #reasonOf(message: number, errno: number): 'overflow' | 'tooLarge' | 'unreachable' {
    if (errno === EAGAIN || errno === ENOBUFS) return 'overflow';
    const isCut = (this.#datagrams[message] as number) > 1;
    if (isCut && (errno === EMSGSIZE || errno === EINVAL)) {
      // Linux before 6.14 says EINVAL.
      const size = this.#controls.words[(message * CONTROL_BYTES) / 4 + 4] as number;
      if (this.#isTooNarrow(this.#peers[message] as Peer, size)) return 'tooLarge';
    }
    if (isCut && (errno === EIO || errno === EINVAL)) this.#maxSegments = 1;
    return errno === EMSGSIZE ? 'tooLarge' : 'unreachable';
  }

  /** Sends all that was gathered; what cannot be sent is dropped and counted. */
  flush(): void {
    this.#finish();
    let sent = 0;
    let retried = -1;
    while (sent < this.#count) {
      const result = bare.sendmmsg(this.#fd, this.#messages.addressOf(sent), this.#count - sent, MSG_DONTWAIT);
      if (result > 0) {
        sent += result;
        continue;
      }
      const errno = errnoOfLastCall();
      if (errno === EINTR) continue;
      if (isPending(errno) && retried !== sent) {
        this.#onPending();
        retried = sent;
        continue;
      }
      // ENOBUFS comes from a queue below that is full, and does not wait for room in this socket.
      if (errno === EAGAIN && this.#waitWritable()) continue;
      this.#drop(this.#peers[sent] as Peer, this.#datagrams[sent] as number, this.#reasonOf(sent, errno));
      sent++;
    }
    this.#count = 0;
    this.#iovecs.count = 0;
    this.#isOpen = false;
    this.#end = 0;
  }
}
