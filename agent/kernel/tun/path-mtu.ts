/**
 * What the host's routes say of the path to an end (ip(7), IP_MTU; ipv6(7), IPV6_MTU). Where they know of a narrow one, by whatever
 * traffic, the kernel refuses what it was to cut into larger datagrams, and says no more than that.
 */

import { FAMILIES, familyOf, type IpAddress } from '../../model/ip.ts';
import { bare, bindSocket, getsockopt, openInetSocket } from '../libc.ts';
import { socketAddress } from '../socket-address.ts';
import type { Arena } from './memory.ts';

const UDP = 17;
const AF_INET = 2;
const IPPROTO_IP = 0;
const IP_MTU = 14;
const IPPROTO_IPV6 = 41;
const IPV6_MTU = 24;

/** A socket that asks only: nothing is sent from it. Throws KernelError. Close it. */
export function openAskingSocket(local: IpAddress): number {
  const fd = openInetSocket(FAMILIES[familyOf(local)].addressFamily, 'datagram', UDP);
  bindSocket(fd, socketAddress(local, 0), { operation: 'bind', object: `UDP socket at ${local}` });
  return fd;
}

const answer = Buffer.alloc(4);

/** `name`: struct sockaddr. Undefined where there is no route. */
export function readPathMtu(fd: number, name: Arena, nameLength: number): number | undefined {
  if (bare.connect(fd, name.address, nameLength) < 0) return undefined;
  const isIpv4 = name.bytes[0] === AF_INET;
  getsockopt(fd, isIpv4 ? IPPROTO_IP : IPPROTO_IPV6, isIpv4 ? IP_MTU : IPV6_MTU, answer);
  return answer.readUInt32LE();
}
