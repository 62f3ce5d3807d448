/**
 * What a pod's network costs the runtime: ADD and DEL of Tulle's executable and agent beside Debian's reference plugins,
 * each in a node of its own, executed as libcni executes them. Namespaces are made and dropped outside of the clock; what
 * a plugin leaves to the end of the namespace shows in `until gone`. No row calls loopback, which a runtime does for all.
 */
import { mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { readNetworkList } from '../lab/cni-client.ts';
import type { NodeRef } from '../lab/node.ts';
import { until } from '../lab/until.ts';
import { type Bench, type Context, chosen, type Options, type Report, rotated } from './bench.ts';
import { compile } from './compile.ts';
import { Launcher, type Plugin } from './launcher.ts';
import { startPlainNode, startTulle } from './places.ts';
import { Samples } from './samples.ts';
import { computeTable } from './table.ts';

const BIN_DIR = '/usr/lib/cni';
const TULLE_EXECUTABLE = '/opt/cni/bin/tulle';
const VERSION = { cniVersion: '1.0.0', name: 'bench' } as const;

/** Between two measured calls, for what the last one left to do. */
const PAUSE_MS = 5;
/** After namespaces were dropped: the kernel takes some 20 ms for a few. */
const QUIET_MS = 80;
const GONE_DEADLINE_MS = 20_000;

interface Plan {
  readonly warmUps: number;
  readonly singles: number;
  readonly mixes: number;
  readonly mixSize: number;
  readonly batches: number;
  readonly batchSize: number;
  readonly concurrency: number;
}

const FULL: Plan = { warmUps: 20, singles: 300, mixes: 10, mixSize: 40, batches: 7, batchSize: 50, concurrency: 8 };
const QUICK: Plan = { warmUps: 1, singles: 3, mixes: 1, mixSize: 5, batches: 1, batchSize: 8, concurrency: 8 };

/** Where a subject is called, how, and the process that works for it, if any. */
interface Place {
  readonly node: NodeRef;
  readonly chain: readonly Plugin[];
  readonly agentPid?: number | undefined;
}

interface SubjectSpec {
  readonly name: string;
  start(context: Context): Promise<Place>;
}

interface Subject extends Place {
  readonly name: string;
  readonly launcher: Launcher;
}

/** What flannel calls when it has read its configuration. */
const REFERENCE = 'bridge + host-local';

const SUBJECTS: readonly SubjectSpec[] = [
  { name: 'floor: /bin/true', start: (context) => plain(context, 'floor', () => [{ file: '/bin/true', config: {} }]) },
  tulle('tulle routed dual', 'routed', { families: ['ipv4', 'ipv6'] }),
  tulle('tulle routed ipv4', 'routed4', { families: ['ipv4'] }),
  tulle('tulle bridge dual', 'bridge', { families: ['ipv4', 'ipv6'], agentArgs: ['--pod-link', 'bridge'] }),
  peer(REFERENCE, 'bridge4', (dir) => [bridge(ipam(dir))]),
  peer('bridge + host-local on tmpfs', 'bridget', () => [bridge(ipam('/run/cni-networks'))]),
  peer('bridge + host-local dual', 'bridged', (dir) => [bridge(ipam(dir, 'fd84:1::/64'))]),
  peer('bridge + host-local + portmap', 'portmap', (dir) => [bridge(ipam(dir)), plugin('portmap', { snat: true })]),
  peer('ptp + host-local', 'ptp', (dir) => [plugin('ptp', { mtu: 1450, ipMasq: false, ipam: ipam(dir) })]),
];

function tulle(name: string, lab: string, options: Parameters<typeof startTulle>[1]): SubjectSpec {
  const start = async () => {
    const [node] = (await startTulle(lab, { nodes: 1, ...options })).status.nodes;
    const list = node && (await readNetworkList(node));
    if (!list) throw new Error(`cannot measure ${name}: expected a node with a conflist, got none`);
    const runtimeConfig = { 'io.kubernetes.cri.pod-annotations': {} };
    const { capabilities: _, ...own } = list.plugins[0] ?? { type: 'tulle' };
    const config = { ...own, ...VERSION, name: list.name, runtimeConfig };
    return { node, chain: [{ file: TULLE_EXECUTABLE, config }], agentPid: node.agent.pid };
  };
  return { name, start };
}

function peer(name: string, node: string, chainOf: (dataDir: string) => readonly Plugin[]): SubjectSpec {
  return { name, start: (context) => plain(context, node, chainOf) };
}

async function plain({ scratch, signal }: Context, name: string, chainOf: (dataDir: string) => readonly Plugin[]) {
  const dataDir = join(scratch, name);
  await mkdir(dataDir);
  return { node: await startPlainNode(name, signal), chain: chainOf(dataDir) };
}

const plugin = (type: string, config: Readonly<Record<string, unknown>>): Plugin => ({
  file: join(BIN_DIR, type),
  config: { type, ...VERSION, ...config },
});

/** The settings that flannel delegates with. */
const bridge = (hostLocal: object): Plugin =>
  plugin('bridge', {
    bridge: 'cni0',
    mtu: 1450,
    hairpinMode: true,
    isGateway: true,
    isDefaultGateway: true,
    ipMasq: false,
    ipam: hostLocal,
  });

const ipam = (dataDir: string, ...more: readonly string[]): object => ({
  type: 'host-local',
  dataDir,
  ranges: ['10.84.1.0/24', ...more].map((subnet) => [{ subnet }]),
  routes: [{ dst: '10.84.0.0/16' }],
});

async function run(context: Context): Promise<Report> {
  const { options, scratch, signal, progress } = context;
  const plan = planOf(options);
  const program = await compile('cni-exec', scratch, signal);
  const subjects: Subject[] = [];
  for (const { name, start } of chosen(SUBJECTS, options)) {
    const place = await start(context);
    subjects.push({ name, ...place, launcher: new Launcher(program, place.node, place.chain) });
    progress(`ready: ${name}`);
  }
  const evidence = await gatherEvidence(subjects);
  const samples = new Samples();
  await measureSingles(subjects, plan, samples, progress);
  await measureMixes(subjects, plan, samples, progress);
  await measureBatches(subjects, plan, samples, progress);
  return { evidence, tables: tablesOf(samples, subjects, plan) };
}

function planOf({ quick, rounds }: Options): Plan {
  const plan = quick ? QUICK : FULL;
  return rounds === undefined ? plan : { ...plan, singles: rounds };
}

type Progress = Context['progress'];

async function measureSingles(subjects: readonly Subject[], plan: Plan, samples: Samples, progress: Progress) {
  for (let round = -plan.warmUps; round < plan.singles; round++) {
    const inTurn = rotated(subjects, round + plan.warmUps);
    for (const { launcher } of inTurn) await launcher.create(0, 1);
    await delay(PAUSE_MS);
    for (const verb of ['ADD', 'DEL'] as const) {
      for (const { name, launcher, agentPid } of inTurn) {
        const agentBeforeUs = await cpuUsOf(agentPid);
        const { us, cpuUs } = await launcher.call(verb, 0, 1);
        await delay(PAUSE_MS);
        if (round < 0) continue;
        samples.add(verb, name, round, us);
        samples.add(`${verb} cpu`, name, round, [(cpuUs[0] as number) + (await cpuUsOf(agentPid)) - agentBeforeUs]);
      }
    }
    for (const { launcher } of inTurn) await launcher.end(0, 1);
    await delay(QUIET_MS);
    if (round % 50 === 49) progress(`one pod at a time: round ${round + 1} of ${plan.singles}`);
  }
}

/** ADDs of one half of the pods while the other half is deleted. */
async function measureMixes(subjects: readonly Subject[], plan: Plan, samples: Samples, progress: Progress) {
  const { mixSize: half, concurrency } = plan;
  for (let round = 0; round < plan.mixes; round++) {
    for (const { name, node, launcher } of rotated(subjects, round)) {
      await launcher.create(0, 2 * half);
      await launcher.call('ADD', half, 2 * half, concurrency);
      await delay(QUIET_MS);
      const { us, others } = await launcher.mix([0, half], [half, 2 * half]);
      samples.add('ADD beside DELs', name, round, us);
      samples.add('DELs beside', name, round, [others]);
      await removeAll(
        launcher,
        node,
        [
          [0, half],
          [half + others, 2 * half],
        ],
        concurrency,
      );
    }
    progress(`ADD beside DELs: round ${round + 1} of ${plan.mixes}`);
  }
}

type Range = readonly [first: number, end: number];

async function removeAll(launcher: Launcher, node: NodeRef, ranges: readonly Range[], threads: number): Promise<void> {
  for (const [first, end] of ranges) {
    await launcher.call('DEL', first, end, threads);
    await launcher.end(first, end);
  }
  await gone(node);
  await delay(QUIET_MS);
}

async function measureBatches(subjects: readonly Subject[], plan: Plan, samples: Samples, progress: Progress) {
  const { batchSize: size, concurrency } = plan;
  for (let round = 0; round < plan.batches; round++) {
    for (const { name, node, launcher } of rotated(subjects, round)) {
      await launcher.create(0, size);
      await delay(QUIET_MS);
      samples.add('batch ADD', name, round, [(await launcher.call('ADD', 0, size, concurrency)).wallUs]);
      await delay(QUIET_MS);
      const startMs = performance.now();
      samples.add('batch DEL', name, round, [(await launcher.call('DEL', 0, size, concurrency)).wallUs]);
      await launcher.end(0, size);
      await gone(node);
      samples.add('batch gone', name, round, [(performance.now() - startMs) * 1000]);
      await delay(2 * QUIET_MS);
    }
    progress(`${size} pods at once: round ${round + 1} of ${plan.batches}`);
  }
}

/** CPU time that a process's threads have had so far (proc_pid_schedstat); 0 without a process. */
async function cpuUsOf(pid: number | undefined): Promise<number> {
  if (pid === undefined) return 0;
  const tasks = await readdir(`/proc/${pid}/task`);
  const nanoseconds = await Promise.all(
    tasks.map(async (task) => Number.parseInt(await readFile(`/proc/${pid}/task/${task}/schedstat`, 'utf8'), 10)),
  );
  return nanoseconds.reduce((sum, value) => sum + value, 0) / 1000;
}

/** Resolves when no pod's link is left in the node. */
const gone = (node: NodeRef): Promise<true> =>
  until(async () => (await podLinks(node)).length === 0 || undefined, {
    describe: `the pod links of ${node.name} to be gone`,
    deadlineMs: GONE_DEADLINE_MS,
    intervalMs: 2,
  });

async function podLinks({ pid }: NodeRef): Promise<readonly string[]> {
  const text = await readFile(`/proc/${pid}/net/dev`, 'utf8');
  return [...text.matchAll(/^ *((?:tl|veth)[0-9a-f]+):/gm)].map(([, name]) => name as string);
}

/** Each subject makes a pod link where it should, and takes it away again. */
async function gatherEvidence(subjects: readonly Subject[]): Promise<readonly string[]> {
  const evidence: string[] = [];
  for (const { name, node, launcher } of subjects) {
    await launcher.create(0, 3);
    await launcher.call('ADD', 0, 3);
    const links = await podLinks(node);
    await removeAll(launcher, node, [[0, 3]], 1);
    if (links.length !== 3 && !name.startsWith('floor'))
      throw new Error(`cannot measure ${name}: expected 3 pod links after 3 ADDs, got ${links.join(', ') || 'none'}`);
    evidence.push(`${name}: ${links.length} pod links after 3 ADDs (${links.join(' ') || 'none'}), 0 after 3 DELs`);
  }
  return evidence;
}

function tablesOf(samples: Samples, subjects: readonly Subject[], plan: Plan): Report['tables'] {
  const ms = { digits: 2, per: 1000 } as const;
  const names = subjects.map(({ name }) => name);
  const reference = names.includes(REFERENCE) ? REFERENCE : (names[0] as string);
  const single = (figure: string) => [
    { heading: `${figure} p50`, figure, share: 0.5, ...ms },
    { heading: `${figure} p99`, figure, share: 0.99, ...ms },
  ];
  const cpu = (verb: string) => ({ heading: `${verb} CPU p50`, figure: `${verb} cpu`, share: 0.5, ...ms });
  const batch = (heading: string, figure: string) => ({ heading, figure, share: 0.5, ...ms, digits: 0 });
  return [
    computeTable(samples, {
      title: `One pod at a time, ms, exec to exit, n = ${plan.singles}; CPU: of all processes, the agent's too; ADD beside DELs: up to ${plan.mixes * plan.mixSize}`,
      subjects: names,
      reference,
      columns: [
        ...single('ADD'),
        cpu('ADD'),
        ...single('DEL'),
        cpu('DEL'),
        ...single('ADD beside DELs'),
        { heading: 'DELs beside', figure: 'DELs beside', share: 0.5, digits: 0 },
      ],
    }),
    computeTable(samples, {
      title: `${plan.batchSize} pods, ${plan.concurrency} at a time, wall ms, medians of ${plan.batches} rounds`,
      subjects: names,
      reference,
      columns: [
        batch('ADD', 'batch ADD'),
        batch('DEL', 'batch DEL'),
        batch('until gone (DEL, end of the namespaces, no link left)', 'batch gone'),
      ],
    }),
  ];
}

export const cni: Bench = { about: 'ADD and DEL beside the reference CNI plugins', run };
