/**
 * The one wrapper around the `netlink` package, of which only the raw socket is used, to hear of notifications: it reads when
 * the event loop says that something came, and hands over whole datagrams.
 *
 * The package ends the process when the kernel reports ENOBUFS to it, so every socket opened here asks not to be told
 * (NETLINK_NO_ENOBUFS) and gets a large receive buffer; what was lost is counted by the kernel and read by `drops`.
 */
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { RawNetlinkSocket } from 'netlink/dist/raw.js';
import { KernelError } from '../errors.ts';
import { fileIdentity, inNetns, netlinkPort, setsockoptInt } from '../libc.ts';
import { SOL_NETLINK } from './message.ts';

const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const NETLINK_NO_ENOBUFS = 5;
/** A million queued notifications are a full list anyway; 20,000 need 32 MiB. */
const RECEIVE_BUFFER_BYTES = 32 << 20;

/** A raw socket of the package with the options that keep the process alive, and its inode for the drop counter. */
export function openRawNetlink(
  protocol: number,
  {
    netnsFd,
    receiveBufferBytes = RECEIVE_BUFFER_BYTES,
  }: { netnsFd?: number | undefined; receiveBufferBytes?: number | undefined } = {},
): { socket: RawNetlinkSocket; inode: string } {
  const open = () => {
    const likelyFd = lowestFreeFd();
    const socket = new RawNetlinkSocket(protocol);
    const fd = fdOfPort(likelyFd, socket.address().port);
    setsockoptInt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
    setsockoptInt(fd, SOL_SOCKET, SO_RCVBUFFORCE, receiveBufferBytes);
    return { socket, inode: fileIdentity(fd).inode };
  };
  return netnsFd === undefined ? open() : inNetns(netnsFd, open);
}

/** The package does not tell its fd. The kernel hands out the lowest free one, so it is nearly always this. */
function lowestFreeFd(): number {
  const fd = openSync('/dev/null', 'r');
  closeSync(fd);
  return fd;
}

/** The fd of the netlink socket with this port; another thread may have taken the likely one meanwhile. */
function fdOfPort(likelyFd: number, port: number): number {
  if (netlinkPort(likelyFd) === port) return likelyFd;
  for (const name of readdirSync('/proc/self/fd')) {
    if (isSocket(name) && netlinkPort(Number(name)) === port) return Number(name);
  }
  throw new KernelError({ code: 'EBADF', operation: 'find', object: `netlink socket with port ${port}` });
}

function isSocket(fd: string): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:');
  } catch {
    // The directory's own fd is closed by the time it is looked at.
    return false;
  }
}

/** How many messages the kernel dropped for the socket with this inode (column Drops of /proc/net/netlink). */
export function drops(inode: string): number {
  for (const line of readFileSync('/proc/thread-self/net/netlink', 'latin1').split('\n')) {
    const columns = line.trim().split(/\s+/);
    if (columns[9] === inode) return Number(columns[8]);
  }
  return 0;
}
