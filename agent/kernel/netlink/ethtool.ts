/** Transmit checksum offload of a link, by the ethtool ioctl: no netlink message shows or sets it before Linux 5.7. */
import { closeSync } from 'node:fs';
import { KernelError } from '../errors.ts';
import { addressOf, ioctl, openIoctlSocket } from '../libc.ts';

/** linux/sockios.h, linux/ethtool.h */
const SIOCETHTOOL = 0x8946;
const ETHTOOL_GTXCSUM = 0x16;
const ETHTOOL_STXCSUM = 0x17;
/** sizeof(struct ifreq): name, then a union whose first member here is the pointer ifr_data. */
const IFREQ_BYTES = 40;
const IFREQ_DATA = 16;

export interface Ethtool {
  /** Undefined when the link is gone or has no such setting. */
  readTxChecksum(link: string): boolean | undefined;
  /** Throws KernelError. */
  writeTxChecksum(link: string, on: boolean): void;
  close(): void;
}

/** For the links of one network namespace, this process's own by default. */
export function openEthtool(netnsFd?: number): Ethtool {
  const fd = openIoctlSocket(netnsFd);
  const exchange = (link: string, command: number, value: number): number => {
    const data = Buffer.alloc(8);
    data.writeUInt32LE(command, 0);
    data.writeUInt32LE(value, 4);
    const ifreq = Buffer.alloc(IFREQ_BYTES);
    ifreq.write(link, 0, 'latin1');
    ifreq.writeBigUInt64LE(addressOf(data), IFREQ_DATA);
    ioctl(fd, SIOCETHTOOL, ifreq, { operation: 'ask or set', object: `checksum offload of link ${link}` });
    return data.readUInt32LE(4);
  };
  return {
    readTxChecksum(link) {
      try {
        return exchange(link, ETHTOOL_GTXCSUM, 0) !== 0;
      } catch (error) {
        if (error instanceof KernelError && ['ENODEV', 'EOPNOTSUPP', 'ENOTSUP'].includes(error.code)) return undefined;
        throw error;
      }
    },
    writeTxChecksum: (link, on) => {
      exchange(link, ETHTOOL_STXCSUM, on ? 1 : 0);
    },
    close: () => closeSync(fd),
  };
}
