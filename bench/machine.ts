/** The machine that figures were taken on, in words and numbers: figures without it say nothing. */
import { readFileSync, statfsSync } from 'node:fs';
import { arch, cpus, loadavg, release, totalmem } from 'node:os';
import { execa } from 'execa';

export interface Machine {
  readonly date: string;
  readonly commit: string;
  readonly cpu: string;
  readonly cpus: number;
  readonly memoryMiB: number;
  readonly arch: string;
  readonly kernel: string;
  readonly system: string;
  /** Share of the time since boot that the hypervisor gave to others; undefined where the kernel does not say. */
  readonly load1: number;
  readonly idleGovernor: string;
  readonly scratchFileSystem: string;
  readonly versions: Readonly<Record<string, string>>;
}

const PACKAGES = ['containernetworking-plugins', 'iptables', 'ipset', 'iproute2', 'iperf3'] as const;
/** statfs(2), f_type. */
const FILE_SYSTEMS: Readonly<Record<number, string>> = {
  [0xef53]: 'ext',
  [0x01021994]: 'tmpfs',
  [0x9123683e]: 'btrfs',
  [0x58465342]: 'xfs',
  [0x794c7630]: 'overlay',
};

/** `scratch` is where plugins keep what they keep on the disk. */
export async function describeMachine(scratch: string): Promise<Machine> {
  const type = statfsSync(scratch).type;
  return {
    date: new Date().toISOString(),
    commit: await commit(),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cpus: cpus().length,
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    arch: arch(),
    kernel: release(),
    system: read('/etc/os-release').match(/^PRETTY_NAME="(.*)"$/m)?.[1] ?? 'unknown',
    load1: loadavg()[0] as number,
    idleGovernor: read('/sys/devices/system/cpu/cpuidle/current_governor').trim() || 'none',
    scratchFileSystem: FILE_SYSTEMS[type] ?? `type 0x${type.toString(16)}`,
    versions: { node: process.version, ...Object.fromEntries(await Promise.all(PACKAGES.map(packageVersion))) },
  };
}

/** With `+changes` when the checkout is not as committed. */
async function commit(): Promise<string> {
  const git = (...args: readonly string[]) => execa('git', args, { cwd: import.meta.dirname, reject: false });
  const [head, changes] = await Promise.all([git('rev-parse', '--short', 'HEAD'), git('diff', '--quiet', 'HEAD')]);
  if (head.failed) return 'unknown';
  return `${head.stdout}${changes.failed ? '+changes' : ''}`;
}

async function packageVersion(name: string): Promise<readonly [string, string]> {
  const { stdout } = await execa('dpkg-query', ['-W', '-f', `\${Version}`, name], { reject: false });
  return [name, stdout || 'unknown'];
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // A file that this system does not have is one thing less to tell.
    return '';
  }
}

export function renderMachine(machine: Machine): readonly string[] {
  const { cpu, cpus: count, memoryMiB, arch: architecture, kernel, system, idleGovernor, load1, versions } = machine;
  return [
    `${count} × ${cpu} (${architecture}), ${memoryMiB} MiB, ${system}, Linux ${kernel}, idle governor ${idleGovernor}, load ${load1.toFixed(2)}`,
    `${machine.date}, commit ${machine.commit}, ${Object.entries(versions)
      .map((pair) => pair.join(' '))
      .join(', ')}`,
  ];
}
