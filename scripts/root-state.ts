/**
 * What the tests must leave as they found it: the network of the namespace that they were started in. Read before and
 * after a run, as lines of text by area, without what changes by itself.
 */
import { globSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { execa } from 'execa';
import { cgroupRoot } from './isolation.ts';

/** Sorted lines by area. */
export type RootState = ReadonlyMap<string, readonly string[]>;

/** A tool that is not installed has nothing to say. Not looked up in node_modules, which has another `nft`. */
const COMMANDS: readonly string[] = [
  'ip -details link',
  'ip address',
  'ip -4 rule',
  'ip -6 rule',
  'ip -4 route show table all',
  'ip -6 route show table all',
  'ip -4 neighbour show nud permanent',
  'ip -6 neighbour show nud permanent',
  'bridge fdb',
  'ip netns list',
  'iptables-nft-save',
  'ip6tables-nft-save',
  'iptables-legacy-save',
  'ip6tables-legacy-save',
  'nft --stateless list ruleset',
  'ipset list -name',
];
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Counts, ages and lifetimes. */
const VOLATILE: readonly (readonly [RegExp, string])[] = [
  [/^#.*$/gm, ''],
  [/\[\d+:\d+\]/g, '[]'],
  [/(valid_lft|preferred_lft|expires) \d+sec/g, '$1 …'],
  [/ pref medium/g, ''],
];
const VOLATILE_SYSCTLS = ['net/netfilter/nf_conntrack_count'];

export async function readRootState(): Promise<RootState> {
  const said = await Promise.all(COMMANDS.map(async (command) => [command, await linesOf(command)] as const));
  return new Map([
    ...said,
    ['sysctl', readSysctls()],
    ['host name', [hostname()]],
    ['bpffs', globSync('**', { cwd: '/sys/fs/bpf' }).sort()],
    ['programs', await linesOf(`bpftool cgroup show ${cgroupRoot() ?? '/nonexistent'}`)],
    ['cgroups', globSync('{tulle,kubepods}*/**/', { cwd: cgroupRoot() ?? '/nonexistent' }).sort()],
  ]);
}

/** `area: - line` for each line that is gone, `area: + line` for each new one. */
export function differences(before: RootState, after: RootState): readonly string[] {
  return [...before.keys()].flatMap((area) => {
    const [old, now] = [before.get(area) ?? [], after.get(area) ?? []];
    const gone = without(old, now).map((line) => `${area}: - ${line}`);
    return [...gone, ...without(now, old).map((line) => `${area}: + ${line}`)];
  });
}

async function linesOf(command: string): Promise<readonly string[]> {
  const [file = '', ...args] = command.split(' ');
  const { stdout } = await execa(file, args, {
    reject: false,
    timeout: 20_000,
    env: { PATH, LC_ALL: 'C' },
    extendEnv: false,
  });
  return stable(stdout ?? '');
}

/** Lines in an order of their own, without what changes by itself. */
export function stable(text: string): readonly string[] {
  const steady = VOLATILE.reduce((rest, [pattern, by]) => rest.replace(pattern, by), text);
  return steady
    .split('\n')
    .filter((line) => line.trim() !== '')
    .sort();
}

function readSysctls(): readonly string[] {
  return globSync('net/**/*', { cwd: '/proc/sys' })
    .filter((path) => !VOLATILE_SYSCTLS.includes(path))
    .sort()
    .flatMap((path) => {
      try {
        return [`${path} = ${readFileSync(`/proc/sys/${path}`, 'utf8').trim()}`];
      } catch {
        // Directories, and files that only take values (route/flush).
        return [];
      }
    });
}

/** Lines of `a` that `b` does not have, as often as they are missing. */
function without(a: readonly string[], b: readonly string[]): readonly string[] {
  const rest = [...b];
  return a.filter((line) => {
    const at = rest.indexOf(line);
    if (at >= 0) rest.splice(at, 1);
    return at < 0;
  });
}
