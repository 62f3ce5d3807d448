/**
 * Super-packets: what the kernel hands over instead of many packets of one connection, with a header that says how they are to
 * be cut (Virtual I/O Device specification 1.2, section 5.1.6, "struct virtio_net_hdr"; linux/virtio_net.h).
 */

/** Offsets of struct virtio_net_hdr_mrg_rxbuf, all little-endian; the last field is not used between kernel and device. */
export const VNET = {
  flags: 0,
  gsoType: 1,
  headerLength: 2,
  gsoSize: 4,
  csumStart: 6,
  csumOffset: 8,
  bytes: 12,
} as const;
export const VNET_NEEDS_CSUM = 1;

/** VIRTIO_NET_HDR_GSO_*, without the bit for ECN. */
export const GSO = { none: 0, tcp4: 1, tcp6: 4, udp: 5 } as const;
export const GSO_ECN = 0x80;

/** IPPROTO_* (linux/in.h). */
const TCP = 6;
const UDP = 17;
const UDP_HEADER_BYTES = 8;
const TCP_HEADER_BYTES = 20;
const IPV4_HEADER_BYTES = 20;
const IPV6_HEADER_BYTES = 40;

export const u16le = (bytes: Buffer, at: number): number => (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
export const u16be = (bytes: Buffer, at: number): number => ((bytes[at] as number) << 8) | (bytes[at + 1] as number);

export function putU16le(bytes: Buffer, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}

export function putU16be(bytes: Buffer, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

/** What lies before can be no transport header: whoever has a checksum written there changes what was looked at. */
export const ipHeaderLength = (bytes: Buffer, at: number): number =>
  (bytes[at] as number) >>> 4 === 4 ? Math.max(IPV4_HEADER_BYTES, ((bytes[at] as number) & 15) * 4) : IPV6_HEADER_BYTES;

/**
 * Length of the headers of IP and of TCP or UDP, of a packet of `length` bytes at `at` whose transport header begins at
 * `csumStart`; 0 when packet and gso type do not belong together.
 */
export function headersLength(bytes: Buffer, at: number, length: number, gsoType: number, csumStart: number): number {
  if (csumStart < ipHeaderLength(bytes, at)) return 0;
  const isIpv4 = (bytes[at] as number) >>> 4 === 4;
  const isTcp = gsoType === GSO.tcp4 || gsoType === GSO.tcp6;
  if (csumStart + (isTcp ? TCP_HEADER_BYTES : UDP_HEADER_BYTES) > length) return 0;
  if (isIpv4) {
    if (gsoType === GSO.tcp6 || ((bytes[at] as number) & 15) * 4 !== csumStart) return 0;
    if (bytes[at + 9] !== (isTcp ? TCP : UDP)) return 0;
  } else if (gsoType === GSO.tcp4) return 0;
  if (!isTcp) return csumStart + UDP_HEADER_BYTES;
  const tcpLength = ((bytes[at + csumStart + 12] as number) >>> 4) * 4;
  return tcpLength < TCP_HEADER_BYTES || csumStart + tcpLength > length ? 0 : csumStart + tcpLength;
}

/** What a run of segments is a part of. */
export interface Run {
  readonly gsoType: number;
  readonly gsoSize: number;
  readonly csumStart: number;
  readonly headerLength: number;
  /** Index of the first segment in the super-packet. */
  readonly index: number;
  /** Whether the last segment of the super-packet is in the run. */
  readonly isLast: boolean;
  readonly payloadBytes: number;
}

/** FIN, PSH and CWR of TCP (RFC 9293 section 3.1). */
const FIN_PSH = 0x09;
const CWR = 0x80;

/**
 * Turns the headers of a super-packet, at `at`, into those of a run of its segments: lengths, identification, sequence number,
 * flags, and the sum over the pseudo-header that stands for the checksum until the kernel works it out.
 */
export function adaptHeaders(bytes: Buffer, at: number, run: Run): void {
  const { gsoType, gsoSize, csumStart, headerLength, index, isLast, payloadBytes } = run;
  const isIpv4 = (bytes[at] as number) >>> 4 === 4;
  const total = headerLength + payloadBytes;
  const former = isIpv4 ? u16be(bytes, at + 2) : IPV6_HEADER_BYTES + u16be(bytes, at + 4);
  if (isIpv4) {
    putU16be(bytes, at + 2, total);
    putU16be(bytes, at + 4, u16be(bytes, at + 4) + index);
    putU16be(bytes, at + 10, 0);
    putU16be(bytes, at + 10, ~sumOf(bytes, at, csumStart));
  } else putU16be(bytes, at + 4, total - IPV6_HEADER_BYTES);
  const transport = at + csumStart;
  const isTcp = gsoType === GSO.tcp4 || gsoType === GSO.tcp6;
  const check = transport + (isTcp ? 16 : 6);
  putU16be(bytes, check, folded(u16be(bytes, check) + total + (~former & 0xffff)));
  if (!isTcp) {
    putU16be(bytes, transport + 4, total - csumStart);
    return;
  }
  if (index > 0) {
    const sequence = (bytes.readUInt32BE(transport + 4) + index * gsoSize) % 2 ** 32;
    bytes.writeUInt32BE(sequence, transport + 4);
    bytes[transport + 13] = (bytes[transport + 13] as number) & ~CWR;
  }
  if (!isLast) bytes[transport + 13] = (bytes[transport + 13] as number) & ~FIN_PSH;
}

/** Sum of RFC 1071; an odd last byte counts as the upper one. */
export function sumOf(bytes: Buffer, at: number, length: number): number {
  let sum = 0;
  for (let i = 0; i + 1 < length; i += 2) sum += u16be(bytes, at + i);
  if (length % 2 === 1) sum += (bytes[at + length - 1] as number) << 8;
  return folded(sum);
}

const folded = (sum: number): number => {
  let left = sum;
  while (left > 0xffff) left = (left & 0xffff) + (left >>> 16);
  return left;
};
