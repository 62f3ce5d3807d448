/**
 * What the number of Nodes costs an agent: from nothing to everything in the kernel, a restart over a kernel that is right
 * already, one Node's change on its way from the API to the kernel, and memory. The other Nodes are phantoms of the lab.
 */
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import type { AgentStatus } from '../agent/agent.ts';
import { AgentUnreachable, askAgent } from '../agent/commands/ask-agent.ts';
import type { Kind } from '../agent/model/items.ts';
import { inNode, type NodeRef, pathOnHost } from '../lab/node.ts';
import { createPhantoms, movePhantom } from '../lab/phantoms.ts';
import { until } from '../lab/until.ts';
import { TULLE } from '../lab/up.ts';
import type { Bench, Context, Report } from './bench.ts';
import { startTulle, type TulleLab } from './places.ts';
import { Samples } from './samples.ts';
import { type Column, computeTable } from './table.ts';

const NODE = 'node-1';
const RUN_DIR = '/run/tulle';
const CONVERGE_DEADLINE_MS = 120_000;
const CHANGE_DEADLINE_MS = 20_000;
/** Of the clock in /proc/PID/stat (sysconf(_SC_CLK_TCK), the same on all of Linux' architectures of today). */
const MS_PER_TICK = 10;

interface Plan {
  readonly counts: readonly number[];
  readonly rounds: number;
  readonly changes: number;
}

const FULL: Plan = { counts: [0, 1_000, 5_000], rounds: 5, changes: 40 };
const QUICK: Plan = { counts: [0, 50], rounds: 1, changes: 3 };

const COLUMNS: readonly Column[] = [
  { heading: 'cold ms', figure: 'cold', share: 0.5, digits: 0 },
  { heading: 'CPU ms', figure: 'cold cpu', share: 0.5, digits: 0 },
  { heading: 'restart ms', figure: 'warm', share: 0.5, digits: 0 },
  { heading: 'change p50', figure: 'change', share: 0.5, digits: 1 },
  { heading: 'change p99', figure: 'change', share: 0.99, digits: 1 },
  { heading: 'RSS MiB', figure: 'rss', share: 0.5, digits: 0 },
];

export const scale: Bench = {
  about: 'an agent among thousands of Nodes: start, restart, one change, memory',
  async run(context: Context): Promise<Report> {
    const plan = context.options.quick ? QUICK : FULL;
    const samples = new Samples();
    const evidence: string[] = [];
    const subjects: string[] = [];
    for (const count of plan.counts) {
      const subject = `${count} Nodes`;
      subjects.push(subject);
      context.progress(`${subject}: lab`);
      const lab = await startTulle(`scale-${count}`, { nodes: 1 });
      evidence.push(...(await measure(lab, count, plan, { samples, subject, context })));
    }
    const request = { subjects, reference: subjects[0] as string, columns: COLUMNS };
    return { tables: [computeTable(samples, { title: 'One agent among other Nodes', ...request })], evidence };
  },
};

interface Book {
  readonly samples: Samples;
  readonly subject: string;
  readonly context: Context;
}

async function measure(
  { control, status }: TulleLab,
  count: number,
  plan: Plan,
  { samples, subject, context }: Book,
): Promise<readonly string[]> {
  const node = status.nodes[0] as NodeRef;
  await createPhantoms(control, count);
  const pid = async () => (await control.status()).nodes[0]?.agent.pid as number;
  for (let round = 0; round < (context.options.rounds ?? plan.rounds); round++) {
    context.progress(`${subject}: round ${round + 1}`);
    await control.stopAgent(NODE);
    await execa(...programIn(node, [TULLE, 'uninstall', '--run-dir', RUN_DIR]));
    let startMs = performance.now();
    await control.startAgent(NODE);
    await untilConverged(node, count);
    samples.add('cold', subject, round, [performance.now() - startMs]);
    samples.add('cold cpu', subject, round, [await cpuMsOf(await pid())]);
    startMs = performance.now();
    await control.stopAgent(NODE);
    await control.startAgent(NODE);
    await untilConverged(node, count);
    samples.add('warm', subject, round, [performance.now() - startMs]);
    samples.add('rss', subject, round, [await rssMibOf(await pid())]);
  }
  if (count === 0) return [];
  const before = await statusOf(node);
  const changeMs = await measureChanges(node, control, Math.min(plan.changes, count));
  samples.add('change', subject, 0, changeMs);
  return [`${subject}: ${changeMs.length} changes: ${describeWork(before, await statusOf(node))}`];
}

/** From the call of the API to the notification of the kernel that the forwarding entry stands. */
async function measureChanges(node: NodeRef, control: TulleLab['control'], changes: number): Promise<number[]> {
  const [file, args] = programIn(node, ['stdbuf', '-oL', 'bridge', 'monitor', 'fdb']);
  const monitor = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const waiting = new Map<string, () => void>();
  createInterface({ input: monitor.stdout }).on('line', (line) => {
    const destination = /^(?!Deleted).* dst (\S+)/.exec(line)?.[1];
    if (destination !== undefined) waiting.get(destination)?.();
  });
  try {
    const move = (index: number, generation: number, onSeen: () => void) => {
      waiting.set(`100.${64 + generation}.0.${index}`, onSeen);
      return movePhantom(control, index, generation);
    };
    // The monitor says nothing of its own: a Node moves until one of the moves is heard of.
    let isHeard = false;
    let generation = 1;
    const isListening = async () => {
      if (!isHeard) await move(0, ++generation, () => (isHeard = true));
      return isHeard;
    };
    await until(isListening, { describe: 'the monitor to listen', deadlineMs: CHANGE_DEADLINE_MS, intervalMs: 100 });
    const durations: number[] = [];
    for (let index = 0; index < changes; index++) {
      const { promise: seen, resolve } = Promise.withResolvers<void>();
      const startMs = performance.now();
      await move(index, 1, resolve);
      await Promise.race([seen, failAfter(CHANGE_DEADLINE_MS)]);
      durations.push(performance.now() - startMs);
    }
    return durations;
  } finally {
    monitor.kill();
  }
}

async function failAfter(ms: number): Promise<never> {
  await new Promise((resolve) => setTimeout(resolve, ms).unref());
  throw new Error(`cannot measure a change: expected a forwarding entry within ${ms} ms, got none`);
}

/** A list is at least one dump; changes need none. */
function describeWork(before: AgentStatus, after: AgentStatus): string {
  const grown = (figure: 'lists' | 'changes') =>
    Object.entries(after.kernel.kinds).flatMap(([kind, status]) => {
      const grew = status[figure] - (before.kernel.kinds[kind as Kind]?.[figure] ?? 0);
      return grew > 0 ? [`${grew} of ${kind}`] : [];
    });
  return `writes: ${grown('changes').join(', ') || 'none'}; full lists: ${grown('lists').join(', ') || 'none'}`;
}

const programIn = (node: NodeRef, argv: readonly string[]): [string, string[]] => {
  const [file, ...args] = inNode(node, argv);
  return [file, args];
};

const statusOf = async (node: NodeRef): Promise<AgentStatus> =>
  (await askAgent(pathOnHost(node, RUN_DIR), 'status')) as AgentStatus;

async function untilConverged(node: NodeRef, count: number): Promise<void> {
  const isConverged = async () => {
    try {
      const { kernel, readiness } = await statusOf(node);
      const kinds = Object.values(kernel.kinds);
      const isThere = (kernel.kinds.fdb?.known ?? 0) >= count && readiness.ready;
      return (
        isThere && kinds.every(({ dirty, stale, wanted, known }) => dirty === 0 && stale === null && wanted === known)
      );
    } catch (error) {
      if (error instanceof AgentUnreachable) return false;
      throw error;
    }
  };
  await until(isConverged, { describe: 'everything in the kernel', deadlineMs: CONVERGE_DEADLINE_MS, intervalMs: 20 });
}

/** User and system time since its start (proc(5), /proc/PID/stat, fields 14 and 15). */
async function cpuMsOf(pid: number): Promise<number> {
  const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * MS_PER_TICK;
}

async function rssMibOf(pid: number): Promise<number> {
  const kib = /^VmRSS:\s+(\d+)/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1];
  return Number(kib) / 1024;
}
