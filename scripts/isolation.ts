/**
 * Runs a command in network, mount, pid and cgroup namespaces of its own, so that whatever it leaves behind ends with
 * it, however it ends. What outlives namespaces, directories of cgroups, is looked for afterwards.
 */
import { existsSync, globSync, mkdirSync, readFileSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';

const INIT = join(import.meta.dirname, 'isolated-init.sh');
const CGROUP_PREFIX = 'tulle-test-';
/** Joins the cgroup that is the first argument, then becomes the rest. */
const JOIN_CGROUP = 'echo 0 >"$0/cgroup.procs" && exec "$@"';
const UNSHARE = [
  '--net',
  '--mount',
  '--pid',
  '--cgroup',
  '--fork',
  '--kill-child=KILL',
  '--mount-proc',
  '--propagation=private',
];

/** Mount point of the cgroup v2 hierarchy, or undefined where there is none. */
export function cgroupRoot(): string | undefined {
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n');
  return mounts.map((line) => line.split(' ')).find(([, , type]) => type === 'cgroup2')?.[1];
}

/** A cgroup for one run. `leftovers` are the directories below it that nobody removed; disposing removes all. */
export interface OwnCgroup extends Disposable {
  readonly path: string;
  leftovers(): readonly string[];
}

/** Throws where cgroup v2 is absent or cannot be written. */
export function createOwnCgroup(): OwnCgroup {
  const root = cgroupRoot();
  if (root === undefined) throw new Error('cannot make a cgroup: expected a mount of type cgroup2, got none');
  const path = join(root, `${CGROUP_PREFIX}${process.pid}`);
  mkdirSync(path, { recursive: true });
  return {
    path,
    leftovers: () => directoriesBelow(path),
    [Symbol.dispose]: () => removeCgroup(path),
  };
}

/**
 * Removes the cgroups of runs whose process is gone; they hold no process, since all of them died with it. Those of a
 * lab are never touched, however empty: it may be starting, and `tulle lab down` finds what a crashed one left.
 */
export function sweepCgroups(): void {
  const root = cgroupRoot();
  if (root === undefined) return;
  for (const name of globSync(`${CGROUP_PREFIX}*`, { cwd: root })) {
    const maker = name.slice(CGROUP_PREFIX.length);
    if (/^\d+$/.test(maker) && !existsSync(`/proc/${maker}`)) removeCgroup(join(root, name));
  }
}

/** Program and arguments that run `argv` isolated. They die with the process that starts them (from its main thread). */
export const isolated = (cgroup: OwnCgroup, argv: readonly string[]): [file: string, args: readonly string[]] => [
  'setpriv',
  ['--pdeathsig', 'KILL', 'sh', '-c', JOIN_CGROUP, cgroup.path, 'unshare', ...UNSHARE, INIT, ...argv],
];

/** Only empty cgroups can be removed: deepest first. */
function removeCgroup(path: string): void {
  for (const directory of [...directoriesBelow(path), path]) rmdirSync(directory);
}

/** Deepest first. */
const directoriesBelow = (path: string): string[] =>
  globSync('**/', { cwd: path })
    .filter((name) => name !== '.' && name !== '')
    .map((name) => join(path, name))
    .sort((a, b) => b.length - a.length);
