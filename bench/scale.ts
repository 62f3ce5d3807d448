/**
 * What the number of Nodes costs an agent: from nothing to everything in the kernel, a restart over a kernel that is right
 * already, one Node's change on its way from the API to the kernel, and memory. The other Nodes are phantoms of the lab.
 */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import type { NodeRef } from '../lab/node.ts';
import { createPhantoms, movePhantom } from '../lab/phantoms.ts';
import { until } from '../lab/until.ts';
import { AGENT_COLUMNS, agentPid, measureChangeCost, measureStarts, programIn, rssMibOf } from './agent-figures.ts';
import type { Bench, Context, Report } from './bench.ts';
import { startTulle, type TulleLab } from './places.ts';
import { Samples } from './samples.ts';
import { computeTable } from './table.ts';

const CHANGE_DEADLINE_MS = 20_000;
/** An agent gives back what its start took in the first quiet second. */
const REST_MS = 3_000;

interface Plan {
  readonly counts: readonly number[];
  readonly rounds: number;
  readonly changes: number;
}

const FULL: Plan = { counts: [0, 1_000, 5_000], rounds: 5, changes: 40 };
const QUICK: Plan = { counts: [0, 50], rounds: 1, changes: 3 };

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
    const request = { subjects, reference: subjects[0] as string, columns: AGENT_COLUMNS };
    return { tables: [computeTable(samples, { title: 'One agent among other Nodes', ...request })], evidence };
  },
};

interface Book {
  readonly samples: Samples;
  readonly subject: string;
  readonly context: Context;
}

async function measure(
  lab: TulleLab,
  count: number,
  plan: Plan,
  { samples, subject, context }: Book,
): Promise<readonly string[]> {
  await createPhantoms(lab.control, count);
  await measureStarts({
    lab,
    samples,
    subject,
    rounds: context.options.rounds ?? plan.rounds,
    isThere: ({ kernel }) => (kernel.kinds.fdb?.known ?? 0) >= count,
    async onRound(round) {
      await delay(REST_MS);
      samples.add('rss', subject, round, [await rssMibOf(await agentPid(lab))]);
      context.progress(`${subject}: round ${round + 1}`);
    },
  });
  if (count === 0) return [];
  const node = lab.status.nodes[0] as NodeRef;
  const change = () => measureChanges(node, lab.control, Math.min(plan.changes, count));
  return [await measureChangeCost({ lab, samples, subject }, change)];
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
