/**
 * What a packet between two pods costs: Tulle's nodes beside nodes whose kernel is set up in flannel's shape, with the
 * same tunnel, the same wire and the same sizes, and raw links as the limit. All paths stand at the same time and are
 * visited in turn. Agents are stopped while it is measured: no packet needs them.
 */
import { cpus } from 'node:os';
import type { Family, IpAddress } from '../agent/model/ip.ts';
import { attachNode, buildFabric, MTU_BYTES, planAttachment } from '../lab/fabric.ts';
import { inNode, inPod, type NodeRef } from '../lab/node.ts';
import { type Bench, type Context, chosen, type Options, type Report, rotated } from './bench.ts';
import { compile } from './compile.ts';
import {
  addBridgedPod,
  addRawPair,
  applyKubeProxy,
  type FlannelBackend,
  type FlannelNode,
  shapeNode,
} from './flannel-shape.ts';
import { type Enter, type Exchanges, PathEnds, type Plan } from './path-ends.ts';
import { type Route, witness } from './path-witness.ts';
import { startPlainNode, startTulle } from './places.ts';
import { Samples } from './samples.ts';
import { type Column, computeTable } from './table.ts';

const FULL: Plan = { rounds: 9, seconds: 0.5, iperfSeconds: 2 };
const QUICK: Plan = { rounds: 1, seconds: 0.1, iperfSeconds: 1 };

/** Whether both pods are on one node. */
type Kind = 'same' | 'cross';

interface Path extends Route {
  readonly place: string;
  readonly kind: Kind;
  readonly ends: PathEnds;
}

interface Tools {
  readonly context: Context;
  readonly family: Family;
  readonly nb: string;
  /** A node on the segment of all plain nodes. */
  plainNode(name: string): Promise<{ readonly node: NodeRef; readonly address: IpAddress }>;
}

interface PlaceSpec {
  readonly name: string;
  start(tools: Tools): Promise<readonly Path[]>;
}

const RAW = 'raw';

const PLACES: readonly PlaceSpec[] = [
  { name: RAW, start: startRaw },
  ...(['vxlan', 'host-gw'] as const).flatMap((backend) => [
    { name: `flannel ${backend}`, start: (tools: Tools) => startFlannel(backend, tools) },
    ...(['bridge', 'routed'] as const).map((podLink) => ({
      name: `tulle ${backend} ${podLink}`,
      start: (tools: Tools) => startTullePaths(backend, podLink, tools),
    })),
  ]),
];

async function startRaw({ family, nb, plainNode }: Tools): Promise<readonly Path[]> {
  const [one, two] = [await plainNode('raw-1'), await plainNode('raw-2')];
  const address = await addRawPair(one.node, family, MTU_BYTES);
  const pod =
    (name: string): Enter =>
    (argv) =>
      inPod(one.node, name, argv);
  const node =
    (of: NodeRef): Enter =>
    (argv) =>
      inNode(of, argv);
  const same = { client: pod('left'), server: pod('right'), address };
  const cross = { client: node(one.node), server: node(two.node), address: two.address };
  return [
    { place: RAW, kind: 'same', nodes: [one.node], address, family, wire: ownWire, ends: await startEnds(same, nb) },
    {
      place: RAW,
      kind: 'cross',
      nodes: [one.node, two.node],
      address: two.address,
      family,
      wire: ownWire,
      ends: await startEnds(cross, nb),
    },
  ];
}

const startEnds = (ends: Parameters<typeof PathEnds.start>[0], nb: string) => PathEnds.start(ends, nb, cpus().length);

/** The plain nodes' segment is in this process's own network namespace. */
const ownWire: Enter = ([file = '', ...args]) => [file, ...args];

async function startFlannel(backend: FlannelBackend, { family, nb, plainNode }: Tools): Promise<readonly Path[]> {
  const flannelNode = async (number: number): Promise<FlannelNode> => ({
    ...(await plainNode(`${backend}-${number}`)),
    number,
    family,
    backend,
  });
  const [one, two] = [await flannelNode(1), await flannelNode(2)];
  await shapeNode(one, [two]);
  await shapeNode(two, [one]);
  await addBridgedPod(one, 'client', 2);
  const pod =
    ({ node }: FlannelNode, name: string): Enter =>
    (argv) =>
      inPod(node, name, argv);
  const pathTo = async (kind: Kind, to: FlannelNode, n: number): Promise<Path> => {
    const address = await addBridgedPod(to, 'server', n);
    const ends = await startEnds({ client: pod(one, 'client'), server: pod(to, 'server'), address }, nb);
    const nodes = kind === 'same' ? [one.node] : [one.node, two.node];
    return { place: `flannel ${backend}`, kind, nodes, address, family, wire: ownWire, ends };
  };
  return [await pathTo('same', one, 3), await pathTo('cross', two, 3)];
}

async function startTullePaths(
  backend: FlannelBackend,
  podLink: 'bridge' | 'routed',
  { context, family, nb }: Tools,
): Promise<readonly Path[]> {
  const agentArgs = ['--backend', backend, '--pod-link', podLink];
  const { control, status } = await startTulle(`${backend}-${podLink}`, { nodes: 2, families: [family], agentArgs });
  const [one, two] = status.nodes;
  if (!one || !two)
    throw new Error(`cannot measure ${backend}: expected a lab of two nodes, got ${status.nodes.length}`);
  const run = (name: string, node: NodeRef) => control.runPod({ namespace: 'default', name, node: node.name });
  const client = await run('client', one);
  const wire: Enter = (argv) => ['nsenter', '--target', String(status.supervisorPid), '--net', '--', ...argv];
  const pathTo = async (kind: Kind, node: NodeRef): Promise<Path> => {
    const pod = await run(`server-${kind}`, node);
    const address = pod.addresses[0] as IpAddress;
    const enter =
      (of: NodeRef, { netns }: typeof pod): Enter =>
      (argv) =>
        inPod(of, netns, argv);
    const ends = await startEnds({ client: enter(one, client), server: enter(node, pod), address }, nb);
    const nodes = kind === 'same' ? [one] : [one, two];
    return { place: `tulle ${backend} ${podLink}`, kind, nodes, address, family, wire, ends };
  };
  const paths = [await pathTo('same', one), await pathTo('cross', two)];
  for (const { name } of status.nodes) await control.stopAgent(name);
  if (context.options.kubeProxy) for (const node of status.nodes) await applyKubeProxy(node, family);
  return paths;
}

async function run(context: Context): Promise<Report> {
  const { options, scratch, signal, progress } = context;
  const { family } = options;
  const plan = planOf(options);
  const nb = await compile('nb', scratch, signal);
  const paths: Path[] = [];
  const shape = { families: [family], segments: 1 } as const;
  await buildFabric(shape, signal);
  let plainNodes = 0;
  const plainNode: Tools['plainNode'] = async (name) => {
    const attachment = planAttachment(plainNodes++, shape);
    const node = await startPlainNode(name, signal);
    await attachNode(node, attachment, signal);
    return { node, address: attachment.addresses[0] as IpAddress };
  };
  for (const { name, start } of chosen(PLACES, options)) {
    paths.push(...(await start({ context, family, nb, plainNode })));
    progress(`ready: ${name}`);
  }
  const evidence: string[] = [];
  for (const path of paths) evidence.push(`${path.place}, ${path.kind} node: ${await witness(path)}`);
  const samples = new Samples();
  for (let round = 0; round < plan.rounds; round++) {
    for (const path of rotated(paths, round)) await measure(path, plan, samples, round);
    progress(`round ${round + 1} of ${plan.rounds}`);
  }
  return { evidence, tables: tablesOf(samples, paths) };
}

function planOf({ quick, rounds }: Options): Plan {
  const plan = quick ? QUICK : FULL;
  return rounds === undefined ? plan : { ...plan, rounds };
}

const EXCHANGES: readonly Exchanges[] = ['rr', 'crr', 'udp', 'stream'];

async function measure({ place, kind, ends }: Path, plan: Plan, samples: Samples, round: number): Promise<void> {
  for (const what of EXCHANGES) {
    const { count, sent, us, cpuUs, p50Ns } = await ends.exchange(what, plan.seconds);
    const add = (figure: string, value: number) => samples.add(`${kind} ${what} ${figure}`, place, round, [value]);
    add('per second', count / (us / 1e6));
    add('per CPU second', count / (cpuUs / 1e6));
    if (what === 'crr') add('connect', p50Ns / 1000);
    if (what === 'udp') add('lost', ((sent - count) / sent) * 100);
  }
  samples.add(`${kind} iperf`, place, round, [(await ends.iperf(plan.iperfSeconds)).bits_per_second]);
}

function tablesOf(samples: Samples, paths: readonly Path[]): Report['tables'] {
  const groups = [
    ['same node', 'same', ({ place }: Path) => place === RAW || place.includes('vxlan'), 'flannel vxlan'],
    ['cross node, vxlan', 'cross', ({ place }: Path) => place === RAW || place.includes('vxlan'), 'flannel vxlan'],
    [
      'cross node, host-gw',
      'cross',
      ({ place }: Path) => place === RAW || place.includes('host-gw'),
      'flannel host-gw',
    ],
  ] as const;
  return groups.flatMap(([title, kind, belongs, reference]) => {
    const subjects = paths.filter((path) => path.kind === kind && belongs(path)).map(({ place }) => place);
    if (subjects.length === 0) return [];
    return (['per CPU second', 'per second'] as const).map((per) =>
      computeTable(samples, { title: `${title}, ${per}`, subjects, reference, columns: columnsOf(kind, per) }),
    );
  });
}

function columnsOf(kind: Kind, per: 'per CPU second' | 'per second'): readonly Column[] {
  const column = (heading: string, figure: string, digits: number, divisor = 1): Column => ({
    heading,
    figure: `${kind} ${figure}`,
    share: 0.5,
    digits,
    per: divisor,
  });
  return [
    column('RR', `rr ${per}`, 0),
    column('CRR', `crr ${per}`, 0),
    column('UDP packets', `udp ${per}`, 0),
    column('stream Gbit', `stream ${per}`, 2, 1e9 / 8),
    ...(per === 'per CPU second'
      ? []
      : [
          column('iperf3 Gbit', 'iperf', 2, 1e9),
          column('connect µs', 'crr connect', 1),
          column('UDP lost %', 'udp lost', 1),
        ]),
  ];
}

export const path: Bench = { about: 'packets between pods beside flannel and raw links', run };
