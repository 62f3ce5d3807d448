import { bytesOf, FAMILIES, familyOf, type IpAddress } from '../model/ip.ts';

/** struct sockaddr_in (ip(7)) or sockaddr_in6 (ipv6(7)). */
export function socketAddress(ip: IpAddress, port: number): Buffer {
  const family = familyOf(ip);
  const address = Buffer.alloc(family === 'ipv4' ? 16 : 28);
  address.writeUInt16LE(FAMILIES[family].addressFamily, 0);
  address.writeUInt16BE(port, 2);
  address.set(bytesOf(ip), family === 'ipv4' ? 4 : 8);
  return address;
}
