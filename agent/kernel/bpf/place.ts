/** Where this host keeps what programs are attached to, and how many CPUs it may have. */
import { readFileSync, statfsSync } from 'node:fs';
import { KernelError } from '../errors.ts';

/** CGROUP2_SUPER_MAGIC (linux/magic.h). */
const CGROUP2 = 0x63677270;
/** Pure v2, also in a cgroup namespace of its own; then hybrid hosts, where it stands beside v1. */
const CGROUP_ROOTS = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'] as const;

/**
 * Root of the cgroup v2 hierarchy: what is attached there is asked for every socket of the node. Throws KernelError where
 * there is none.
 */
export function findCgroupRoot(roots: readonly string[] = CGROUP_ROOTS): string {
  const root = roots.find((path) => typeOf(path) === CGROUP2);
  if (root !== undefined) return root;
  throw new KernelError({
    code: 'ENODEV',
    operation: 'find',
    object: 'the cgroups of this node',
    detail: `expected cgroup v2 at ${roots.join(' or ')}, got none; mount -t cgroup2 none ${roots.at(-1)}, or boot with systemd.unified_cgroup_hierarchy=1`,
  });
}

function typeOf(path: string): number | undefined {
  try {
    return statfsSync(path).type;
  } catch {
    return undefined;
  }
}

/** One more than the highest number in `0-3,8`. */
export function possibleCpus(text = readFileSync('/sys/devices/system/cpu/possible', 'latin1')): number {
  return 1 + Math.max(...text.trim().split(/[-,]/).map(Number));
}
