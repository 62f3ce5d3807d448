/** Super-packets as a kernel makes them, and how they are cut, written once more and from the RFCs, to compare with. */
import fc from 'fast-check';

export interface SuperPacket {
  /** From the IP header on. */
  readonly bytes: Buffer;
  readonly gsoType: number;
  readonly gsoSize: number;
  readonly csumStart: number;
  readonly headerLength: number;
}

const TCP = 6;
const UDP = 17;
/** VIRTIO_NET_HDR_GSO_TCPV4, _TCPV6, _UDP_L4. */
const TYPES = { tcp4: 1, tcp6: 4, udp: 5 } as const;
/** Hop-by-hop options, destination options (RFC 8200 sections 4.3 and 4.6). */
const EXTENSIONS = [0, 60] as const;

/** Sum of 16-bit words with the carries added back (RFC 1071), in steps that cannot overflow. */
export function internetSum(...parts: readonly Buffer[]): number {
  const all = Buffer.concat(parts);
  let sum = 0;
  for (let i = 0; i < all.length; i++) {
    sum += i % 2 === 0 ? (all[i] as number) * 256 : (all[i] as number);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

/** Pseudo-headers of RFC 9293 section 3.1 and RFC 8200 section 8.1. */
function pseudoHeader(packet: Buffer, csumStart: number): Buffer {
  const isIpv4 = packet.readUInt8(0) >> 4 === 4;
  const addresses = isIpv4 ? packet.subarray(12, 20) : packet.subarray(8, 40);
  const tail = Buffer.alloc(8);
  tail.writeUInt32BE(packet.length - csumStart, 0);
  tail.writeUInt8(protocolOf(packet, csumStart), 7);
  return Buffer.concat([addresses, tail]);
}

function protocolOf(packet: Buffer, csumStart: number): number {
  if (packet.readUInt8(0) >> 4 === 4) return packet.readUInt8(9);
  let next = packet.readUInt8(6);
  for (let at = 40; at < csumStart; at += 8 * (packet.readUInt8(at + 1) + 1)) next = packet.readUInt8(at);
  return next;
}

const checkAt = (packet: Buffer, csumStart: number): number =>
  csumStart + (protocolOf(packet, csumStart) === TCP ? 16 : 6);

/** Finishes the checksum whose field holds the sum of the pseudo-header, as a device does. */
function finished(packet: Buffer, csumStart: number): Buffer {
  const sum = internetSum(packet.subarray(csumStart));
  packet.writeUInt16BE(0xffff - sum, checkAt(packet, csumStart));
  return packet;
}

/** Whether lengths and all checksums of a packet on the wire are right. */
export function isSound(packet: Buffer, csumStart: number): boolean {
  const isIpv4 = packet.readUInt8(0) >> 4 === 4;
  const length = isIpv4 ? packet.readUInt16BE(2) : 40 + packet.readUInt16BE(4);
  if (length !== packet.length) return false;
  if (isIpv4 && internetSum(packet.subarray(0, 4 * (packet.readUInt8(0) & 15))) !== 0xffff) return false;
  if (protocolOf(packet, csumStart) === UDP && packet.readUInt16BE(csumStart + 4) !== length - csumStart) return false;
  return internetSum(pseudoHeader(packet, csumStart), packet.subarray(csumStart)) === 0xffff;
}

/** Whether the field of the checksum holds what a device expects there: the sum of the pseudo-header. */
export function isPrepared(packet: Buffer, csumStart: number): boolean {
  const told = packet.readUInt16BE(checkAt(packet, csumStart)) % 0xffff;
  return told === internetSum(pseudoHeader(packet, csumStart)) % 0xffff;
}

/** Segments of a super-packet (RFC 9293; Linux, Documentation/networking/segmentation-offloads.rst). */
export function cutByHand({ bytes, gsoSize, csumStart, headerLength }: SuperPacket): readonly Buffer[] {
  const segments: Buffer[] = [];
  const isIpv4 = bytes.readUInt8(0) >> 4 === 4;
  const isTcp = protocolOf(bytes, csumStart) === TCP;
  for (let from = headerLength; from < bytes.length; from += gsoSize) {
    const index = segments.length;
    const isLast = from + gsoSize >= bytes.length;
    const segment = Buffer.concat([bytes.subarray(0, headerLength), bytes.subarray(from, from + gsoSize)]);
    if (isIpv4) {
      segment.writeUInt16BE(segment.length, 2);
      segment.writeUInt16BE((bytes.readUInt16BE(4) + index) % 65_536, 4);
      segment.writeUInt16BE(0, 10);
      segment.writeUInt16BE(0xffff - internetSum(segment.subarray(0, csumStart)), 10);
    } else segment.writeUInt16BE(segment.length - 40, 4);
    if (isTcp) {
      segment.writeUInt32BE((bytes.readUInt32BE(csumStart + 4) + index * gsoSize) % 2 ** 32, csumStart + 4);
      let flags = bytes.readUInt8(csumStart + 13);
      if (index > 0) flags &= ~0x80;
      if (!isLast) flags &= ~0x09;
      segment.writeUInt8(flags, csumStart + 13);
    } else segment.writeUInt16BE(segment.length - csumStart, csumStart + 4);
    const sum = internetSum(pseudoHeader(segment, csumStart));
    segment.writeUInt16BE(sum, checkAt(segment, csumStart));
    segments.push(finished(segment, csumStart));
  }
  return segments;
}

const u16 = fc.nat(0xffff);
const u32 = fc.oneof(fc.nat(), fc.integer({ min: 0xffff0000, max: 0xffffffff }));
/** Four bytes a word. */
const words = (maxWords: number) =>
  fc.nat(maxWords).chain((count) => fc.uint8Array({ minLength: 4 * count, maxLength: 4 * count }));
const bytes = (count: number) => fc.uint8Array({ minLength: count, maxLength: count });

const ipv4Header = fc
  .record({ addresses: bytes(8), options: words(10), id: u16, tos: fc.nat(255) })
  .map(({ addresses, options, id, tos }) => (protocol: number): Buffer => {
    const header = Buffer.alloc(12);
    header.writeUInt8(0x40 | (5 + options.length / 4), 0);
    header.writeUInt8(tos, 1);
    header.writeUInt16BE(id, 4);
    header.writeUInt16BE(0x4000, 6);
    header.writeUInt8(64, 8);
    header.writeUInt8(protocol, 9);
    return Buffer.concat([header, addresses, options]);
  });

const ipv6Header = fc
  .record({
    addresses: bytes(32),
    label: fc.nat(0xfffff),
    extensions: fc.array(fc.constantFrom(...EXTENSIONS), { maxLength: 2 }),
  })
  .map(({ addresses, label, extensions }) => (protocol: number): Buffer => {
    const header = Buffer.alloc(8);
    header.writeUInt32BE(0x60000000 + label, 0);
    header.writeUInt8(64, 7);
    const order = [...extensions, protocol];
    header.writeUInt8(order[0] as number, 6);
    const more = extensions.map((_, i) => Buffer.of(order[i + 1] as number, 0, 1, 4, 0, 0, 0, 0));
    return Buffer.concat([header, addresses, ...more]);
  });

const tcpHeader = fc
  .record({ ports: bytes(4), sequence: u32, acknowledged: u32, flags: fc.nat(255), window: u16, options: words(10) })
  .map(({ ports, sequence, acknowledged, flags, window, options }) => {
    const header = Buffer.alloc(20);
    header.set(ports);
    header.writeUInt32BE(sequence, 4);
    header.writeUInt32BE(acknowledged, 8);
    header.writeUInt8((5 + options.length / 4) << 4, 12);
    header.writeUInt8(flags, 13);
    header.writeUInt16BE(window, 14);
    return { protocol: TCP, header: Buffer.concat([header, options]) };
  });

const udpHeader = bytes(4).map((ports) => ({ protocol: UDP, header: Buffer.concat([ports, Buffer.alloc(4)]) }));

/** Of one segment to some forty. */
export const superPackets: fc.Arbitrary<SuperPacket> = fc
  .record({
    ip: fc.oneof(ipv4Header, ipv6Header),
    transport: fc.oneof(tcpHeader, udpHeader),
    gsoSize: fc.integer({ min: 1, max: 60 }),
    payload: fc.uint8Array({ minLength: 1, maxLength: 2_000 }),
  })
  .map(({ ip, transport: { protocol, header }, gsoSize, payload }) => {
    const network = ip(protocol);
    const packet = Buffer.concat([network, header, payload]);
    const csumStart = network.length;
    const isIpv4 = packet.readUInt8(0) >> 4 === 4;
    if (isIpv4) {
      packet.writeUInt16BE(packet.length, 2);
      packet.writeUInt16BE(0xffff - internetSum(packet.subarray(0, csumStart)), 10);
    } else packet.writeUInt16BE(packet.length - 40, 4);
    if (protocol === UDP) packet.writeUInt16BE(packet.length - csumStart, csumStart + 4);
    packet.writeUInt16BE(internetSum(pseudoHeader(packet, csumStart)), checkAt(packet, csumStart));
    return {
      bytes: packet,
      gsoType: protocol === UDP ? TYPES.udp : isIpv4 ? TYPES.tcp4 : TYPES.tcp6,
      gsoSize,
      csumStart,
      headerLength: csumStart + header.length,
    };
  });
