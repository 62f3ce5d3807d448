/** Where a lab keeps its things and what they are called: everything follows from its state directory. */
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { LabError } from './lab-error.ts';

export const DEFAULT_LAB_DIR = '/run/tulle-lab';

export interface LabLayout {
  /** 0700; exists exactly while a lab does. */
  readonly dir: string;
  /** Directory of this lab below the root of the cgroup v2 hierarchy: the supervisor, nodes and pods live in it. */
  readonly cgroup: string;
  /** Unix socket on which the supervisor answers (HTTP, JSON). */
  readonly controlSocket: string;
  /** What the supervisor writes, pino JSON. */
  readonly logFile: string;
  /** Kubeconfig with all rights. */
  readonly kubeconfig: string;
  readonly pkiDir: string;
}

export interface NodeLayout {
  readonly dir: string;
  readonly cgroup: string;
  readonly agentLog: string;
  readonly containerdLog: string;
  /** Kubeconfig of the agent, with read-only rights. */
  readonly kubeconfig: string;
  readonly podLogs: string;
}

/** Where a node finds its own NodeLayout.dir: its /run is private and hides the host's. */
export const DIR_IN_NODE = '/run/lab-node';

/**
 * The layout of the lab in `dir`. The last component must begin with `tulle-lab`, because whatever is left of a lab is
 * found and removed by that name. Throws LabError.
 */
export function labLayout(dir: string): LabLayout {
  const name = basename(dir);
  if (!/^\/[A-Za-z0-9/._-]*$/.test(dir) || !/^tulle-lab(-[a-z0-9-]{1,40})?$/.test(name)) {
    throw new LabError({
      operation: 'use lab directory',
      expected: 'an absolute path whose last part is tulle-lab or begins with tulle-lab-',
      received: JSON.stringify(dir.slice(0, 200)),
      remedy: 'set TULLE_LAB_DIR to such a path or leave it unset',
    });
  }
  return {
    dir,
    cgroup: join(cgroupRoot(), name),
    controlSocket: join(dir, 'control.sock'),
    logFile: join(dir, 'supervisor.log'),
    kubeconfig: join(dir, 'kubeconfig'),
    pkiDir: join(dir, 'pki'),
  };
}

export function nodeLayout(lab: LabLayout, node: string): NodeLayout {
  const dir = join(lab.dir, 'nodes', node);
  return {
    dir,
    cgroup: join(lab.cgroup, node),
    agentLog: join(dir, 'agent.log'),
    containerdLog: join(dir, 'containerd.log'),
    kubeconfig: join(dir, 'kubeconfig'),
    podLogs: join(dir, 'pods'),
  };
}

/** Mount point of the cgroup v2 hierarchy: /sys/fs/cgroup, or /sys/fs/cgroup/unified on a hybrid host. Throws LabError. */
export function cgroupRoot(mounts = readFileSync('/proc/self/mounts', 'utf8')): string {
  const fields = mounts.split('\n').map((line) => line.split(' '));
  const point = fields.find(([, , type]) => type === 'cgroup2')?.[1];
  if (point !== undefined) return point;
  throw new LabError({
    operation: 'find cgroup v2',
    expected: 'a mount of type cgroup2, usually at /sys/fs/cgroup',
    received: 'none in /proc/self/mounts',
    remedy:
      'mount -t cgroup2 none /sys/fs/cgroup/unified (after mkdir), or boot with systemd.unified_cgroup_hierarchy=1',
  });
}
