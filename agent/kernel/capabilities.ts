/** What the agent must be allowed to do, asked before anything fails half-way with a bare EPERM. */
import { closeSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { KernelError } from './errors.ts';
import { openNetlinkFd, setsockoptInt } from './libc.ts';
import { NETLINK_GET_STRICT_CHK, NETLINK_PROTOCOL, SOL_NETLINK } from './netlink/message.ts';

/** Bits of CapEff (linux/capability.h) and what they are needed for. */
const NEEDED: readonly { readonly name: string; readonly bit: bigint; readonly purpose: string }[] = [
  { name: 'CAP_NET_ADMIN', bit: 12n, purpose: 'links, routes, rules and sets' },
  { name: 'CAP_NET_RAW', bit: 13n, purpose: 'iptables and ipset' },
  { name: 'CAP_SYS_ADMIN', bit: 21n, purpose: "entering pods' network namespaces" },
];

/** Throws KernelError EPERM that names what is missing. `status` is the text of /proc/self/status. */
export function requireCapabilities(status = readFileSync('/proc/self/status', 'latin1')): void {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  const missing = NEEDED.filter(({ bit }) => ((effective >> bit) & 1n) === 0n);
  if (missing.length === 0) return;
  const list = missing.map(({ name, purpose }) => `${name} (${purpose})`).join(', ');
  throw new KernelError({
    code: 'EPERM',
    operation: 'run',
    object: 'the agent',
    detail: `it lacks ${list}: run it as root, or add these capabilities to its container`,
  });
}

/**
 * Every list of routes, neighbours and links asks the kernel to filter. One that cannot would hand over all that the host
 * has, and what is Tulle's could not be told from the rest. Throws KernelError ENOPROTOOPT.
 */
export function requireDumpFilters(setOption: typeof setsockoptInt = setsockoptInt): void {
  const fd = openNetlinkFd(NETLINK_PROTOCOL.ROUTE);
  try {
    setOption(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
  } catch (cause) {
    throw new KernelError({
      code: (cause as KernelError).code,
      operation: 'run',
      object: 'the agent',
      detail: `the kernel cannot filter what it lists (NETLINK_GET_STRICT_CHK): expected Linux 4.20 or newer, got ${release()}`,
      cause,
    });
  } finally {
    closeSync(fd);
  }
}
