/**
 * Inside a node: brings Services of a family into its kernel as its arguments say, and tells what that cost. Commands come as JSON
 * lines on standard input, see Command; each is answered by a line, see Cost. What Tulle writes is planned, compared and
 * written by the agent's own parts, from Services on; what the others write is ready as text before the clock starts.
 */
import { createInterface } from 'node:readline';
import { pino } from 'pino';
import { SETTINGS as AGENT_SETTINGS } from '../agent/config.ts';
import { openBpfLane } from '../agent/kernel/bpf/lane.ts';
import { type Run, run } from '../agent/kernel/command.ts';
import { createMemberDriver } from '../agent/kernel/ipset/member.ts';
import { createSetDriver } from '../agent/kernel/ipset/set.ts';
import { describeBackend } from '../agent/kernel/iptables/backend.ts';
import { createChainDriver } from '../agent/kernel/iptables/chain.ts';
import { NETLINK_PROTOCOL } from '../agent/kernel/netlink/message.ts';
import { NetlinkSocket } from '../agent/kernel/netlink/socket.ts';
import { EMPTY_CLUSTER } from '../agent/model/cluster.ts';
import { FAMILIES, type Family, families } from '../agent/model/ip.ts';
import { item } from '../agent/model/items.ts';
import type { EndpointSlice, Service } from '../agent/model/services.ts';
import { acceptPart } from '../agent/plan/node-network.ts';
import { NO_SERVICES, type ServicesInput, ServicesPlanner } from '../agent/plan/services/services.ts';
import { socketPrograms } from '../agent/plan/services/socket-items.ts';
import { KernelState } from '../agent/reconcile/kernel-state.ts';
import { Reconciler } from '../agent/reconcile/reconciler.ts';
import type { AnyDriver, Change } from '../agent/reconcile/types.ts';
import { cpuTimesOf } from './agent-figures.ts';
import { entriesOf, iptablesShape, nftablesShape, type Shape } from './kube-proxy-shape.ts';
import { type BenchService, benchServices, moved, NAMESPACE, targetPort } from './service-set.ts';

export type WriterName =
  | 'tulle ebpf'
  | 'tulle iptables nft'
  | 'tulle iptables legacy'
  | 'kube-proxy iptables nft'
  | 'kube-proxy iptables legacy'
  | 'kube-proxy nftables';

export type Command =
  | { readonly do: 'load'; readonly count: number; readonly endpoints: number }
  /** One endpoint of that Service moves. */
  | { readonly do: 'change'; readonly index: number };

export interface Cost {
  readonly wallMs: number;
  /** Of this process and of the tools that it started. */
  readonly cpuMs: number;
  /** Of the tools alone: all there is of those whose rules are ready as text. */
  readonly toolMs: number;
  /** Rules, elements of sets and maps that were written or removed. */
  readonly entries: number;
}

/** Brings into the kernel what is asked, and resolves with the number of entries when the kernel has it. */
interface Writer {
  /** What need not be measured, before `load` or `change`. */
  prepare?(services: readonly BenchService[], index?: number): void;
  write(services: readonly BenchService[], index?: number): Promise<number>;
}

const TIMEOUT_MS = 300_000;
const never = new AbortController().signal;

function shaped(shape: Shape): Writer {
  let texts: readonly string[] = [];
  let before: readonly BenchService[] = [];
  return {
    prepare(services, index) {
      const [was, now] = index === undefined ? [] : [before[index], services[index]];
      texts = was && now ? shape.partial(services, was, now) : shape.full(services);
      before = services;
    },
    async write() {
      for (const stdin of texts) await run({ file: shape.file, args: shape.args, stdin, timeoutMs: TIMEOUT_MS });
      return texts.reduce((entries, text) => entries + entriesOf(text), 0);
    },
  };
}

/** The agent's parts from planning to the kernel, in this process's own network namespace. */
async function tulle(mode: 'ebpf' | 'iptables', backendName: 'nft' | 'legacy'): Promise<Writer> {
  let rules = 0;
  const counting: Run = (command) => {
    rules += entriesOf(command.stdin ?? '');
    return run(command);
  };
  const client = new NetlinkSocket(NETLINK_PROTOCOL.NETFILTER);
  const member = createMemberDriver({ client });
  const backend = await describeBackend(run, backendName, 'asked for');
  const lane =
    mode === 'ebpf'
      ? openBpfLane({ directory: '/sys/fs/bpf/tulle', cgroup: '/sys/fs/cgroup', sizes: SIZES })
      : undefined;
  const drivers = [
    createSetDriver({ run, client, onEmptied: (name) => member.setEmptied(name) }),
    member,
    createChainDriver({ run: counting, backend }),
    ...Object.values(lane?.drivers ?? {}),
  ] as readonly AnyDriver[];
  const merge = Object.fromEntries(drivers.map((driver) => [driver.kind, driver.merge]));
  const state = new KernelState(merge as ConstructorParameters<typeof KernelState>[0]);
  let entries = 0;
  const reconciler = new Reconciler({
    state,
    drivers,
    log: pino({ level: 'warn' }, pino.destination(2)),
    options: {
      onBatch: ({ changes }) => {
        for (const change of changes) entries += mapEntriesOf(change);
      },
    },
  });
  // Where they are not accepted, pods' packets would meet rules that no node has for them.
  const accept = families.map(({ family }) => item('chain-part', acceptPart(FAMILIES[family])));
  state.replace('pods', { id: 'pods', cause: 'pods', rank: '', items: accept, requires: [], problems: [] });
  if (lane) await lane.load(never);
  reconciler.start(never);
  await reconciler.listed;
  await reconciler.rest();
  const planner = new ServicesPlanner();
  let planned = NO_SERVICES.fragments;
  let cluster: ServicesInput['cluster'] = { ...EMPTY_CLUSTER, synced: true };
  return {
    async write(services, index) {
      [rules, entries] = [0, 0];
      cluster = clusterOf(services, cluster, index);
      const settings = { ...SETTINGS, 'services.mode': mode };
      const node = { nodeName: 'bench', losses: new Map(), underlayIps: [], host: HOST };
      const { fragments } = planner.plan({ ...node, cluster, settings });
      for (const id of fragments.changedSince(planned)) state.replace(id, fragments.get(id));
      planned = fragments;
      const programs = lane && socketPrograms(lane.build);
      if (programs) state.replace(programs.id, programs);
      await reconciler.rest();
      const left = Object.values(reconciler.status().kinds).reduce((sum, { dirty }) => sum + dirty, 0);
      if (left > 0) throw new Error(`cannot write Services: ${left} keys are not in the kernel`);
      return rules + entries;
    },
  };
}

/** As the agent has them by default. */
const SETTINGS: Omit<ServicesInput['settings'], 'services.mode'> = {
  'services.ebpf.scope': 'all',
  'services.externalAddresses': [],
  'services.nodePortAddresses': [],
  'services.healthPort': 0,
  clusterCidrs: [],
  'vxlan.port': 8472,
  apiServer: '',
};
const SIZES = {
  frontends: AGENT_SETTINGS['services.ebpf.maxFrontends'].default,
  backends: AGENT_SETTINGS['services.ebpf.maxBackends'].default,
  clients: AGENT_SETTINGS['services.ebpf.maxClients'].default,
};
const HOST: ServicesInput['host'] = { links: [], randomFully: true };

/** Rules are counted where they are written. */
function mapEntriesOf(change: Change): number {
  if (change.kind === 'backend-set') {
    const set = change.action === 'remove' ? change.from : change.item.value;
    return set.backends.length;
  }
  return change.kind === 'member' || change.kind === 'frontend' ? 1 : 0;
}

type Objects = ServicesInput['cluster'];

/** `index`: only that one changed. */
function clusterOf(all: readonly BenchService[], former: Objects, index: number | undefined): Objects {
  const changed = index === undefined ? all : all.slice(index, index + 1);
  return {
    ...former,
    services: former.services.with(changed.map((each) => [keyOf(each), serviceOf(each)])),
    endpointSlices: former.endpointSlices.with(changed.map((each) => [keyOf(each), sliceOf(each)])),
  };
}

const keyOf = ({ name }: BenchService): string => `${NAMESPACE}/${name}`;

const portsOf = ({ ports }: BenchService) =>
  ports.map((port) => ({ name: `p${port}`, protocol: 'TCP' as const, port }));

const serviceOf = (of: BenchService): Service => ({
  namespace: NAMESPACE,
  name: of.name,
  uid: of.name,
  creationMs: 0,
  clusterIps: [of.ip],
  externalIps: [],
  loadBalancerIps: [],
  ports: portsOf(of),
  internalTrafficPolicy: 'Cluster',
  externalTrafficPolicy: 'Cluster',
});

const sliceOf = (of: BenchService): EndpointSlice => ({
  namespace: NAMESPACE,
  name: of.name,
  service: keyOf(of),
  family: of.family,
  ports: portsOf(of).map(({ port, ...rest }) => ({ ...rest, port: targetPort(port) })),
  endpoints: of.endpoints.map((ip) => ({ ip, state: 'ready' })),
});

const WRITERS: Readonly<Record<WriterName, (family: Family) => Writer | Promise<Writer>>> = {
  'tulle ebpf': () => tulle('ebpf', 'nft'),
  'tulle iptables nft': () => tulle('iptables', 'nft'),
  'tulle iptables legacy': () => tulle('iptables', 'legacy'),
  'kube-proxy iptables nft': (family) => shaped(iptablesShape('nft', family)),
  'kube-proxy iptables legacy': (family) => shaped(iptablesShape('legacy', family)),
  'kube-proxy nftables': (family) => shaped(nftablesShape(family)),
};

async function main(name: WriterName, family: Family): Promise<void> {
  const writer = await WRITERS[name](family);
  let services: readonly BenchService[] = [];
  console.log('ready');
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line) as Command;
    const index = command.do === 'change' ? command.index : undefined;
    if (command.do === 'load') services = benchServices(family, command.count, command.endpoints);
    else services = services.map((each, i) => (i === command.index ? moved(each, i) : each));
    writer.prepare?.(services, index);
    const [startMs, before] = [performance.now(), await cpuTimesOf('self')];
    const entries = await writer.write(services, index);
    const [wallMs, after] = [performance.now() - startMs, await cpuTimesOf('self')];
    const toolMs = after.children - before.children;
    const cost: Cost = { wallMs, cpuMs: after.own - before.own + toolMs, toolMs, entries };
    console.log(JSON.stringify(cost));
  }
}

await main(process.argv[2] as WriterName, process.argv[3] as Family);
// The reconciler would go on.
process.exit(0);
