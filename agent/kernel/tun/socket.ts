/** The UDP socket of the tunnel (udp(7), ip(7), ipv6(7)). */
import { closeSync } from 'node:fs';
import { FAMILIES, type Family, familyOf, type IpAddress } from '../../model/ip.ts';
import { KernelError } from '../errors.ts';
import { bindSocket, openInetSocket, setsockoptInt } from '../libc.ts';
import { socketAddress } from '../socket-address.ts';

const SOL_SOCKET = 1;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;
const SOL_UDP = 17;
const UDP_GRO = 104;
/** Packets that come while the threads are busy; what comes beyond is dropped and counted by the kernel. */
const BUFFER_BYTES = 8 * 1024 * 1024;

/**
 * IP_RECVERR and IPV6_RECVERR; IP_MTU_DISCOVER and IPV6_MTU_DISCOVER with *_PMTUDISC_WANT: what fits the path has DF, what
 * does not is fragmented.
 */
const OPTIONS: Readonly<Record<Family, { level: number; receiveErrors: number; mtuDiscover: number }>> = {
  ipv4: { level: 0, receiveErrors: 11, mtuDiscover: 10 },
  ipv6: { level: 41, receiveErrors: 25, mtuDiscover: 23 },
};
const PMTUDISC_WANT = 1;

/** Bound to the tunnel's end; datagrams of one sender are received many at once. Throws KernelError. Close it. */
export function openTunnelSocket(local: IpAddress, port: number): number {
  const family = familyOf(local);
  const fd = openInetSocket(FAMILIES[family].addressFamily, 'datagram', SOL_UDP);
  const { level, receiveErrors, mtuDiscover } = OPTIONS[family];
  try {
    setsockoptInt(fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES);
    setsockoptInt(fd, SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES);
    setsockoptInt(fd, level, mtuDiscover, PMTUDISC_WANT);
    setsockoptInt(fd, level, receiveErrors, 1);
    setsockoptInt(fd, SOL_UDP, UDP_GRO, 1);
    bindSocket(fd, socketAddress(local, port), { operation: 'bind', object: `UDP port ${port} of ${local}` });
    return fd;
  } catch (error) {
    closeSync(fd);
    throw explained(error, local, port);
  }
}

function explained(error: unknown, local: IpAddress, port: number): unknown {
  if (!(error instanceof KernelError)) return error;
  const details: Readonly<Record<string, string>> = {
    EADDRINUSE: `UDP port ${port} is taken: end what listens there, or set another tun.port on all nodes`,
    EADDRNOTAVAIL: `no link of this host has ${local}`,
  };
  const { code, operation, object } = error;
  return details[code] ? new KernelError({ code, operation, object, detail: details[code], cause: error }) : error;
}
