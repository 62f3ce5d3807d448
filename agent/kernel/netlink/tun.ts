/**
 * The link type `tun` (linux/if_tun.h; attribute numbers from linux/if_link.h, IFLA_TUN_*). rtnetlink changes and removes such
 * devices but makes none: they come from ioctls on /dev/net/tun.
 */
import { closeSync, openSync } from 'node:fs';
import type { TunLink } from '../../model/items.ts';
import { KernelError } from '../errors.ts';
import { inNetns, ioctl, ioctlNumber } from '../libc.ts';
import { u32Of } from './attributes.ts';
import { TOWARDS_NODES } from './link-conf.ts';
import type { LinkType } from './link-type.ts';
import type { LinkFacts } from './rtnetlink.ts';

export const TUN_FILE = '/dev/net/tun';

const TUNSETIFF = 0x400454ca;
const TUNSETPERSIST = 0x400454cb;
const TUNSETOWNER = 0x400454cc;
const TUNGETIFF = 0x800454d2;
const IFF_TUN = 0x0001;
const IFF_PERSIST = 0x0800;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
/** What the device is made with, and what whoever attaches to it has to ask for. */
export const TUN_FLAGS = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;

/** sizeof(struct ifreq): name, then a union whose first member here is ifr_flags. */
const IFREQ_BYTES = 40;
const IFREQ_FLAGS = 16;
const IFNAME_BYTES = 16;

/** Shown since Linux 4.20. */
const TUN = { OWNER: 1, GROUP: 2, TYPE: 3, PI: 4, VNET_HDR: 5, PERSIST: 6, MULTI_QUEUE: 7 } as const;

/** TUN devices of one network namespace. */
export interface Tuns {
  /** Makes a persistent device that only root may open. Throws KernelError. */
  create(link: string): void;
}

/** For a network namespace, this process's own by default. */
export const tunsOf = (netnsFd?: number): Tuns => ({
  create: (link) => (netnsFd === undefined ? createTun(link) : inNetns(netnsFd, () => createTun(link))),
});

/** Opens /dev/net/tun and attaches to a persistent device of this thread's network namespace. Throws KernelError. Close the result. */
export function attachTun(link: string): number {
  const fd = attachOrMake(link);
  const what = { operation: 'open', object: `link ${link}` };
  try {
    const ifreq = Buffer.alloc(IFREQ_BYTES);
    ioctl(fd, TUNGETIFF, ifreq, what);
    if ((ifreq.readUInt16LE(IFREQ_FLAGS) & IFF_PERSIST) !== 0) return fd;
    throw new KernelError({ code: 'ENODEV', ...what, detail: `there is no persistent TUN device ${link}` });
  } catch (error) {
    // With this goes the device that the kernel made because there was none.
    closeSync(fd);
    throw error;
  }
}

/** The kernel makes a device that is not there; it lasts as long as the descriptor. */
function attachOrMake(link: string): number {
  const fd = openTunFile(link);
  try {
    const ifreq = Buffer.alloc(IFREQ_BYTES);
    ifreq.write(link, 0, IFNAME_BYTES - 1, 'latin1');
    ifreq.writeUInt16LE(TUN_FLAGS, IFREQ_FLAGS);
    ioctl(fd, TUNSETIFF, ifreq, { operation: 'open', object: `link ${link}` });
    return fd;
  } catch (error) {
    closeSync(fd);
    throw explained(error, link);
  }
}

/** The owner is set because without one everybody who can open /dev/net/tun may attach to a device that lasts. */
function createTun(link: string): void {
  const fd = attachOrMake(link);
  try {
    const what = { operation: 'create', object: `link ${link}` };
    ioctlNumber(fd, TUNSETOWNER, 0, what);
    ioctlNumber(fd, TUNSETPERSIST, 1, what);
  } finally {
    closeSync(fd);
  }
}

const MISSING = `modprobe tun, mount ${TUN_FILE} into the agent's container, or set backend to vxlan or host-gw`;

const ADVICE: Readonly<Record<string, string>> = {
  ENOENT: `there is no ${TUN_FILE}: ${MISSING}`,
  ENXIO: `this kernel has no TUN devices: ${MISSING}`,
  ENODEV: `this kernel has no TUN devices: ${MISSING}`,
  EACCES: `the container may not open ${TUN_FILE}: let its device cgroup allow c 10:200 rw (privileged, or mounted as a CharDevice)`,
  EPERM: `needs CAP_NET_ADMIN, and a device cgroup that allows c 10:200 rw`,
  EBUSY: 'another process has it open: end that process',
  EINVAL: 'a link of that name is no such TUN device: remove it',
};

function openTunFile(link: string): number {
  try {
    return openSync(TUN_FILE, 'r+');
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? 'EIO';
    throw explained(new KernelError({ code, operation: 'open', object: `link ${link}`, cause }), link);
  }
}

function explained(error: unknown, link: string): unknown {
  if (!(error instanceof KernelError) || error.detail !== undefined) return error;
  const { code, operation, cause } = error;
  return new KernelError({ code, operation, object: `link ${link}`, detail: ADVICE[code], cause: cause ?? error });
}

/** No setting of its own can be changed while somebody has the device open, so one that is otherwise is made anew. */
export const tunType: LinkType<TunLink> = {
  type: 'tun',
  create: ({ name }, { tuns }) => tuns.create(name),
  isOwnMake: (facts) => facts.data.size > 0 && defectOf(facts) === undefined,
  data: () => [],
  change: (_wanted, _found, facts) => (defectOf(facts) === undefined ? [] : undefined),
  readBack(facts) {
    const { name, alias, mtuBytes } = facts;
    const defect = defectOf(facts);
    return { type: 'tun', name, alias, mtuBytes, ...(defect && { altered: defect }) };
  },
  same: () => true,
  ipv4: TOWARDS_NODES,
  configure() {},
  rivalAdvice: () => undefined,
  missingAdvice: MISSING,
  nameAdvice: 'remove it',
};

/** How a device differs from one that `create` made. What an old kernel does not show is taken as right. */
function defectOf({ data }: LinkFacts): string | undefined {
  const flag = (type: number): boolean => (data.get(type)?.[0] ?? 0) !== 0;
  if (data.size === 0) return undefined;
  if (data.get(TUN.TYPE)?.[0] !== IFF_TUN) return 'is a TAP device';
  if (!flag(TUN.PERSIST)) return 'does not last';
  if (flag(TUN.MULTI_QUEUE)) return 'has several queues';
  const owner = u32Of(data.get(TUN.OWNER));
  return owner === 0 && !data.has(TUN.GROUP) ? undefined : 'may be opened by others than root';
}
