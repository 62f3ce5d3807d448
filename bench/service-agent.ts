/**
 * An agent among thousands of Services that are nothing but objects of the lab's API: from nothing to everything in the
 * kernel, a restart over a kernel that is right already, one endpoint's change, memory.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { execa } from 'execa';
import type { AgentStatus } from '../agent/agent.ts';
import type { NodeRef } from '../lab/node.ts';
import { movePhantomEndpoint, type PhantomServices } from '../lab/phantom-services.ts';
import { until } from '../lab/until.ts';
import { TULLE } from '../lab/up.ts';
import { cpuMsOf, describeWork, programIn, RUN_DIR, rssMibOf, statusOf, untilConverged } from './agent-figures.ts';
import { type Context, chosen, type Report } from './bench.ts';
import { startTulle, type TulleLab } from './places.ts';
import { Samples } from './samples.ts';
import { type Column, computeTable } from './table.ts';

interface Subject {
  readonly name: string;
  readonly agentArgs: readonly string[];
  readonly services: PhantomServices;
}

const NODE = 'node-1';
/** Of these every Service has at least two: a line of the search and a chain, or a port and the rest of its address. */
const WRITTEN = ['chain-part', 'frontend'] as const;
const LAG_READER = join(import.meta.dirname, 'lag-reader.ts');
/** To ask ten times as often was a fifth of an agent's work among 10,000 Services. */
const POLL_MS = 200;
const QUIET_MS = 500;
/** Of one change, with a page of metrics that is up to a second old. */
const CHANGE_DEADLINE_MS = 30_000;

const phantoms = (count: number, endpoints: number, external = 0): PhantomServices => ({
  count,
  endpoints,
  external,
  families: ['ipv4'],
});
const iptables = (backend: string) => ['--services-mode', 'iptables', '--iptables-backend', backend];
const ebpf = ['--services-mode', 'ebpf'];

export const AGENT_SUBJECTS: readonly Subject[] = [
  { name: 'agent ebpf 10000x10', agentArgs: ebpf, services: phantoms(10_000, 10, 200) },
  { name: 'agent ebpf 50000x2', agentArgs: ebpf, services: phantoms(50_000, 2) },
  { name: 'agent iptables nft 1000x10', agentArgs: iptables('nft'), services: phantoms(1000, 10, 20) },
  { name: 'agent iptables legacy 1000x10', agentArgs: iptables('legacy'), services: phantoms(1000, 10, 20) },
  { name: 'agent iptables legacy 10000x10', agentArgs: iptables('legacy'), services: phantoms(10_000, 10, 200) },
];

const COLUMNS: readonly Column[] = [
  { heading: 'cold ms', figure: 'cold', share: 0.5, digits: 0 },
  { heading: 'CPU ms', figure: 'cold cpu', share: 0.5, digits: 0 },
  { heading: 'restart ms', figure: 'warm', share: 0.5, digits: 0 },
  { heading: 'change p50', figure: 'change', share: 0.5, digits: 1 },
  { heading: 'change p99', figure: 'change', share: 0.99, digits: 1 },
  { heading: 'CPU ms a change', figure: 'change cpu', share: 0.5, digits: 1 },
  { heading: 'RSS MiB', figure: 'rss', share: 0.5, digits: 0 },
];

export async function benchAgents(context: Context): Promise<Report> {
  const { quick, rounds = quick ? 1 : 2 } = context.options;
  const samples = new Samples();
  const subjects = chosen(AGENT_SUBJECTS, context.options).map((subject) => (quick ? small(subject) : subject));
  const evidence: string[] = [];
  for (const [i, subject] of subjects.entries()) {
    context.progress(`${subject.name}: lab`);
    const lab = await startTulle(`services-${i}`, { nodes: 1, families: ['ipv4'], agentArgs: subject.agentArgs });
    evidence.push(...(await measure(lab, subject, { samples, context, rounds, changes: quick ? 3 : 100 })));
    await lab.control.stopAgent(NODE);
  }
  const names = subjects.map(({ name }) => name);
  const request = { subjects: names, reference: names[0] as string, columns: COLUMNS };
  return { tables: [computeTable(samples, { title: 'One agent among Services', ...request })], evidence };
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
  { control, status }: TulleLab,
  { name, services }: Subject,
  { samples, context, rounds, changes }: Book,
): Promise<readonly string[]> {
  const node = status.nodes[0] as NodeRef;
  await control.loadPhantomServices(services);
  context.progress(`${name}: objects are there`);
  const pid = async () => (await control.status()).nodes[0]?.agent.pid as number;
  const isThere = ({ kernel: { kinds, behindMs } }: AgentStatus) =>
    behindMs === 0 && WRITTEN.some((kind) => (kinds[kind]?.known ?? 0) >= 2 * services.count);
  for (let round = 0; round < rounds; round++) {
    await control.stopAgent(NODE);
    await execa(...programIn(node, [TULLE, 'uninstall', '--run-dir', RUN_DIR]));
    let startMs = performance.now();
    await control.startAgent(NODE);
    await untilConverged(node, isThere, POLL_MS);
    samples.add('cold', name, round, [performance.now() - startMs]);
    samples.add('cold cpu', name, round, [await cpuMsOf(await pid())]);
    startMs = performance.now();
    await control.stopAgent(NODE);
    await control.startAgent(NODE);
    await untilConverged(node, isThere, POLL_MS);
    samples.add('warm', name, round, [performance.now() - startMs]);
    context.progress(`${name}: round ${round + 1} of ${rounds}`);
  }
  const before = await statusOf(node);
  const cpuMs = await cpuMsOf(await pid());
  const durations = await measureChanges(node, control, services, Math.min(changes, services.count));
  samples.add('change', name, 0, durations);
  // At the end: an agent gives back what its start took.
  samples.add('rss', name, 0, [await rssMibOf(await pid())]);
  samples.add('change cpu', name, 0, [((await cpuMsOf(await pid())) - cpuMs) / durations.length]);
  return [`${name}: ${durations.length} changes: ${describeWork(before, await statusOf(node))}`];
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
