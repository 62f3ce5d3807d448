/** Ethernet frames made by hand, and a way to send them: what a pod that may do anything in its own namespace can do. */
import { bytesOf, FAMILIES, factsOf, type IpAddress } from '../../agent/model/ip.ts';
import { type MacAddress, macBytes } from '../../agent/model/mac.ts';
import { type Place, sendDatagram, shellIn } from './places.ts';
import { checksumOf, encapsulated, u16 } from './tunnel-frame.ts';

const ETHERTYPE = { ipv4: 0x0800, ipv6: 0x86dd, arp: 0x0806 } as const;
const UDP = 17;
const ICMP = 1;
const ICMPV6 = 58;

export interface Frame {
  readonly macs: { readonly source: MacAddress; readonly destination: MacAddress };
  readonly etherType: number;
  readonly packet: Buffer;
}

export interface Claim {
  /** The address, and who is said to have it. */
  readonly ip: IpAddress;
  readonly mac: MacAddress;
  readonly victim: { readonly ip: IpAddress; readonly mac: MacAddress };
}

/** An answer that nobody asked for: an ARP reply (RFC 826) or a neighbour advertisement (RFC 4861), to the victim alone. */
export function claimFrame({ ip, mac, victim }: Claim): Frame {
  const macs = { source: mac, destination: victim.mac };
  if (factsOf(ip) === FAMILIES.ipv4) {
    const reply = u16(1, ETHERTYPE.ipv4, 0x0604, 2);
    const packet = Buffer.concat([reply, macBytes(mac), bytesOf(ip), macBytes(victim.mac), bytesOf(victim.ip)]);
    return { macs, etherType: ETHERTYPE.arp, packet };
  }
  // Solicited and overriding, with the option of the target's own hardware address.
  const advertisement = Buffer.concat([bytesOf(ip), Buffer.of(2, 1), macBytes(mac)]);
  const body = icmpv6(136 << 8, u16(0x6000, 0), advertisement, ip, victim.ip);
  return { macs, etherType: ETHERTYPE.ipv6, packet: ipv6(ip, victim.ip, ICMPV6, body) };
}

export interface DatagramFrame {
  readonly macs: Frame['macs'];
  readonly source: IpAddress;
  readonly destination: IpAddress;
  readonly port: number;
}

/** An empty UDP datagram. */
export function datagramFrame({ macs, source, destination, port }: DatagramFrame): Frame {
  const { family } = factsOf(source);
  const udp = (checksum: number) => u16(port, port, 8, checksum);
  const sum = checksumOf(Buffer.concat([bytesOf(source), bytesOf(destination), u16(0, 8, 0, UDP), udp(0)]));
  const packet = { ipv4, ipv6 }[family](source, destination, UDP, udp(sum));
  return { macs, etherType: ETHERTYPE[family], packet };
}

export interface Redirect {
  readonly macs: Frame['macs'];
  readonly gateway: IpAddress;
  readonly victim: IpAddress;
  readonly destination: IpAddress;
  readonly newGateway: IpAddress;
}

/**
 * An ICMP redirect (RFC 792) as the gateway would send it; IPv4 only. It is about an echo reply: for other packets the kernel
 * asks that a socket has sent them.
 */
export function redirectFrame({ macs, gateway, victim, destination, newGateway }: Redirect): Frame {
  const told = Buffer.concat([bytesOf(newGateway), ipv4(victim, destination, ICMP, u16(0, 0, 0, 0))]);
  const message = (checksum: number) => Buffer.concat([u16(0x0501, checksum), told]);
  const packet = ipv4(gateway, victim, ICMP, message(checksumOf(message(0))));
  return { macs, etherType: ETHERTYPE.ipv4, packet };
}

function icmpv6(type: number, head: Buffer, body: Buffer, from: IpAddress, to: IpAddress): Buffer {
  const message = (checksum: number) => Buffer.concat([u16(type, checksum), head, body]);
  const { length } = message(0);
  const pseudoHeader = Buffer.concat([bytesOf(from), bytesOf(to), u16(0, length, 0, ICMPV6)]);
  return message(checksumOf(Buffer.concat([pseudoHeader, message(0)])));
}

function ipv4(from: IpAddress, to: IpAddress, protocol: number, body: Buffer): Buffer {
  const addresses = Buffer.concat([bytesOf(from), bytesOf(to)]);
  const header = (sum: number) =>
    Buffer.concat([u16(0x4500, 20 + body.length, 0, 0, (64 << 8) | protocol, sum), addresses]);
  return Buffer.concat([header(checksumOf(header(0))), body]);
}

/** Hop limit 255: what comes from a neighbour. */
const ipv6 = (from: IpAddress, to: IpAddress, protocol: number, body: Buffer): Buffer =>
  Buffer.concat([u16(0x6000, 0, body.length, (protocol << 8) | 255), bytesOf(from), bytesOf(to), body]);

const INJECTION = { port: 4790, vni: 7 } as const;

/**
 * Lets frames into eth0 of a place that are sent to it inside of VXLAN datagrams: the place bridges its eth0 with a tunnel
 * to itself. It can do nothing else any more.
 */
export async function openInjection(place: Place): Promise<(frame: Frame) => Promise<void>> {
  const { port, vni } = INJECTION;
  await shellIn(
    place,
    `ip link add inject0 type vxlan id ${vni} dstport ${port} local 127.0.0.1
     ip link add inject1 type bridge mcast_snooping 0
     ip link set inject0 master inject1; ip link set eth0 master inject1
     ip link set inject0 up; ip link set inject1 up`,
  );
  return async ({ macs, etherType, packet }) => {
    const payload = encapsulated(vni, macs, etherType, packet).toString('base64');
    await sendDatagram(place, { to: '127.0.0.1', port, payload });
  };
}
