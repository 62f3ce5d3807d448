/**
 * What agents send each other through the tunnel's UDP port. Every datagram begins with a byte that says version and type; data
 * go on with a header in the order of struct virtio_net_hdr_mrg_rxbuf (linux/virtio_net.h), control messages as written here,
 * big-endian. What comes from outside is decoded or is undefined; nothing here throws over it.
 */
import { TUN_CARRIAGES, TUN_ENCRYPTIONS, type TunCarriage, type TunEncryption } from '../../model/items.ts';

/** Goes up with every change that the former version would misread. */
export const WIRE_VERSION = 1;

/** Lower half of the first byte. */
export const KINDS = { data: 0, sealed: 1, hello: 2, helloAck: 3, probe: 4, probeAck: 5 } as const;
export type Kind = keyof typeof KINDS;
const kindNames = Object.keys(KINDS) as readonly Kind[];

export const firstByteOf = (kind: Kind): number => (WIRE_VERSION << 4) | KINDS[kind];

/** Of a datagram's first byte; undefined for another version or type. */
export const readKind = (first: number): Kind | undefined =>
  first >> 4 === WIRE_VERSION ? kindNames[first & 15] : undefined;

/** Offsets in the header of data, sealed or not; all numbers little-endian u16 but for the first two bytes. */
export const DATA_HEADER = {
  /** Version and type. */
  first: 0,
  flags: 1,
  /** Of the inner IP and TCP or UDP headers; 0 without segments. */
  headerLength: 2,
  gsoSize: 4,
  csumStart: 6,
  csumOffset: 8,
  /** Of the first segment that the datagram holds. */
  index: 10,
  bytes: 12,
} as const;

/** Flags of a data header; the lower four bits are the type of the segments, VIRTIO_NET_HDR_GSO_*. */
export const DATA_FLAGS = {
  gsoType: 0x0f,
  /** Holds the last segment. */
  last: 0x20,
  needsCsum: 0x40,
  ecn: 0x80,
} as const;

/** What sealing adds to a datagram: session id, counter, authentication tag. */
export const SEAL_BYTES = 28;

/** What UDP over IPv4 can carry: 65,535 less both headers. */
export const MAX_DATAGRAM_BYTES = 65_507;

export const NONCE_BYTES = 16;
export const EPOCH_BYTES = 8;
export const TOKEN_BYTES = 8;
/** HMAC-SHA256, cut to its first half (RFC 2104 section 5); zeros where nothing is encrypted. */
export const MAC_BYTES = 16;

/** Who the sender is, and what it wants. `helloAck` answers a `hello`. */
export interface Hello {
  readonly kind: 'hello' | 'helloAck';
  readonly encryption: TunEncryption;
  /** How the sender would like to send. */
  readonly carriage: TunCarriage;
  /** Largest datagram that the sender takes. */
  readonly largestBytes: number;
  /** Random, drawn for this exchange. */
  readonly nonce: Uint8Array;
  /** Which secret is meant; zeros where nothing is encrypted. */
  readonly epoch: Uint8Array;
  /** Nonce of the `hello` that is answered; zeros in a `hello`. */
  readonly echo: Uint8Array;
}

/** Asks for an answer: whether the receiver is there, holds a session, and whether a datagram of this size arrives. */
export interface Probe {
  readonly kind: 'probe' | 'probeAck';
  /** Of the `probe`, with its padding. */
  readonly sizeBytes: number;
  /** Session under whose key it is authenticated; 0 where nothing is encrypted. */
  readonly session: number;
  /** Random, and the same in the answer. */
  readonly token: Uint8Array;
}

export type Control = Hello | Probe;

const HELLO = { encryption: 1, carriage: 2, largest: 4, nonce: 8, epoch: 24, echo: 32, mac: 48, bytes: 64 } as const;
const PROBE = { size: 2, session: 4, token: 8, mac: 16, bytes: 32 } as const;

/** The least size of a probe. */
export const PROBE_BYTES = PROBE.bytes;

/** A control message without its MAC, padded to its size; `authenticate` writes the MAC. */
export const encodeControl = (message: Control): Buffer =>
  'nonce' in message ? encodeHello(message) : encodeProbe(message);

function encodeHello(hello: Hello): Buffer {
  const bytes = Buffer.alloc(HELLO.bytes);
  bytes[0] = firstByteOf(hello.kind);
  bytes[HELLO.encryption] = TUN_ENCRYPTIONS.indexOf(hello.encryption);
  bytes[HELLO.carriage] = TUN_CARRIAGES.indexOf(hello.carriage);
  bytes.writeUInt16BE(hello.largestBytes, HELLO.largest);
  bytes.set(hello.nonce, HELLO.nonce);
  bytes.set(hello.epoch, HELLO.epoch);
  bytes.set(hello.echo, HELLO.echo);
  return bytes;
}

function encodeProbe(probe: Probe): Buffer {
  const bytes = Buffer.alloc(probe.kind === 'probe' ? probe.sizeBytes : PROBE.bytes);
  bytes[0] = firstByteOf(probe.kind);
  bytes.writeUInt16BE(probe.sizeBytes, PROBE.size);
  bytes.writeUInt32BE(probe.session, PROBE.session);
  bytes.set(probe.token, PROBE.token);
  return bytes;
}

/** The message in a datagram, or undefined: data, another version, a wrong length, values that nobody knows. */
export function decodeControl(datagram: Uint8Array): Control | undefined {
  const kind = readKind(datagram[0] ?? 0);
  const bytes = Buffer.from(datagram.buffer, datagram.byteOffset, datagram.length);
  if (kind === 'hello' || kind === 'helloAck') return decodeHello(kind, bytes);
  if (kind === 'probe' || kind === 'probeAck') return decodeProbe(kind, bytes);
  return undefined;
}

function decodeHello(kind: Hello['kind'], bytes: Buffer): Hello | undefined {
  if (bytes.length !== HELLO.bytes) return undefined;
  const encryption = TUN_ENCRYPTIONS[bytes.readUInt8(HELLO.encryption)];
  const carriage = TUN_CARRIAGES[bytes.readUInt8(HELLO.carriage)];
  if (encryption === undefined || carriage === undefined) return undefined;
  return {
    kind,
    encryption,
    carriage,
    largestBytes: bytes.readUInt16BE(HELLO.largest),
    nonce: copyOf(bytes, HELLO.nonce, NONCE_BYTES),
    epoch: copyOf(bytes, HELLO.epoch, EPOCH_BYTES),
    echo: copyOf(bytes, HELLO.echo, NONCE_BYTES),
  };
}

function decodeProbe(kind: Probe['kind'], bytes: Buffer): Probe | undefined {
  if (bytes.length < PROBE.bytes) return undefined;
  const sizeBytes = bytes.readUInt16BE(PROBE.size);
  if (bytes.length !== (kind === 'probe' ? sizeBytes : PROBE.bytes)) return undefined;
  const session = bytes.readUInt32BE(PROBE.session);
  return { kind, sizeBytes, session, token: copyOf(bytes, PROBE.token, TOKEN_BYTES) };
}

/** The datagram's memory is used again once it was received. */
const copyOf = (bytes: Buffer, at: number, length: number): Uint8Array =>
  Uint8Array.from(bytes.subarray(at, at + length));

const macOffset = (datagram: Uint8Array): number =>
  (readKind(datagram[0] ?? 0) ?? '').startsWith('hello') ? HELLO.mac : PROBE.mac;

/** What the MAC of a control message covers: all but itself and the padding behind it, which means nothing. */
export const authenticatedPart = (datagram: Uint8Array): Uint8Array => datagram.subarray(0, macOffset(datagram));

/** Where the MAC of a control message stands. */
export const macPart = (datagram: Uint8Array): Uint8Array =>
  datagram.subarray(macOffset(datagram), macOffset(datagram) + MAC_BYTES);
