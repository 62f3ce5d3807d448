/**
 * From the TUN device to the peers. What the kernel hands over as one super-packet leaves as datagrams of one segment each
 * that share its headers (carriage `segments`), or whole; the header that says how to cut it becomes that of the datagram.
 */
import { bare, errnoOfLastCall } from '../libc.ts';
import { Sealer } from './cipher.ts';
import type { Counters, OUTBOUND } from './counters.ts';
import { type Arena, arena, Iovecs } from './memory.ts';
import type { Peer, PeerEntry, Peers } from './peers.ts';
import { Sending } from './sending.ts';
import { GSO_ECN, headersLength, putU16le, u16le, VNET, VNET_NEEDS_CSUM } from './super-packet.ts';
import { DATA_FLAGS, DATA_HEADER, firstByteOf, MAX_DATAGRAM_BYTES, SEAL_BYTES } from './wire.ts';

/** A packet of the kernel with its header. */
const PACKET_BYTES = VNET.bytes + 65_536;
/** What is read before anything is sent. */
const READ_BYTES = 256 * 1024;
const READS = 128;
/** Headers of datagrams whose bytes do not follow on them in memory. */
const HEADERS = 2048;
const SEALED_BYTES = 512 * 1024;

export interface OutboundOptions {
  readonly tunFd: number;
  readonly socketFd: number;
  readonly peers: Peers;
  readonly counters: Counters<(typeof OUTBOUND)[number]>;
  /** Waits for room in the socket's buffer, for a while. */
  readonly waitWritable: () => boolean;
  /** The socket has errors of earlier datagrams. */
  readonly onPending: () => void;
  readonly isEncrypted: boolean;
  /** Largest packet towards a peer as the path takes it, by slot; 0: that of the device. */
  readonly pathMtus: Int32Array;
  /** Has the path's MTU read anew. */
  readonly askPathMtu: (peer: Peer) => void;
  /** Answers a packet that is too large for the path. */
  readonly onTooLarge: (packet: Buffer, mtuBytes: number, peer: Peer) => void;
}

export class Outbound {
  readonly #options: OutboundOptions;
  readonly #sending: Sending;
  readonly #arena: Arena = arena(READ_BYTES + PACKET_BYTES);
  readonly #into = new Iovecs(1);
  readonly #headers: Arena = arena(HEADERS * DATA_HEADER.bytes);
  #headersUsed = 0;
  /** With encryption. */
  readonly #sealed: Arena;
  #sealedUsed = 0;
  /** By slot, for as long as the thread runs: no counter may be used twice under one key. */
  readonly #sealers = new Map<number, Sealer>();
  readonly #columns;

  constructor(options: OutboundOptions) {
    this.#options = options;
    const { counters } = options;
    this.#columns = {
      packets: counters.column('packets'),
      bytes: counters.column('bytes'),
      datagrams: counters.column('datagrams'),
      noPeer: counters.column('noPeer'),
      noSession: counters.column('noSession'),
      tooLarge: counters.column('tooLarge'),
    };
    this.#sending = new Sending({
      fd: options.socketFd,
      waitWritable: options.waitWritable,
      onPending: options.onPending,
      drop: (peer, datagrams, why) => counters.add(peer.entry.slot, counters.column(why), datagrams),
      isTooNarrow: (peer, bytes) => {
        options.askPathMtu(peer);
        return !this.#fitsPath(peer, bytes);
      },
    });
    this.#sealed = arena(options.isEncrypted ? SEALED_BYTES : 8);
  }

  /**
   * Waits for a packet and carries what there is, or a good deal of it. False when the device has gone. A packet that came alone
   * is not followed by the question whether there is another, which would cost as much as to carry it; not every time.
   */
  turn(): boolean {
    let end = this.#read(0, 0);
    if (end < 0) return isInterrupted(errnoOfLastCall());
    const asks = this.#isTrain || ++this.#turns % TURNS === 0;
    let reads = 1;
    for (; asks && end < READ_BYTES && reads < READS; reads++) {
      const length = this.#read(end, RWF_NOWAIT);
      if (length <= 0) break;
      end += length;
    }
    this.#isTrain = reads > 1;
    this.#flush();
    return true;
  }

  #isTrain = false;
  #turns = 0;

  /** Reads a packet to `at` of the memory and gathers what it becomes; its length, or -1. */
  #read(at: number, flags: 0 | typeof RWF_NOWAIT): number {
    this.#into.count = 0;
    this.#into.add(this.#arena.address + at, PACKET_BYTES);
    const length = bare.preadv2(this.#options.tunFd, this.#into.addressOf(0), 1, -1, flags);
    if (length > VNET.bytes) this.#packet(at, length);
    return length;
  }

  #flush(): void {
    this.#sending.flush();
    this.#headersUsed = 0;
    this.#sealedUsed = 0;
  }

  #packet(at: number, length: number): void {
    const { bytes } = this.#arena;
    const { peers, counters } = this.#options;
    const ip = at + VNET.bytes;
    const isIpv4 = (bytes[ip] as number) >>> 4 === 4;
    const peer = isIpv4 ? peers.byAddress(bytes, ip + 16, 1) : peers.byAddress(bytes, ip + 24, 4);
    if (!peer) {
      counters.add(0, this.#columns.noPeer, 1);
      return;
    }
    const gso = bytes[at + VNET.gsoType] as number;
    const gsoSize = u16le(bytes, at + VNET.gsoSize);
    const flags = ((bytes[at + VNET.flags] as number) & VNET_NEEDS_CSUM ? DATA_FLAGS.needsCsum : 0) | gso;
    const innerBytes = length - VNET.bytes;
    const headers =
      (gso & ~GSO_ECN) === 0
        ? 0
        : headersLength(bytes, ip, innerBytes, gso & ~GSO_ECN, u16le(bytes, at + VNET.csumStart));
    bytes[at] = firstByteOf(this.#options.isEncrypted ? 'sealed' : 'data');
    bytes[at + DATA_HEADER.flags] = flags | DATA_FLAGS.last;
    putU16le(bytes, at + DATA_HEADER.headerLength, headers);
    putU16le(bytes, at + DATA_HEADER.index, 0);
    if (headers === 0) putU16le(bytes, at + DATA_HEADER.gsoSize, 0);
    if (this.#isTooLarge(peer, ip, innerBytes, headers, gsoSize)) return;
    const { slot } = peer.entry;
    const segments = headers === 0 ? 1 : Math.ceil((innerBytes - headers) / gsoSize);
    counters.add(slot, this.#columns.packets, segments);
    counters.add(slot, this.#columns.bytes, innerBytes);
    if (this.#options.isEncrypted) this.#seal(peer, at, length, headers, gsoSize);
    else if (headers === 0 || (peer.entry.carriage === 'whole' && length <= MAX_DATAGRAM_BYTES)) {
      this.#begin(peer, length, segments);
      this.#sending.piece(this.#arena.address + at, length);
    } else this.#cut(peer, at, length, headers, gsoSize);
  }

  /** `segments`: how many it holds at most. */
  #begin(peer: Peer, bytes: number, segments: number): void {
    // What does not fit is for the host to fragment, which it does not do with what it cuts.
    const fits = segments === 1 && this.#fitsPath(peer, bytes);
    if (!this.#sending.begin(peer, bytes, fits)) {
      // Headers and sealed datagrams of what is still being gathered stay where they are.
      this.#sending.flush();
      this.#sending.begin(peer, bytes, fits);
    }
    this.#options.counters.add(peer.entry.slot, this.#columns.datagrams, 1);
  }

  /** Whether a datagram of so many bytes needs no fragments, as far as is known. */
  #fitsPath(peer: Peer, bytes: number): boolean {
    const mtuBytes = this.#options.pathMtus[peer.entry.slot] as number;
    return mtuBytes === 0 || bytes - DATA_HEADER.bytes - (this.#options.isEncrypted ? SEAL_BYTES : 0) <= mtuBytes;
  }

  /** Segments of one datagram. */
  #perDatagram(peer: Peer, headers: number, gsoSize: number, overheadBytes: number): number {
    if (peer.entry.carriage === 'segments') return 1;
    return Math.floor((MAX_DATAGRAM_BYTES - DATA_HEADER.bytes - overheadBytes - headers) / gsoSize);
  }

  #cut(peer: Peer, at: number, length: number, headers: number, gsoSize: number): void {
    const perDatagram = this.#perDatagram(peer, headers, gsoSize, 0);
    const template = this.#arena.address + at + VNET.bytes;
    const first = template + headers;
    const end = this.#arena.address + at + length;
    let index = 0;
    for (let payload = first; payload < end; payload += perDatagram * gsoSize) {
      const payloadBytes = Math.min(perDatagram * gsoSize, end - payload);
      const header = this.#header(at, index, payload + payloadBytes >= end);
      this.#begin(peer, DATA_HEADER.bytes + headers + payloadBytes, perDatagram);
      this.#sending.piece(header, DATA_HEADER.bytes);
      this.#sending.piece(template, headers);
      this.#sending.piece(payload, payloadBytes);
      index += perDatagram;
    }
  }

  /** A copy of the header at `at` for the segments from `index` on; its address. */
  #header(at: number, index: number, isLast: boolean): number {
    if (this.#headersUsed === HEADERS) {
      this.#sending.flush();
      this.#headersUsed = 0;
    }
    const to = this.#headersUsed++ * DATA_HEADER.bytes;
    this.#fillHeader(this.#headers.bytes, to, at, index, isLast);
    return this.#headers.address + to;
  }

  #fillHeader(into: Buffer, to: number, at: number, index: number, isLast: boolean): void {
    const { bytes } = this.#arena;
    for (let i = 0; i < DATA_HEADER.index; i++) into[to + i] = bytes[at + i] as number;
    if (!isLast) into[to + DATA_HEADER.flags] = (into[to + DATA_HEADER.flags] as number) & ~DATA_FLAGS.last;
    putU16le(into, to + DATA_HEADER.index, index);
  }

  readonly #scratch = Buffer.alloc(DATA_HEADER.bytes);

  #seal(peer: Peer, at: number, length: number, headers: number, gsoSize: number): void {
    const sealer = this.#sealerOf(peer);
    if (!sealer) {
      const { counters } = this.#options;
      counters.add(peer.entry.slot, this.#columns.noSession, 1);
      return;
    }
    const { bytes } = this.#arena;
    const template = bytes.subarray(at + VNET.bytes, at + VNET.bytes + headers);
    const perDatagram = headers === 0 ? 1 : this.#perDatagram(peer, headers, gsoSize, sealer.overheadBytes);
    const step = headers === 0 ? length : perDatagram * gsoSize;
    let index = 0;
    for (let payload = at + VNET.bytes + headers; payload < at + length; payload += step) {
      const payloadEnd = Math.min(payload + step, at + length);
      const size = DATA_HEADER.bytes + sealer.overheadBytes + headers + payloadEnd - payload;
      if (this.#sealedUsed + size > this.#sealed.bytes.length) {
        this.#sending.flush();
        this.#sealedUsed = 0;
      }
      this.#fillHeader(this.#scratch, 0, at, index, payloadEnd === at + length);
      const rest = bytes.subarray(payload, payloadEnd);
      const pieces = headers === 0 ? [rest] : [template, rest];
      const written = sealer.seal(this.#scratch, pieces, this.#sealed.bytes, this.#sealedUsed);
      this.#begin(peer, written, perDatagram);
      this.#sending.piece(this.#sealed.address + this.#sealedUsed, written);
      this.#sealedUsed += written;
      index += perDatagram;
    }
  }

  /** The peer has another key, or none. */
  useKey({ slot, send }: PeerEntry): void {
    if (!send) return;
    const sealer = this.#sealers.get(slot);
    if (sealer) sealer.use(send);
    else this.#sealers.set(slot, new Sealer(send));
  }

  #sealerOf(peer: Peer): Sealer | undefined {
    const { send, slot } = peer.entry;
    return send && this.#sealers.get(slot);
  }

  /** Whether it was answered, as it does not fit the path. Carried whole, and IPv4 that may be cut, is cut by this host. */
  #isTooLarge(peer: Peer, ip: number, innerBytes: number, headers: number, gsoSize: number): boolean {
    const mtuBytes = this.#options.pathMtus[peer.entry.slot] as number;
    if (mtuBytes === 0 || peer.entry.carriage === 'whole') return false;
    if ((headers === 0 ? innerBytes : headers + gsoSize) <= mtuBytes) return false;
    const { bytes } = this.#arena;
    const mayBeCut = (bytes[ip] as number) >>> 4 === 4 && ((bytes[ip + 6] as number) & DONT_FRAGMENT) === 0;
    if (mayBeCut && headers === 0) return false;
    this.#options.counters.add(peer.entry.slot, this.#columns.tooLarge, 1);
    this.#options.onTooLarge(bytes.subarray(ip, ip + innerBytes), mtuBytes, peer);
    return true;
  }
}

/** In the byte of the flags of IPv4 (RFC 791). */
const DONT_FRAGMENT = 0x40;
const EINTR = 4;
const EAGAIN = 11;
/** Of preadv2(2): nothing is waited for. The kernel knows it for TUN since Linux 5.13; before, each packet is carried alone. */
const RWF_NOWAIT = 8;
/** After so many packets that came alone it is asked for another. */
const TURNS = 16;

const isInterrupted = (errno: number): boolean => errno === EINTR || errno === EAGAIN;
