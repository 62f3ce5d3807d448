/** The TUN device as the threads use it (Documentation/networking/tuntap.rst, linux/if_tun.h). */
import { closeSync } from 'node:fs';
import { KernelError } from '../errors.ts';
import { ioctl, ioctlNumber } from '../libc.ts';
import { attachTun } from '../netlink/tun.ts';
import { VNET } from './super-packet.ts';

const TUNGETIFF = 0x800454d2;
const IFF_PERSIST = 0x0800;
/** Of ifr_flags in a struct ifreq, and its size. */
const IFREQ_FLAGS = 16;
const IFREQ_BYTES = 40;
const TUNSETOFFLOAD = 0x400454d0;
const TUNSETVNETHDRSZ = 0x400454d8;
const TUNSETVNETLE = 0x400454dc;

/** TUN_F_*: checksums, segmentation of TCP over both families with ECN; that of UDP since Linux 6.2. */
const TCP_OFFLOADS = 0x01 | 0x02 | 0x04 | 0x08;
const UDP_OFFLOADS = 0x20 | 0x40;

export interface TunQueue {
  readonly fd: number;
  /** Whether super-packets of UDP are handed over, and taken. */
  readonly takesUdp: boolean;
}

/** Attaches to a device and asks for super-packets. Throws KernelError. Close the fd. */
export function openTunQueue(link: string): TunQueue {
  const fd = attachTun(link);
  const what = { operation: 'configure', object: `link ${link}` };
  const set = (request: number, value: number): void => {
    const argument = Buffer.alloc(4);
    argument.writeInt32LE(value);
    ioctl(fd, request, argument, what);
  };
  try {
    // The kernel makes a device where there is none.
    const ifreq = Buffer.alloc(IFREQ_BYTES);
    ioctl(fd, TUNGETIFF, ifreq, what);
    if ((ifreq.readUInt16LE(IFREQ_FLAGS) & IFF_PERSIST) === 0) throw new KernelError({ code: 'ENODEV', ...what });
    set(TUNSETVNETHDRSZ, VNET.bytes);
    set(TUNSETVNETLE, 1);
    return { fd, takesUdp: setOffloads(fd, what) };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function setOffloads(fd: number, what: { operation: string; object: string }): boolean {
  try {
    ioctlNumber(fd, TUNSETOFFLOAD, TCP_OFFLOADS | UDP_OFFLOADS, what);
    return true;
  } catch (error) {
    if (!(error instanceof KernelError) || error.code !== 'EINVAL') throw error;
    ioctlNumber(fd, TUNSETOFFLOAD, TCP_OFFLOADS, what);
    return false;
  }
}
