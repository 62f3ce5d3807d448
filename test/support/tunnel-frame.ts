/** What a VXLAN device takes in, made by hand: an Ethernet frame behind a VXLAN header (RFC 7348). */
import { bytesOf, type IpAddress } from '../../agent/model/ip.ts';
import { type MacAddress, macBytes } from '../../agent/model/mac.ts';

export interface TunnelFrame {
  readonly vni: number;
  readonly macs: { readonly source: MacAddress; readonly destination: MacAddress };
  /** IPv4 addresses. */
  readonly ips: { readonly source: IpAddress; readonly destination: IpAddress };
  readonly ports: { readonly source: number; readonly destination: number };
}

const UDP = 17;
const ICMPV6 = 58;
/** ICMPv6 type. */
const ADVERTISEMENT = 134;
const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_IPV6 = 0x86dd;
const VNI_PRESENT = 0x08;

/** The payload of the outer UDP datagram; the inner one is empty and without checksum, which IPv4 allows. */
export function tunnelFrame({ vni, macs, ips, ports }: TunnelFrame): Buffer {
  const udp = u16(ports.source, ports.destination, 8, 0);
  const header = (checksum: number) =>
    Buffer.concat([
      u16(0x4500, 20 + udp.length, 0, 0, (64 << 8) | UDP, checksum),
      bytesOf(ips.source),
      bytesOf(ips.destination),
    ]);
  return encapsulated(vni, macs, ETHERTYPE_IPV4, header(checksumOf(header(0))), udp);
}

export interface RouterAdvertisement {
  readonly vni: number;
  readonly mac: MacAddress;
  /** Link-local. */
  readonly source: IpAddress;
  /** As default router; 0: it is none any more. */
  readonly lifetimeSeconds: number;
}

const ALL_NODES = { mac: '33:33:00:00:00:01' as MacAddress, ip: 'ff02::1' as IpAddress };

/** A router advertisement (RFC 4861, section 4.2) to all nodes, as the payload of the outer UDP datagram. */
export function advertisementFrame({ vni, mac, source, lifetimeSeconds }: RouterAdvertisement): Buffer {
  const advertisement = (checksum: number) => u16(ADVERTISEMENT << 8, checksum, 64 << 8, lifetimeSeconds, 0, 0, 0, 0);
  const { length } = advertisement(0);
  const addresses = Buffer.concat([bytesOf(source), bytesOf(ALL_NODES.ip)]);
  const pseudoHeader = Buffer.concat([addresses, u16(0, length, 0, ICMPV6)]);
  const checksum = checksumOf(Buffer.concat([pseudoHeader, advertisement(0)]));
  // Receivers obey only what no router has forwarded: hop limit 255.
  const header = Buffer.concat([u16(0x6000, 0, length, (ICMPV6 << 8) | 255), addresses]);
  const macs = { source: mac, destination: ALL_NODES.mac };
  return encapsulated(vni, macs, ETHERTYPE_IPV6, header, advertisement(checksum));
}

export function encapsulated(
  vni: number,
  macs: TunnelFrame['macs'],
  etherType: number,
  ...packet: readonly Buffer[]
): Buffer {
  const vxlan = Buffer.from([VNI_PRESENT, 0, 0, 0, vni >> 16, (vni >> 8) & 0xff, vni & 0xff, 0]);
  return Buffer.concat([vxlan, macBytes(macs.destination), macBytes(macs.source), u16(etherType), ...packet]);
}

export function u16(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 2);
  for (const [i, value] of values.entries()) bytes.writeUInt16BE(value, i * 2);
  return bytes;
}

/** RFC 1071. */
export function checksumOf(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += bytes.readUInt16BE(i);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}
