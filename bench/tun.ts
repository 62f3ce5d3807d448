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
import { DEFAULT_OPTIONS } from '../lab/up.ts';
import { rssMibOf } from './agent-figures.ts';
import { type Bench, type Context, chosen, type Report, rotated } from './bench.ts';
import { compile } from './compile.ts';
import { addBridgedPod, applyKubeProxy, type FlannelNode, podCidr, shapeNode, TUN_DEVICE } from './flannel-shape.ts';
import { type Enter, type Exchanges, PathEnds, startServer } from './path-ends.ts';
import { captured } from './path-witness.ts';
import { startPlainNode, startTulle } from './places.ts';
import { Samples } from './samples.ts';
import { type Column, computeTable, type Table } from './table.ts';
import { confine, cpuSecondsOf, lagOf } from './tun-figures.ts';
import { withLag } from './tun-lag.ts';
import { judge, PROXY } from './tun-targets.ts';

interface Plan {
  readonly rounds: number;
  readonly seconds: number;
  readonly iperfSeconds: number;
}

const FULL: Plan = { rounds: 7, seconds: 0.5, iperfSeconds: 2 };
const QUICK: Plan = { rounds: 1, seconds: 0.2, iperfSeconds: 1 };
const STREAMS = 4;
const TUN_PORT = 8285;
const SECRET_BYTES = 32;

interface Path {
  readonly place: string;
  readonly nodes: readonly NodeRef[];
  readonly ends: PathEnds;
  /** Enters the namespace of the bridge that joins the nodes. */
  readonly wire: Enter;
  readonly family: Family;
  /** Those that carry packets: none where the kernel does. */
  readonly agents: readonly { readonly node: NodeRef; readonly pid: number }[];
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

const tunArgs = (carriage: string, encryption: string, secretFile: string): readonly string[] => [
  ...['--backend', 'tun', '--tun-carriage', carriage, '--tun-encryption', encryption],
  ...(encryption === 'none' ? [] : ['--tun-secret-file', secretFile]),
];

const PLACES: readonly PlaceSpec[] = [
  { name: PROXY, start: startProxy },
  ...['none', 'aes-gcm', 'chacha20-poly1305'].flatMap((encryption) =>
    ['segments', 'whole'].map((carriage) => {
      const name = encryption === 'none' ? `tun ${carriage}` : `tun ${encryption} ${carriage}`;
      const args = (tools: Tools) => tunArgs(carriage, encryption, tools.secretFile);
      return { name, start: (tools: Tools) => startLab(name, args(tools), true, tools) };
    }),
  ),
  ...['vxlan', 'host-gw'].map((backend) => ({
    name: backend,
    start: (tools: Tools) => startLab(backend, ['--backend', backend], false, tools),
  })),
];

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
  return { place: PROXY, nodes: [one.node, two.node], ends, wire, family, agents: [] };
}

/** `isCarrier`: the agents carry packets; otherwise they are stopped while it is measured, as no packet needs them. */
async function startLab(
  name: string,
  agentArgs: readonly string[],
  isCarrier: boolean,
  { context, nb }: Tools,
): Promise<Path> {
  const { family, kubeProxy } = context.options;
  const agentCommand = withLag(DEFAULT_OPTIONS.agentCommand);
  const options = { nodes: 2, families: [family], agentArgs, agentCommand };
  const { control, status } = await startTulle(name.replaceAll(' ', '-'), options);
  const [one, two] = status.nodes;
  if (!one || !two) throw new Error(`cannot measure ${name}: expected a lab of two nodes, got ${status.nodes.length}`);
  const run = (pod: string, node: NodeRef) => control.runPod({ namespace: 'default', name: pod, node: node.name });
  const [client, server] = [await run('client', one), await run('server', two)];
  const address = server.addresses[0] as IpAddress;
  const ends = await startEnds({ client: podOf(one, client.netns), server: podOf(two, server.netns), address }, nb);
  const wire: Enter = (argv) => ['nsenter', '--target', String(status.supervisorPid), '--net', '--', ...argv];
  if (!isCarrier) for (const node of status.nodes) await control.stopAgent(node.name);
  if (kubeProxy) for (const node of status.nodes) await applyKubeProxy(node, family);
  const agents = isCarrier ? status.nodes.map((node) => ({ node, pid: node.agent.pid as number })) : [];
  return { place: name, nodes: status.nodes, ends, wire, family, agents };
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
  for (const path of paths) evidence.push(`${path.place}: ${await describeWire(path)}`);
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

/** Small exchanges show whether the tunnel's port is used and data is sealed, a stream whether IP fragments it. */
async function describeWire(path: Path): Promise<string> {
  const { type, isFragment } = WIRE[path.family];
  const port = `udp port ${TUN_PORT}`;
  const all = await captured(path, port);
  const sealed = await captured(path, `${port} and ${type} = ${SEALED}`);
  const fragments = await captured(path, isFragment, 'stream');
  return `${all} packets of port ${TUN_PORT}, ${sealed} of them sealed; ${fragments} fragments in a stream`;
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
      const { count, sent, us, p50Ns, p99Ns } = await ends.exchange(what, plan.seconds);
      add(`${where} ${what}`, count / (us / 1e6));
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
  column('CRR', `${where} crr`, 0),
  column('UDP packets received', `${where} udp`, 0),
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
