/** What is read of a running agent in a lab node: its status, its processor time, its memory, and what its starts take. */
import { readFile } from 'node:fs/promises';
import { execa } from 'execa';
import type { AgentStatus } from '../agent/agent-status.ts';
import { AgentUnreachable, askAgent } from '../agent/commands/ask-agent.ts';
import type { Kind } from '../agent/model/items.ts';
import { inNode, type NodeRef, pathOnHost } from '../lab/node.ts';
import { until } from '../lab/until.ts';
import { TULLE } from '../lab/up.ts';
import type { TulleLab } from './places.ts';
import type { Samples } from './samples.ts';
import type { Column } from './table.ts';

/** Of the agent, in the node. */
export const RUN_DIR = '/run/tulle';
/** 50,000 Services on a machine that has twenty other things to do. */
const CONVERGE_DEADLINE_MS = 400_000;
/** Of the clock in /proc/PID/stat (sysconf(_SC_CLK_TCK), the same on all of Linux' architectures of today). */
const MS_PER_TICK = 10;

export const programIn = (node: NodeRef, argv: readonly string[]): [string, string[]] => {
  const [file, ...args] = inNode(node, argv);
  return [file, args];
};

export const statusOf = async (node: NodeRef): Promise<AgentStatus> =>
  (await askAgent(pathOnHost(node, RUN_DIR), 'status')) as AgentStatus;

/** Ready, `isThere`, and nothing left to write. Rejects with what is missing when it hangs. To ask costs the agent time that grows with what it has. */
export async function untilConverged(
  node: NodeRef,
  isThere: (status: AgentStatus) => boolean,
  intervalMs = 20,
): Promise<void> {
  let last = 'no answer of the agent';
  const isConverged = async () => {
    try {
      const status = await statusOf(node);
      const rows = Object.entries(status.kernel.kinds);
      const open = rows.filter(
        ([, { dirty, stale, wanted, known }]) => dirty > 0 || stale !== null || wanted !== known,
      );
      last = open
        .map(([kind, { wanted, known, failing }]) => `${known} of ${wanted} ${kind}, ${failing} fail`)
        .join('; ');
      return status.readiness.ready && isThere(status) && open.length === 0;
    } catch (error) {
      if (error instanceof AgentUnreachable) return false;
      throw error;
    }
  };
  const wait = { describe: 'everything in the kernel', deadlineMs: CONVERGE_DEADLINE_MS, intervalMs };
  await until(isConverged, wait).catch((cause: unknown) => {
    throw new Error(`not everything gets into the kernel: ${last || 'all that is wanted is there'}`, { cause });
  });
}

/** User and system time since its start, of the children that have ended, too. */
export async function cpuMsOf(pid: number | 'self'): Promise<number> {
  const { own, children } = await cpuTimesOf(pid);
  return own + children;
}

/** In milliseconds: of a process itself, and of its children that have ended (proc(5), /proc/PID/stat, fields 14 to 17). */
export async function cpuTimesOf(pid: number | 'self'): Promise<{ readonly own: number; readonly children: number }> {
  const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ') ?? [];
  const [user = 0, system = 0, childUser = 0, childSystem = 0] = fields.slice(11, 15).map(Number);
  return { own: (user + system) * MS_PER_TICK, children: (childUser + childSystem) * MS_PER_TICK };
}

export async function rssMibOf(pid: number): Promise<number> {
  const kib = /^VmRSS:\s+(\d+)/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1];
  return Number(kib) / 1024;
}

/** A list is at least one dump; changes need none. */
export function describeWork(before: AgentStatus, after: AgentStatus): string {
  const grown = (figure: 'lists' | 'changes') =>
    Object.entries(after.kernel.kinds).flatMap(([kind, status]) => {
      const grew = status[figure] - (before.kernel.kinds[kind as Kind]?.[figure] ?? 0);
      return grew > 0 ? [`${grew} of ${kind}`] : [];
    });
  return `writes: ${grown('changes').join(', ') || 'none'}; full lists: ${grown('lists').join(', ') || 'none'}`;
}

/** Of measureStarts, and of changes one at a time. */
export const AGENT_COLUMNS: readonly Column[] = [
  { heading: 'cold ms', figure: 'cold', share: 0.5, digits: 0 },
  { heading: 'CPU ms', figure: 'cold cpu', share: 0.5, digits: 0 },
  { heading: 'restart ms', figure: 'warm', share: 0.5, digits: 0 },
  { heading: 'change p50', figure: 'change', share: 0.5, digits: 1 },
  { heading: 'change p99', figure: 'change', share: 0.99, digits: 1 },
  { heading: 'CPU ms a change', figure: 'change cpu', share: 0.5, digits: 1 },
  { heading: 'RSS MiB', figure: 'rss', share: 0.5, digits: 0 },
];

interface Starts {
  readonly lab: TulleLab;
  readonly samples: Samples;
  readonly subject: string;
  readonly rounds: number;
  /** Whether the kernel has what it is to have. */
  readonly isThere: (status: AgentStatus) => boolean;
  /** How often to ask: that is work for the agent, too. */
  readonly pollMs?: number;
  readonly onRound: (round: number) => unknown;
}

export const agentPid = async ({ control }: TulleLab): Promise<number> =>
  (await control.status()).nodes[0]?.agent.pid as number;

/** Round by round, of the agent of the only node: from nothing to everything in the kernel, and a restart over that. */
export async function measureStarts({
  lab,
  samples,
  subject,
  rounds,
  isThere,
  pollMs,
  onRound,
}: Starts): Promise<void> {
  const { control } = lab;
  const node = lab.status.nodes[0] as NodeRef;
  for (let round = 0; round < rounds; round++) {
    await control.stopAgent(node.name);
    await execa(...programIn(node, [TULLE, 'uninstall', '--run-dir', RUN_DIR]));
    let startMs = performance.now();
    await control.startAgent(node.name);
    await untilConverged(node, isThere, pollMs);
    samples.add('cold', subject, round, [performance.now() - startMs]);
    samples.add('cold cpu', subject, round, [await cpuMsOf(await agentPid(lab))]);
    startMs = performance.now();
    await control.stopAgent(node.name);
    await control.startAgent(node.name);
    await untilConverged(node, isThere, pollMs);
    samples.add('warm', subject, round, [performance.now() - startMs]);
    await onRound(round);
  }
}

/** What the changes cost the agent, in samples, and what it did for them, in words. `change`: durations in ms. */
export async function measureChangeCost(
  { lab, samples, subject }: Pick<Starts, 'lab' | 'samples' | 'subject'>,
  change: () => Promise<readonly number[]>,
): Promise<string> {
  const node = lab.status.nodes[0] as NodeRef;
  const pid = await agentPid(lab);
  const [before, beforeMs] = [await statusOf(node), await cpuMsOf(pid)];
  const durations = await change();
  samples.add('change', subject, 0, durations);
  samples.add('change cpu', subject, 0, [((await cpuMsOf(pid)) - beforeMs) / durations.length]);
  return `${subject}: ${durations.length} changes: ${describeWork(before, await statusOf(node))}`;
}
