/**
 * An agent among thousands of Services that are nothing but objects of the lab's API: from nothing to everything in the
 * kernel, a restart over a kernel that is right already, one endpoint's change, memory.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import type { Family } from '../agent/model/ip.ts';
import type { NodeRef } from '../lab/node.ts';
import { movePhantomEndpoint, type PhantomServices } from '../lab/phantom-services.ts';
import { until } from '../lab/until.ts';
import { AGENT_COLUMNS, agentPid, measureChangeCost, measureStarts, programIn, rssMibOf } from './agent-figures.ts';
import { type Context, chosen, type Report } from './bench.ts';
import { startTulle, type TulleLab } from './places.ts';
import { Samples } from './samples.ts';
import { computeTable } from './table.ts';

type Phantoms = Omit<PhantomServices, 'families'>;

interface Subject {
  readonly name: string;
  readonly agentArgs: readonly string[];
  readonly services: Phantoms;
  /** In place of the one that was asked for. */
  readonly families?: readonly Family[];
}

const NODE = 'node-1';
/** Of these every Service has at least two a family: a line of the search and a chain, or a port and the rest of its address. */
const WRITTEN = ['chain-part', 'frontend'] as const;
const LAG_READER = join(import.meta.dirname, 'lag-reader.ts');
/** To ask ten times as often was a fifth of an agent's work among 10,000 Services. */
const POLL_MS = 200;
/**
 * Before an answer is looked for. A change takes some milliseconds and so does a page of metrics, so nobody asks while the
 * change may be at work; and the agent makes no other page within a second, so to ask much sooner reads the former one.
 */
const QUIET_MS = 500;
/** Of one change, with a page of metrics that is up to a second old. */
const CHANGE_DEADLINE_MS = 30_000;

const phantoms = (count: number, endpoints: number, external = 0): Phantoms => ({ count, endpoints, external });
const iptables = (backend: string) => ['--services-mode', 'iptables', '--iptables-backend', backend];
const ebpf = ['--services-mode', 'ebpf'];

export const AGENT_SUBJECTS: readonly Subject[] = [
  { name: 'agent ebpf 10000x10', agentArgs: ebpf, services: phantoms(10_000, 10, 200) },
  {
    name: 'agent ebpf dual-stack 10000x10',
    agentArgs: ebpf,
    services: phantoms(10_000, 10, 200),
    families: ['ipv4', 'ipv6'],
  },
  { name: 'agent ebpf 50000x2', agentArgs: ebpf, services: phantoms(50_000, 2) },
  { name: 'agent iptables nft 1000x10', agentArgs: iptables('nft'), services: phantoms(1000, 10, 20) },
  { name: 'agent iptables legacy 1000x10', agentArgs: iptables('legacy'), services: phantoms(1000, 10, 20) },
  { name: 'agent iptables legacy 10000x10', agentArgs: iptables('legacy'), services: phantoms(10_000, 10, 200) },
];

export async function benchAgents(context: Context): Promise<Report> {
  const { quick, family, rounds = quick ? 1 : 2 } = context.options;
  const samples = new Samples();
  const subjects = chosen(AGENT_SUBJECTS, context.options).map((subject) => (quick ? small(subject) : subject));
  const evidence: string[] = [];
  for (const [i, subject] of subjects.entries()) {
    context.progress(`${subject.name}: lab`);
    const { agentArgs, families = [family] } = subject;
    const lab = await startTulle(`services-${i}`, { nodes: 1, families, agentArgs });
    const services = { ...subject.services, families };
    const book = { samples, context, rounds, changes: quick ? 3 : 100 };
    evidence.push(await measure(lab, subject.name, services, book));
    await lab.control.stopAgent(NODE);
  }
  const names = subjects.map(({ name }) => name);
  const request = { subjects: names, reference: names[0] as string, columns: AGENT_COLUMNS };
  return {
    tables: [
      computeTable(samples, { title: `One agent among Services, ${family} unless it says otherwise`, ...request }),
    ],
    evidence,
  };
}

const small = ({ services, ...rest }: Subject): Subject => ({
  ...rest,
  services: { ...services, count: 50, external: 4 },
});

interface Book {
  readonly samples: Samples;
  readonly context: Context;
  readonly rounds: number;
  readonly changes: number;
}

async function measure(
  lab: TulleLab,
  name: string,
  services: PhantomServices,
  { samples, context, rounds, changes }: Book,
): Promise<string> {
  const node = lab.status.nodes[0] as NodeRef;
  await lab.control.loadPhantomServices(services);
  context.progress(`${name}: objects are there`);
  const written = 2 * services.count * services.families.length;
  await measureStarts({
    lab,
    samples,
    subject: name,
    rounds,
    isThere: ({ kernel: { kinds, behindMs } }) =>
      behindMs === 0 && WRITTEN.some((kind) => (kinds[kind]?.known ?? 0) >= written),
    pollMs: POLL_MS,
    onRound: (round) => context.progress(`${name}: round ${round + 1} of ${rounds}`),
  });
  const change = () => measureChanges(node, lab.control, services, Math.min(changes, services.count));
  const evidence = await measureChangeCost({ lab, samples, subject: name }, change);
  // At the end: an agent gives back what its start took.
  samples.add('rss', name, 0, [await rssMibOf(await agentPid(lab))]);
  return evidence;
}

/**
 * From the arrival of the event at the agent until the kernel has acknowledged the last write, as its own histogram says:
 * one change at a time, so that what its sum grows by is that change.
 */
async function measureChanges(
  node: NodeRef,
  control: TulleLab['control'],
  services: PhantomServices,
  changes: number,
): Promise<readonly number[]> {
  using reader = new LagReader(node);
  const durations: number[] = [];
  let before = await reader.read();
  for (let index = 0; index < changes; index++) {
    // Spread over all of them.
    await movePhantomEndpoint(control, services, Math.floor((index * services.count) / changes), 1);
    const isDone = async () => {
      // Not asked while it is at work: a page of metrics costs it more than a change.
      await delay(QUIET_MS);
      const now = await reader.read();
      return now.count > before.count && now;
    };
    const after = await until(isDone, { describe: 'the change', deadlineMs: CHANGE_DEADLINE_MS, intervalMs: 0 });
    durations.push(((after.seconds - before.seconds) * 1000) / (after.count - before.count));
    before = after;
  }
  return durations;
}

interface Lag {
  readonly count: number;
  readonly seconds: number;
}

/** See lag-reader.ts. */
class LagReader implements Disposable {
  readonly #child: ChildProcess;
  readonly #lines: Interface;

  constructor(node: NodeRef) {
    const [file, args] = programIn(node, [process.execPath, LAG_READER]);
    this.#child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#lines = createInterface({ input: this.#child.stdout as NonNullable<ChildProcess['stdout']> });
  }

  async read(): Promise<Lag> {
    const answered = once(this.#lines, 'line', { signal: AbortSignal.timeout(CHANGE_DEADLINE_MS) });
    this.#child.stdin?.write('\n');
    const [line] = (await answered) as [string];
    return JSON.parse(line) as Lag;
  }

  [Symbol.dispose](): void {
    this.#child.kill();
  }
}
