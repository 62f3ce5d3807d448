/** Segments of one super-packet on their way to the TUN device. */
import { bare } from '../libc.ts';
import { type Arena, Iovecs } from './memory.ts';
import {
  adaptHeaders,
  GSO,
  GSO_ECN,
  headersLength,
  ipHeaderLength,
  putU16le,
  u16le,
  VNET,
  VNET_NEEDS_CSUM,
} from './super-packet.ts';
import { DATA_FLAGS, DATA_HEADER } from './wire.ts';

const IOVECS = 1000;
/** Length of an IP packet. */
const MAX_PACKET_BYTES = 65_535;

/** Gathers segments of one super-packet, and writes them as one packet. */
export class RunWriter {
  readonly #tunFd: number;
  readonly #takesUdp: boolean;
  readonly #iovecs = new Iovecs(IOVECS);
  #bytes: Buffer = Buffer.alloc(0);
  /** Where the header of the first segment stands; -1: there is none. */
  #at = -1;
  #segments = 0;
  #payload = 0;
  #headers = 0;
  #gsoSize = 0;
  #gsoType = 0;
  /** Index that the next segment must have, when more may follow. */
  #next = -1;
  #isLast = false;
  #index = 0;

  constructor(tunFd: number, takesUdp: boolean) {
    this.#tunFd = tunFd;
    this.#takesUdp = takesUdp;
  }

  /** The segments of the datagram when it goes on with the run, and became part of it; else 0. */
  continues(from: Arena, at: number, length: number): number {
    if (this.#next < 0 || from.bytes !== this.#bytes) return 0;
    const { bytes } = from;
    const payload = length - DATA_HEADER.bytes - this.#headers;
    if (u16le(bytes, at + DATA_HEADER.index) !== this.#next || payload <= 0) return 0;
    if (this.#headers + this.#payload + payload > MAX_PACKET_BYTES || this.#iovecs.count === IOVECS) return 0;
    if (!this.#sameHeaders(at)) return 0;
    const segments = Math.ceil(payload / this.#gsoSize);
    this.#iovecs.add(from.address + at + DATA_HEADER.bytes + this.#headers, payload);
    this.#payload += payload;
    this.#segments += segments;
    this.#isLast = ((bytes[at + DATA_HEADER.flags] as number) & DATA_FLAGS.last) !== 0;
    this.#next = this.#isLast || payload % this.#gsoSize !== 0 ? -1 : this.#next + segments;
    return segments;
  }

  /** Whether everything but LAST and the index is that of the first segment. */
  #sameHeaders(at: number): boolean {
    const bytes = this.#bytes;
    const first = this.#at;
    if (((bytes[at + 1] as number) ^ (bytes[first + 1] as number)) & ~DATA_FLAGS.last) return false;
    for (let i = 2; i < DATA_HEADER.index; i++) if (bytes[at + i] !== bytes[first + i]) return false;
    // From the end: sequence numbers and ports tell most apart.
    const end = DATA_HEADER.bytes + this.#headers;
    for (let i = end - 1; i >= DATA_HEADER.bytes; i--) if (bytes[at + i] !== bytes[first + i]) return false;
    return true;
  }

  /** Begins a run, or a packet that is alone. How many segments that are; 0 when it is not well-formed. */
  start(from: Arena, at: number, length: number): number {
    const { bytes } = from;
    const gso = (bytes[at + DATA_HEADER.flags] as number) & DATA_FLAGS.gsoType;
    const headers = u16le(bytes, at + DATA_HEADER.headerLength);
    const inner = length - DATA_HEADER.bytes;
    const ip = at + DATA_HEADER.bytes;
    const csumStart = u16le(bytes, at + DATA_HEADER.csumStart);
    const needsCsum = ((bytes[at + DATA_HEADER.flags] as number) & DATA_FLAGS.needsCsum) !== 0;
    const csumOffset = u16le(bytes, at + DATA_HEADER.csumOffset);
    if (needsCsum && (csumStart < ipHeaderLength(bytes, ip) || csumStart + csumOffset + 2 > inner)) return 0;
    this.#bytes = bytes;
    this.#gsoType = gso;
    this.#gsoSize = u16le(bytes, at + DATA_HEADER.gsoSize);
    this.#iovecs.count = 0;
    this.#next = -1;
    if (gso === GSO.none) {
      this.#at = at;
      this.#segments = 1;
      this.#headers = 0;
      this.#iovecs.add(from.address + at, length);
      return 1;
    }
    if (gso !== GSO.tcp4 && gso !== GSO.tcp6 && gso !== GSO.udp) return 0;
    const payload = inner - headers;
    if (!needsCsum || this.#gsoSize === 0 || payload <= 0) return 0;
    if (headersLength(bytes, ip, inner, gso, csumStart) !== headers || csumOffset !== (gso === GSO.udp ? 6 : 16))
      return 0;
    this.#at = at;
    this.#headers = headers;
    this.#payload = payload;
    this.#segments = Math.ceil(payload / this.#gsoSize);
    this.#index = u16le(bytes, at + DATA_HEADER.index);
    this.#isLast = ((bytes[at + DATA_HEADER.flags] as number) & DATA_FLAGS.last) !== 0;
    const isFull = payload % this.#gsoSize === 0;
    if (!this.#isLast && !isFull) return 0;
    if (gso === GSO.udp && !this.#takesUdp && this.#segments > 1) return 0;
    const goesOn = !this.#isLast && (gso !== GSO.udp || this.#takesUdp);
    this.#next = goesOn ? this.#index + this.#segments : -1;
    this.#iovecs.add(from.address + at, length);
    return this.#segments;
  }

  /** Writes what was gathered; returns how many packets the kernel did not take. */
  write(): number {
    const at = this.#at;
    if (at < 0) return 0;
    this.#at = -1;
    this.#next = -1;
    const bytes = this.#bytes;
    const flags = bytes[at + DATA_HEADER.flags] as number;
    const isSuper = this.#segments > 1;
    if (this.#headers > 0) {
      adaptHeaders(bytes, at + DATA_HEADER.bytes, {
        gsoType: this.#gsoType,
        gsoSize: this.#gsoSize,
        csumStart: u16le(bytes, at + DATA_HEADER.csumStart),
        headerLength: this.#headers,
        index: this.#index,
        isLast: this.#isLast,
        payloadBytes: this.#payload,
      });
    }
    bytes[at + VNET.flags] = flags & DATA_FLAGS.needsCsum ? VNET_NEEDS_CSUM : 0;
    bytes[at + VNET.gsoType] = isSuper ? this.#gsoType | (flags & GSO_ECN) : 0;
    if (!isSuper) putU16le(bytes, at + VNET.gsoSize, 0);
    putU16le(bytes, at + VNET.bytes - 2, 0);
    const { count } = this.#iovecs;
    const written = bare.writev(this.#tunFd, this.#iovecs.addressOf(0), count);
    return written < 0 ? 1 : 0;
  }
}
