/** What a tunnel carries, made by hand: an Ethernet frame with a UDP datagram behind a VXLAN header (RFC 7348). */
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
const ETHERTYPE_IPV4 = 0x0800;
const VNI_PRESENT = 0x08;

/** The payload of the outer UDP datagram; the inner one is empty and without checksum, which IPv4 allows. */
export function tunnelFrame({ vni, macs, ips, ports }: TunnelFrame): Buffer {
  const vxlan = Buffer.from([VNI_PRESENT, 0, 0, 0, vni >> 16, (vni >> 8) & 0xff, vni & 0xff, 0]);
  const udp = u16(ports.source, ports.destination, 8, 0);
  const header = (checksum: number) =>
    Buffer.concat([
      u16(0x4500, 20 + udp.length, 0, 0, (64 << 8) | UDP, checksum),
      bytesOf(ips.source),
      bytesOf(ips.destination),
    ]);
  return Buffer.concat([
    vxlan,
    macBytes(macs.destination),
    macBytes(macs.source),
    u16(ETHERTYPE_IPV4),
    header(checksumOf(header(0))),
    udp,
  ]);
}

function u16(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 2);
  for (const [i, value] of values.entries()) bytes.writeUInt16BE(value, i * 2);
  return bytes;
}

/** RFC 1071. */
function checksumOf(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += bytes.readUInt16BE(i);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}
