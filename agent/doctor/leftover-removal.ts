/** Removes what another network left. Only called for a product that a person named and that does not run. */
import { readFileSync, rmSync } from 'node:fs';
import { run } from '../kernel/command.ts';
import { ignoreNotFound } from '../kernel/errors.ts';
import { destroySet, named } from '../kernel/ipset/protocol.ts';
import { type BackendName, backendCommands } from '../kernel/iptables/backend.ts';
import type { NetlinkClient } from '../kernel/netlink/message.ts';
import { linkHeader, RTM } from '../kernel/netlink/rtnetlink.ts';
import type { NftTable } from '../kernel/nftables.ts';
import type { Family } from '../model/ip.ts';
import type { Traces } from './leftovers.ts';

/** Chains of one table, and the rules of built-in chains that go with them, as saved. */
export interface Chains {
  readonly backend: BackendName;
  readonly family: Family;
  readonly table: string;
  readonly names: readonly string[];
  readonly rules: readonly string[];
}

const DEADLINE_MS = 30_000;

export const describeRemoval = ({ chains, tables, sets, links, files }: Traces): readonly string[] => [
  ...chains.map(
    ({ backend, family, table, names, rules }) =>
      `delete ${rules.length} rules and ${names.length} chains of table ${table} of iptables-${backend} (${family})`,
  ),
  ...tables.map(({ family, name }) => `delete table ${family} ${name} of nftables`),
  ...sets.map((name) => `destroy ip set ${name}`),
  ...links.map(({ name }) => `delete link ${name}`),
  ...files.map((path) => `delete ${path}`),
];

export interface Sockets {
  readonly client: NetlinkClient;
  readonly nfnetlink: NetlinkClient;
}

/** Rules before the sets that they name. Throws KernelError, or the errors of the file system. */
export async function removeLeftovers(
  { chains, tables, sets, links, files }: Traces,
  { client, nfnetlink }: Sockets,
  signal: AbortSignal,
): Promise<void> {
  for (const each of chains) {
    const file = backendCommands(each.backend)[each.family].restore;
    await run({ file, args: ['--noflush', '--wait'], stdin: renderRemoval(each), timeoutMs: DEADLINE_MS, signal });
  }
  if (tables.length > 0)
    await run({ file: 'nft', args: ['-f', '-'], stdin: renderTables(tables), timeoutMs: DEADLINE_MS, signal });
  for (const error of await nfnetlink.batch(sets.map(destroySet))) if (error) ignoreNotFound(named(error));
  const requests = links.map(({ ifindex, name }) => ({
    type: RTM.DELLINK,
    payload: linkHeader({ ifindex }),
    operation: 'delete',
    object: `link ${name}`,
  }));
  for (const error of await client.batch(requests)) if (error) ignoreNotFound(error);
  for (const path of files) removeFiles(path);
}

/** What is mounted there is somebody's: cgroups and maps of the kernel, or a disk. */
export function removeFiles(path: string, mountinfo = readFileSync('/proc/self/mountinfo', 'utf8')): void {
  const mounts = mountsAt(path, mountinfo);
  if (mounts.length > 0)
    throw new Error(
      `cannot delete ${path}: expected files, got what is mounted at ${mounts.join(' and ')}; umount that, then ask again`,
    );
  rmSync(path, { recursive: true, force: true });
}

/** Mount points at a path and below it (proc_pid_mountinfo(5)): the fifth field, blanks as octal numbers. */
function mountsAt(path: string, mountinfo: string): readonly string[] {
  const points = mountinfo.split('\n').flatMap((line) => line.split(' ')[4] ?? []);
  const plain = points.map((point) =>
    point.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8))),
  );
  return plain.filter((point) => point === path || point.startsWith(`${path}/`));
}

/** Emptied before deleted, because they jump to each other. */
export const renderRemoval = ({ table, names, rules }: Chains): string =>
  [
    `*${table}`,
    ...names.map((name) => `:${name} - [0:0]`),
    ...rules.map((rule) => rule.replace(/^-A/, '-D')),
    ...names.map((name) => `-X ${name}`),
    'COMMIT',
    '',
  ].join('\n');

/** Names as the kernel gave them: nft takes only words. */
const renderTables = (tables: readonly NftTable[]): string =>
  tables
    .filter(({ name }) => /^[A-Za-z0-9_./-]+$/.test(name))
    .map(({ family, name }) => `delete table ${family} ${name}\n`)
    .join('');
