/** What a lab needs of this machine, asked before anything is made. */
import { accessSync, constants, readFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import type { RuntimeName } from './control.ts';
import { LabError } from './lab-error.ts';
import { cgroupRoot } from './layout.ts';

/** Command and the Debian package that has it. */
const COMMANDS = {
  unshare: 'util-linux',
  nsenter: 'util-linux',
  setpriv: 'util-linux',
  mount: 'mount',
  ip: 'iproute2',
  openssl: 'openssl',
  ping: 'iputils-ping',
} as const;

/** What `--runtime containerd` needs beside. */
const CONTAINERD_COMMANDS = {
  containerd: 'containerd',
  'containerd-shim-runc-v2': 'containerd',
  ctr: 'containerd',
  runc: 'runc',
  'musl-gcc': 'musl-tools',
} as const;

const FILE_SYSTEMS = ['overlay', 'bpf', 'cgroup2', 'tmpfs'];

/** Throws LabError for the first thing that is missing. */
export function checkMachine(runtime: RuntimeName, path = process.env['PATH'] ?? ''): void {
  checkRoot();
  checkCommands({ ...COMMANDS, ...(runtime === 'containerd' && CONTAINERD_COMMANDS) }, path);
  const known = readFileSync('/proc/filesystems', 'utf8').split(/\s+/);
  const unknown = FILE_SYSTEMS.filter((name) => !known.includes(name));
  if (unknown.length > 0)
    throw cannotStart(
      'a kernel with overlay, bpf, cgroup2 and tmpfs',
      `none of ${unknown.join(', ')} in /proc/filesystems`,
      'load the modules',
    );
  cgroupRoot();
}

function checkCommands(packages: Readonly<Record<string, string>>, path: string): void {
  const missing = Object.keys(packages).filter((command) => !isOnPath(command, path));
  if (missing.length === 0) return;
  const wanted = [...new Set(missing.map((command) => packages[command]))].join(' ');
  throw cannotStart(
    `the commands ${Object.keys(packages).join(', ')}`,
    `no ${missing.join(', ')}`,
    `apt-get install ${wanted}, or run scripts/setup`,
  );
}

export function checkRoot(): void {
  if (process.geteuid?.() !== 0)
    throw cannotStart('root, to make namespaces', `user ${process.geteuid?.()}`, 'use sudo');
}

const cannotStart = (expected: string, received: string, remedy: string): LabError =>
  new LabError({ operation: 'run a lab', expected, received, remedy });

function isOnPath(command: string, path: string): boolean {
  return path.split(delimiter).some((dir) => {
    try {
      accessSync(join(dir, command), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
