/**
 * What a tunnel in user space costs: Tulle's backend `tun` in all its shapes, beside a proxy that moves one packet at a
 * time (flannel's `udp`, tun-proxy.c), beside VXLAN, and with plain routes as the limit. All paths stand at the same
 * time and are visited in turn.
 */
import { writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { join } from 'node:path';
import type { Family, IpAddress } from '../agent/model/ip.ts';
import { attachNode, buildFabric, planAttachment } from '../lab/fabric.ts';
import { inNode, inPod, type NodeRef } from '../lab/node.ts';
import { until } from '../lab/until.ts';
import { DEFAULT_OPTIONS } from '../lab/up.ts';
import { rssMibOf } from './agent-figures.ts';
import { type Bench, type Context, chosen, type Report, rotated } from './bench.ts';
import { compile } from './compile.ts';
import { addBridgedPod, applyKubeProxy, type FlannelNode, podCidr, shapeNode, TUN_DEVICE } from './flannel-shape.ts';
import { type Enter, type Exchanges, PathEnds, type Plan, startServer } from './path-ends.ts';
import { captured } from './path-witness.ts';
import { startPlainNode, startTulle } from './places.ts';
import { Samples } from './samples.ts';
import { type Column, computeTable, type Table } from './table.ts';
import { confine, cpuSecondsOf, lagOf } from './tun-figures.ts';
import { withLag } from './tun-lag.ts';
import { judge, PROXY } from './tun-targets.ts';

const FULL: Plan = { rounds: 7, seconds: 0.5, iperfSeconds: 2 };
const QUICK: Plan = { rounds: 1, seconds: 0.2, iperfSeconds: 1 };
const STREAMS = 4;
const TUN_PORT = 8285;
const AGREE_DEADLINE_MS = 20_000;
const SECRET_BYTES = 32;

interface Path {
  readonly place: string;
  readonly nodes: readonly NodeRef[];
  readonly ends: PathEnds;
  /** Enters the namespace of the bridge that joins the nodes. */
  readonly wire: Enter;
  readonly family: Family;
  /** What its packets look like on the wire. */
  readonly expected: Look;
  /** Those that carry packets: none where the kernel does. */
  readonly agents: readonly { readonly node: NodeRef; readonly pid: number }[];
}

/** Whether packets use the tunnel's port, are sealed, and are cut by IP. */
interface Look {
  readonly tunnelled: boolean;
  readonly sealed: boolean;
  readonly fragmented: boolean;
}

interface Tools {
  readonly context: Context;
  readonly nb: string;
  readonly secretFile: string;
  plainNode(name: string): Promise<{ readonly node: NodeRef; readonly address: IpAddress }>;
}

interface PlaceSpec {
  readonly name: string;
  start(tools: Tools): Promise<Path>;
}

const KERNEL: Look = { tunnelled: false, sealed: false, fragmented: false };
const BARE: Look = { ...KERNEL, tunnelled: true };

const PLACES: readonly PlaceSpec[] = [
  { name: PROXY, start: startProxy },
  ...['none', 'aes-gcm', 'chacha20-poly1305'].flatMap((encryption) =>
    ['segments', 'whole'].map((carriage) => tunPlace(carriage, encryption)),
  ),
  ...['vxlan', 'host-gw'].map((name) => ({
    name,
    start: (tools: Tools) => startLab({ name, agentArgs: ['--backend', name], expected: KERNEL }, tools),
  })),
];

function tunPlace(carriage: string, encryption: string): PlaceSpec {
  const sealed = encryption !== 'none';
  const name = ['tun', ...(sealed ? [encryption] : []), carriage].join(' ');
  const expected: Look = { tunnelled: true, sealed, fragmented: carriage === 'whole' };
  const args = ['--backend', 'tun', '--tun-carriage', carriage, '--tun-encryption', encryption];
  return {
    name,
    start: (tools) => {
      const agentArgs = [...args, ...(sealed ? ['--tun-secret-file', tools.secretFile] : [])];
      return startLab({ name, agentArgs, expected }, tools);
    },
  };
}

const LAST_CPU = cpus().length - 1;
const ALL_CPUS = `0-${LAST_CPU}`;

const startEnds = (ends: Parameters<typeof PathEnds.start>[0], nb: string) => PathEnds.start(ends, nb, cpus().length);

const podOf =
  (node: NodeRef, netns: string): Enter =>
  (argv) =>
    inPod(node, netns, argv);

async function startProxy({ context, nb, plainNode }: Tools): Promise<Path> {
  const { family } = context.options;
  const flannelNode = async (number: number): Promise<FlannelNode> => ({
    ...(await plainNode(`udp-${number}`)),
    number,
    family,
    backend: 'udp',
  });
  const pair = [await flannelNode(1), await flannelNode(2)] as const;
  const program = await compile('tun-proxy', context.scratch, context.signal);
  for (const [own, peer] of [pair, pair.toReversed() as unknown as typeof pair]) {
    await shapeNode(own, [peer]);
    const route = `${podCidr(peer)}=${peer.address}`;
    await startServer(inNode(own.node, [program, TUN_DEVICE, own.address, String(TUN_PORT), route]));
  }
  const [one, two] = pair;
  await addBridgedPod(one, 'client', 2);
  const address = await addBridgedPod(two, 'server', 2);
  const ends = await startEnds({ client: podOf(one.node, 'client'), server: podOf(two.node, 'server'), address }, nb);
  const wire: Enter = ([file = '', ...args]) => [file, ...args];
  return { place: PROXY, nodes: [one.node, two.node], ends, wire, family, expected: BARE, agents: [] };
}

interface LabSpec {
  readonly name: string;
  readonly agentArgs: readonly string[];
  readonly expected: Look;
}

/** Agents that no packet needs are stopped while it is measured. */
async function startLab({ name, agentArgs, expected }: LabSpec, { context, nb }: Tools): Promise<Path> {
  const { family, kubeProxy } = context.options;
  const agentCommand = withLag(DEFAULT_OPTIONS.agentCommand);
  const options = { nodes: 2, families: [family], agentArgs, agentCommand };
  const { control, status } = await startTulle(name.replaceAll(' ', '-'), options);
  const { nodes, supervisorPid } = status;
  const [one, two] = nodes;
  if (!one || !two) throw new Error(`cannot measure ${name}: expected a lab of two nodes, got ${nodes.length}`);
  const run = (pod: string, node: NodeRef) => control.runPod({ namespace: 'default', name: pod, node: node.name });
  const [client, server] = [await run('client', one), await run('server', two)];
  const address = server.addresses[0] as IpAddress;
  const ends = await startEnds({ client: podOf(one, client.netns), server: podOf(two, server.netns), address }, nb);
  const wire: Enter = (argv) => ['nsenter', '--target', String(supervisorPid), '--net', '--', ...argv];
  if (!expected.tunnelled) for (const node of nodes) await control.stopAgent(node.name);
  if (kubeProxy) for (const node of nodes) await applyKubeProxy(node, family);
  const agents = expected.tunnelled ? nodes.map((node) => ({ node, pid: node.agent.pid as number })) : [];
  return { place: name, nodes, ends, wire, family, expected, agents };
}

async function run(context: Context): Promise<Report> {
  const { options, scratch, signal, progress } = context;
  const plan = { ...(options.quick ? QUICK : FULL), ...(options.rounds !== undefined && { rounds: options.rounds }) };
  const shape = { families: [options.family], segments: 1 } as const;
  await buildFabric(shape, signal);
  let plainNodes = 0;
  const plainNode: Tools['plainNode'] = async (name) => {
    const attachment = planAttachment(plainNodes++, shape);
    const node = await startPlainNode(name, signal);
    await attachNode(node, attachment, signal);
    return { node, address: attachment.addresses[0] as IpAddress };
  };
  const secretFile = join(scratch, 'secret');
  await writeFile(secretFile, crypto.getRandomValues(Buffer.alloc(SECRET_BYTES)).toString('hex'), { mode: 0o600 });
  const tools = { context, nb: await compile('nb', scratch, signal), secretFile, plainNode };
  const paths: Path[] = [];
  for (const { name, start } of chosen(PLACES, options)) {
    paths.push(await start(tools));
    progress(`ready: ${name}`);
  }
  const evidence: string[] = [];
  for (const path of paths) evidence.push(await witness(path, signal));
  const samples = new Samples();
  for (let round = 0; round < plan.rounds; round++) {
    for (const path of rotated(paths, round)) await measure(path, plan, samples, round);
    progress(`round ${round + 1} of ${plan.rounds}`);
  }
  return { evidence, tables: tablesOf(samples, paths), verdicts: judge(samples) };
}

/** In the language of pcap-filter(7), which reaches into UDP over IPv4 only: the first byte of a datagram, a fragment. */
const WIRE = {
  ipv4: { type: 'ip[28] & 15', isFragment: 'ip[6:2] & 0x3fff != 0' },
  ipv6: { type: 'ip6[48] & 15', isFragment: 'ip6[6] = 44' },
} as const satisfies Record<Family, unknown>;
/** Of the tunnel's wire format. */
const SEALED = 1;

interface Seen {
  readonly tunnelled: number;
  readonly sealed: number;
  readonly fragmented: number;
}

/** Small exchanges show whether the tunnel's port is used and data is sealed, a stream whether IP cuts it. */
async function lookAt(path: Path): Promise<Seen> {
  const { type, isFragment } = WIRE[path.family];
  const port = `udp port ${TUN_PORT}`;
  return {
    tunnelled: await captured(path, port),
    sealed: await captured(path, `${port} and ${type} = ${SEALED}`),
    fragmented: await captured(path, isFragment, 'stream'),
  };
}

/** Resolves when the wire shows what the place is called, which peers may have to agree on first. Rejects if it does not. */
async function witness(path: Path, signal: AbortSignal): Promise<string> {
  let seen: Seen | undefined;
  const describe = `packets of ${path.place}: ${JSON.stringify(path.expected)}`;
  const isAsExpected = async () => {
    const now = await lookAt(path);
    seen = now;
    return (Object.keys(now) as (keyof Seen)[]).every((key) => now[key] > 0 === path.expected[key]);
  };
  try {
    await until(isAsExpected, { describe, deadlineMs: AGREE_DEADLINE_MS, signal });
  } catch (cause) {
    throw new Error(`cannot measure ${path.place}: expected ${describe}, got ${JSON.stringify(seen)}`, { cause });
  }
  const { tunnelled, sealed, fragmented } = seen as unknown as Seen;
  return `${path.place}: ${tunnelled} packets of port ${TUN_PORT}, in as many exchanges ${sealed} sealed, in a stream ${fragmented} fragments`;
}

const EXCHANGES: readonly Exchanges[] = ['rr', 'crr', 'udp'];

async function measure(path: Path, plan: Plan, samples: Samples, round: number): Promise<void> {
  const { place, ends, nodes, agents } = path;
  const add = (figure: string, value: number) => samples.add(figure, place, round, [value]);
  for (const [where, list] of [
    ['one', String(LAST_CPU)],
    ['all', ALL_CPUS],
  ] as const) {
    await confine(nodes, list);
    for (const what of EXCHANGES) {
      const before = await cpuSecondsOf(nodes);
      const { count, sent, us, p50Ns, p99Ns } = await ends.exchange(what, plan.seconds);
      add(`${where} ${what}`, count / (us / 1e6));
      add(`${where} ${what} cpu`, ((await cpuSecondsOf(nodes)) - before) / (count / 1e6));
      if (what === 'udp') add(`${where} udp lost`, ((sent - count) / sent) * 100);
      if (what === 'rr') add(`${where} rr p50`, p50Ns / 1000);
      if (what === 'rr') add(`${where} rr p99`, p99Ns / 1000);
    }
  }
  for (const { node } of agents) await lagOf(node);
  const before = await cpuSecondsOf(nodes);
  const { bytes, bits_per_second } = await ends.iperf(plan.iperfSeconds);
  add('stream', bits_per_second);
  add('cpu', ((await cpuSecondsOf(nodes)) - before) / (bytes / 1e9));
  add('streams', (await ends.iperf(plan.iperfSeconds, STREAMS)).bits_per_second);
  for (const { node, pid } of agents) {
    const { p50Ms, p99Ms, maxMs } = await lagOf(node);
    samples.add('lag p50', place, round, [p50Ms]);
    samples.add('lag p99', place, round, [p99Ms]);
    samples.add('lag max', place, round, [maxMs]);
    samples.add('rss', place, round, [await rssMibOf(pid)]);
  }
}

const column = (heading: string, figure: string, digits: number, { per = 1, share = 0.5 } = {}): Column => ({
  heading,
  figure,
  share,
  digits,
  per,
});

const small = (where: 'one' | 'all'): readonly Column[] => [
  column('RR', `${where} rr`, 0),
  column('RR p50 µs', `${where} rr p50`, 1),
  column('RR p99 µs', `${where} rr p99`, 1),
  column('RR CPU µs', `${where} rr cpu`, 1),
  column('CRR', `${where} crr`, 0),
  column('CRR CPU µs', `${where} crr cpu`, 1),
  column('UDP packets received', `${where} udp`, 0),
  column('UDP CPU µs', `${where} udp cpu`, 2),
  column('UDP lost %', `${where} udp lost`, 1),
];

const STREAM_COLUMNS: readonly Column[] = [
  column('TCP 1 Gbit', 'stream', 2, { per: 1e9 }),
  column(`TCP ${STREAMS} Gbit`, 'streams', 2, { per: 1e9 }),
  column('CPU s/GB', 'cpu', 2),
];

/** The worst of both agents and all rounds, but for the first. */
const AGENT_COLUMNS: readonly Column[] = [
  column('lag p50 ms', 'lag p50', 2),
  column('lag p99 ms', 'lag p99', 1),
  column('worst p99 ms', 'lag p99', 1, { share: 1 }),
  column('worst ms', 'lag max', 1, { share: 1 }),
  column('RSS MiB', 'rss', 0, { share: 1 }),
];

function tablesOf(samples: Samples, paths: readonly Path[]): readonly Table[] {
  const subjects = paths.map(({ place }) => place);
  const table = (title: string, columns: readonly Column[], of = subjects) =>
    computeTable(samples, { title, subjects: of, reference: PROXY, columns });
  const carriers = paths.filter(({ agents }) => agents.length > 0).map(({ place }) => place);
  return [
    table('streams', STREAM_COLUMNS),
    table('small packets, everything on one CPU', small('one')),
    table('small packets, pods on one CPU and tunnels on any', small('all')),
    ...(carriers.length > 0 ? [table('agents that carry streams', AGENT_COLUMNS, carriers)] : []),
  ];
}

export const tun: Bench = { about: 'tunnels in user space beside a proxy of one packet at a time and VXLAN', run };
