/**
 * Services in the kernel of a node: bringing all of them into an empty one, changing one endpoint of one, and connections
 * of a pod through the last of them beside connections to its endpoint, in the same node and in one without Services.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { execa } from 'execa';
import { type Family, familyOf, type IpAddress } from '../agent/model/ip.ts';
import type { RunningNode } from '../lab/node.ts';
import { inNode } from '../lab/node.ts';
import { type Context, chosen, type Report, rotated } from './bench.ts';
import { compile } from './compile.ts';
import { type Enter, type Exchange, PathEnds } from './path-ends.ts';
import { startPlainNode } from './places.ts';
import { Samples } from './samples.ts';
import { benchServices, POD_CIDRS, serverAddresses } from './service-set.ts';
import type { Command, Cost, WriterName } from './service-writer.ts';
import { type Column, computeTable, type Table } from './table.ts';

const ENDPOINTS = 10;
const WRITER = join(import.meta.dirname, 'service-writer.ts');
const DEADLINE_MS = 320_000;

interface Subject {
  readonly name: WriterName;
  /** What it cannot load in the time that this bench has. */
  readonly below?: number;
}

/** iptables-nft 1.8.9 does not load 10,000 of kube-proxy's Services in five minutes. */
export const KERNEL_SUBJECTS: readonly Subject[] = [
  { name: 'tulle ebpf' },
  { name: 'tulle iptables nft' },
  { name: 'tulle iptables legacy' },
  { name: 'kube-proxy iptables nft', below: 5000 },
  { name: 'kube-proxy iptables legacy', below: 20_000 },
  { name: 'kube-proxy nftables', below: 20_000 },
];
/** Services at sockets alone are measured with more. */
const MANY = 50_000;
const MANY_SUBJECTS = KERNEL_SUBJECTS.filter(({ name }) => name === 'tulle ebpf');
const DIRECT = 'no Services';

interface Plan {
  readonly counts: readonly number[];
  readonly rounds: number;
  readonly changes: number;
  /** From here on everything is loaded once. */
  readonly slow: number;
  readonly pathRounds: number;
  readonly seconds: number;
}

const FULL: Plan = {
  counts: [10, 1000, 10_000, MANY],
  rounds: 3,
  changes: 5,
  slow: 10_000,
  pathRounds: 3,
  seconds: 0.3,
};
const QUICK: Plan = { counts: [10, 100], rounds: 1, changes: 2, slow: 10_000, pathRounds: 1, seconds: 0.1 };

export async function benchKernels(context: Context): Promise<Report> {
  const { quick, rounds } = context.options;
  const plan = { ...(quick ? QUICK : FULL), ...(rounds !== undefined && { rounds, pathRounds: rounds }) };
  const nb = await compile('nb', context.scratch, context.signal);
  const reports: Report[] = [];
  const asked = chosen(KERNEL_SUBJECTS, context.options);
  for (const count of plan.counts) reports.push(await benchCount(count, asked, plan, nb, context));
  return { tables: reports.flatMap(({ tables }) => tables), evidence: reports.flatMap(({ evidence }) => evidence) };
}

/** Nothing where none of what was asked for can be loaded. */
async function benchCount(
  count: number,
  asked: readonly Subject[],
  plan: Plan,
  nb: string,
  context: Context,
): Promise<Report> {
  const able = (count >= MANY ? MANY_SUBJECTS : KERNEL_SUBJECTS).filter(({ below = Infinity }) => count < below);
  const subjects = able.filter((subject) => asked.includes(subject));
  if (subjects.length === 0) return { tables: [], evidence: [] };
  const samples = new Samples();
  const rounds = count >= plan.slow ? 1 : plan.rounds;
  const loaded: LoadedNode[] = [await startDirect(count, nb, context)];
  for (let round = 0; round < rounds; round++) {
    for (const { name } of rotated(subjects, round)) {
      const node = await measureLoad(name, { count, round, plan, samples, nb, context });
      if (round === rounds - 1) loaded.push(node);
      else await node.stop();
    }
    context.progress(`${count} Services: loaded, round ${round + 1} of ${rounds}`);
  }
  const evidence: string[] = [];
  for (const node of loaded) evidence.push(`${count} Services, ${node.name}: ${await witness(node)}`);
  for (let round = 0; round < plan.pathRounds; round++)
    for (const node of rotated(loaded, round)) await measurePath(node, plan.seconds, samples, round);
  for (const node of loaded) await node.stop();
  const names = subjects.map(({ name }) => name);
  return { evidence, tables: tablesOf(count, names, samples, context.options.family) };
}

interface Book {
  readonly count: number;
  readonly round: number;
  readonly plan: Plan;
  readonly samples: Samples;
  readonly nb: string;
  readonly context: Context;
}

async function measureLoad(name: WriterName, book: Book): Promise<LoadedNode> {
  const { count, round, plan, samples, nb, context } = book;
  const node = await startServiceNode(`${name} ${count} ${round}`, count, nb, context);
  const writer = await Writer.start(node.node, name, context.options.family);
  const add = (figure: string, { wallMs, cpuMs, toolMs, entries }: Cost) => {
    samples.add(`${figure} wall`, name, round, [wallMs]);
    samples.add(`${figure} cpu`, name, round, [cpuMs]);
    samples.add(`${figure} tools`, name, round, [toolMs]);
    samples.add(`${figure} entries`, name, round, [entries]);
  };
  add('cold', await writer.ask({ do: 'load', count, endpoints: ENDPOINTS }));
  for (let i = 0; i < plan.changes; i++)
    add('change', await writer.ask({ do: 'change', index: Math.floor((i * (count - 1)) / plan.changes) }));
  const stop = async () => {
    writer.stop();
    await node.stop();
  };
  return { ...node, name, stop };
}

interface LoadedNode {
  readonly name: string;
  readonly node: RunningNode;
  readonly ends: PathEnds;
  /** Of the last Service. */
  readonly vip: IpAddress;
  stop(): Promise<void>;
}

let nodes = 0;

/** The words of a family for the tools that prepare a node, and the addresses of its two pods and their gateways. */
const PLACES = {
  ipv4: {
    forwarding: 'net.ipv4.ip_forward=1',
    tables: 'iptables-nft',
    prefix: '24',
    client: ['10.84.0.1', '10.84.0.2'],
    server: '10.85.0.254',
  },
  ipv6: {
    forwarding: 'net.ipv6.conf.all.forwarding=1',
    tables: 'ip6tables-nft',
    prefix: '64 nodad',
    client: ['fd84::1', 'fd84::2'],
    server: 'fd85::ffff',
  },
} as const satisfies Record<Family, object>;

/** A node with a pod that connects and one that has all endpoints of the last Service; every packet between them is tracked. */
async function startServiceNode(name: string, count: number, nb: string, context: Context): Promise<LoadedNode> {
  const { family } = context.options;
  const { forwarding, tables, client, server } = PLACES[family];
  const node = await startPlainNode(`services-${nodes++}`, context.signal);
  const servers = serverAddresses(family, ENDPOINTS);
  await runIn(node, ['sysctl', '-qw', forwarding]);
  await addPod(node, family, { netns: 'client', link: 'tl000000000001', gateway: client[0], ips: [client[1]] });
  await addPod(node, family, { netns: 'server', link: 'tl000000000002', gateway: server, ips: servers });
  await runIn(node, [tables, '-A', 'FORWARD', '-m', 'conntrack', '--ctstate', 'INVALID', '-j', 'DROP']);
  // As every pod network has it: that packets come by nat at all is nothing that Services cost.
  const pods = POD_CIDRS[family];
  await runIn(node, [tables, '-t', 'nat', '-A', 'POSTROUTING', '-s', pods, '!', '-d', pods, '-j', 'MASQUERADE']);
  const enter =
    (netns: string): Enter =>
    (argv) =>
      inNode(node, ['ip', 'netns', 'exec', netns, ...argv]);
  const ends = { client: enter('client'), server: enter('server'), address: servers[0] as IpAddress };
  const started = await PathEnds.start(ends, nb, cpus().length);
  const vip = benchServices(family, count, ENDPOINTS).at(-1)?.ip as IpAddress;
  const stop = async () => {
    process.kill(node.pid, 'SIGKILL');
    await node.ended;
  };
  return { name, node, ends: started, vip, stop };
}

const startDirect = async (count: number, nb: string, context: Context): Promise<LoadedNode> =>
  startServiceNode(DIRECT, count, nb, context);

interface Pod {
  readonly netns: string;
  readonly link: string;
  readonly gateway: string;
  readonly ips: readonly string[];
}

/** Routed behind a link that is called as Tulle's are. */
async function addPod(node: RunningNode, family: Family, { netns, link, gateway, ips }: Pod): Promise<void> {
  const { prefix } = PLACES[family];
  const outside = [
    `link add ${link} type veth peer name eth0 netns ${netns}`,
    `addr add ${gateway}/${prefix} dev ${link}`,
    `link set ${link} up`,
  ];
  const inside = [
    'link set lo up',
    ...ips.map((ip) => `addr add ${ip}/${prefix} dev eth0`),
    'link set eth0 up',
    `route add default via ${gateway}`,
  ];
  await runIn(node, ['ip', 'netns', 'add', netns]);
  await runIn(node, ['ip', '-batch', '-'], outside);
  await runIn(node, ['ip', '-n', netns, '-batch', '-'], inside);
}

async function runIn(node: RunningNode, argv: readonly string[], lines: readonly string[] = []): Promise<string> {
  const [file, ...args] = inNode(node, argv);
  return (await execa(file, args, { input: lines.join('\n'), timeout: DEADLINE_MS })).stdout;
}

/** Whether connections to the Service are made, and where they are translated. */
async function witness({ node, name, ends, vip }: LoadedNode): Promise<string> {
  if (name === DIRECT) return 'connections to the endpoint only';
  const { count } = await ends.exchange('crr', 0.1, vip);
  const tracked = await runIn(node, ['conntrack', '-L', '-f', familyOf(vip), '--orig-dst', vip, '-p', 'tcp']);
  return `${count} connections to ${vip}, ${tracked.split('\n').filter(Boolean).length} of them translated as packets`;
}

async function measurePath({ name, ends, vip }: LoadedNode, seconds: number, samples: Samples, round: number) {
  const places = [['direct', undefined], ...(name === DIRECT ? [] : ([['service', vip]] as const))] as const;
  let direct: Exchange | undefined;
  for (const [place, address] of places) {
    const crr = await ends.exchange('crr', seconds, address);
    const rr = await ends.exchange('rr', seconds, address);
    const add = (figure: string, value: number) => samples.add(figure, `${name}, ${place}`, round, [value]);
    add('connect', crr.p50Ns / 1000);
    add('connect p99', crr.p99Ns / 1000);
    add('crr', crr.count / (crr.us / 1e6));
    add('rr', rr.count / (rr.us / 1e6));
    direct ??= crr;
    if (crr === direct) continue;
    add('connect to direct', crr.p50Ns / direct.p50Ns);
    add('crr to direct', crr.count / crr.us / (direct.count / direct.us));
  }
}

const LOAD_COLUMNS: readonly Column[] = (['cold', 'change'] as const).flatMap((figure) => [
  { heading: `${figure} ms`, figure: `${figure} wall`, share: 0.5, digits: 0 },
  { heading: `${figure} CPU ms`, figure: `${figure} cpu`, share: 0.5, digits: 0 },
  { heading: `${figure} tools' CPU`, figure: `${figure} tools`, share: 0.5, digits: 0 },
  { heading: `${figure} entries`, figure: `${figure} entries`, share: 0.5, digits: 0 },
]);
const PATH_COLUMNS: readonly Column[] = [
  { heading: 'connect µs', figure: 'connect', share: 0.5, digits: 1 },
  { heading: 'p99', figure: 'connect p99', share: 0.5, digits: 0 },
  { heading: 'CRR/s', figure: 'crr', share: 0.5, digits: 0 },
  { heading: 'RR/s', figure: 'rr', share: 0.5, digits: 0 },
  { heading: "connect × node's direct", figure: 'connect to direct', share: 0.5, digits: 2 },
  { heading: "CRR × node's direct", figure: 'crr to direct', share: 0.5, digits: 2 },
];

function tablesOf(count: number, names: readonly string[], samples: Samples, family: Family): readonly Table[] {
  const title = `${count} Services with ${ENDPOINTS} endpoints, ${family}`;
  const reference = names.find((name) => name.includes('legacy') && name.startsWith('kube')) ?? (names[0] as string);
  const paths = [`${DIRECT}, direct`, ...names.flatMap((name) => [`${name}, direct`, `${name}, service`])];
  return [
    computeTable(samples, { title, subjects: names, reference, columns: LOAD_COLUMNS }),
    computeTable(samples, {
      title: `${title}: connections of a pod to the last one and to its endpoint`,
      subjects: paths,
      reference: `${DIRECT}, direct`,
      columns: PATH_COLUMNS,
    }),
  ];
}

/** See service-writer.ts. */
class Writer {
  readonly #child: ChildProcess;
  readonly #lines: Interface;

  private constructor(child: ChildProcess, lines: Interface) {
    this.#child = child;
    this.#lines = lines;
  }

  static async start(node: RunningNode, name: WriterName, family: Family): Promise<Writer> {
    const [file, ...args] = inNode(node, [process.execPath, WRITER, name, family]);
    const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const writer = new Writer(child, createInterface({ input: child.stdout }));
    await writer.#line();
    return writer;
  }

  async ask(command: Command): Promise<Cost> {
    const answered = this.#line();
    this.#child.stdin?.write(`${JSON.stringify(command)}\n`);
    return JSON.parse(await answered) as Cost;
  }

  stop(): void {
    this.#child.kill();
  }

  async #line(): Promise<string> {
    const gone = once(this.#child, 'exit').then(([code]) => {
      throw new Error(`cannot write Services: the writer ended with ${code}`);
    });
    gone.catch(() => undefined);
    const line = once(this.#lines, 'line', { signal: AbortSignal.timeout(DEADLINE_MS) });
    const [text] = (await Promise.race([line, gone])) as [string];
    return text;
  }
}
