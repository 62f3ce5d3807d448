/**
 * A lab for what Services mean to whoever calls them: three nodes in two zones without any other proxy, pods that answer with
 * their names, and callers everywhere. Pods are few and Services many: a test writes the slices itself, in any state.
 */
import test from 'ava';
import { familyOf, type IpAddress } from '../../agent/model/ip.ts';
import type { LabOptions } from '../../lab/control.ts';
import { inNode, inPod } from '../../lab/node.ts';
import type { PodStatus, ServedPort } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { type Caller, type OpenCaller, openCaller } from './caller.ts';
import { output, shIn, type TestLab, TIMEOUT_MS, untilSettled, useLab } from './lab.ts';
import { type ServiceApi, serviceApi, TCP_AND_UDP } from './service-api.ts';
import type { Call } from './socket-caller.ts';

export type ServicesMode = 'iptables' | 'ebpf';

/** Of all pods that serve, for a selector. */
export const GROUP = { group: 'web' } as const;
/** Every pod that serves does so here, over TCP and UDP. */
const SERVED: readonly ServedPort[] = [{ port: 8080 }, { port: 9090 }];
/** Where load-balancer and external addresses of a test may be; nobody's own. */
export const BALANCERS = { ipv4: '203.0.113.', ipv6: '2001:db8:203::' } as const;
export const EXTERNALS = { ipv4: '198.51.100.', ipv6: '2001:db8:198::' } as const;
const ALLOWED = ['203.0.113.0/24', '198.51.100.0/24', '2001:db8:203::/64', '2001:db8:198::/64'];
/** The lab's. */
const CLUSTER_RANGES = ['10.96.0.0/16', 'fd96::/64'];

/**
 * The number is that of the node whose Services the client meets. `pod` is no endpoint, `self` is web-1 itself, `out` is a
 * host beside the nodes that has routes to Services by one of them.
 */
export const CLIENTS = ['pod-1', 'self-1', 'pod-3', 'host-1', 'host-3', 'out-1', 'out-3'] as const;
export type Client = (typeof CLIENTS)[number];

/** `node-1` of `pod-1`. */
export const nodeOf = (client: Client): string => `node-${client.at(-1)}`;

export interface ServiceLab {
  readonly lab: TestLab;
  /** web-1 on node-1, web-2 on node-2, web-3 on node-3 serve; idle-1 on node-1 asks the API server in its first moment. */
  readonly pods: ReadonlyMap<string, PodStatus>;
  readonly api: ServiceApi;
  caller(client: Client): Caller;
  /** Own addresses of a client. */
  addressesOf(client: Client): readonly IpAddress[];
  /** Whatever a node may call itself: in the underlay and in the pod network. */
  nodeAddresses(node: string): readonly IpAddress[];
  /** Waits until the nodes with callers have all that was written before. */
  written(): Promise<void>;
}

/** The kernel refuses one client's datagrams some times a second only; older ones keep the second number for all namespaces. */
const UNLIMITED_REFUSALS = `
  cd /proc/sys/net
  echo 0 >ipv4/icmp_ratelimit
  echo 0 >ipv6/icmp/ratelimit
  [ ! -e ipv4/icmp_msgs_per_sec ] || echo 1000000 >ipv4/icmp_msgs_per_sec
  [ ! -e ipv4/icmp_msgs_burst ] || echo 1000000 >ipv4/icmp_msgs_burst`;

/** Call once, at the top of a file. */
export function useServiceLab(mode: ServicesMode, options: Partial<LabOptions> = {}): () => ServiceLab {
  const opened: OpenCaller[] = [];
  let made: ServiceLab | undefined;
  const agentArgs = ['--services-mode', mode, '--services-external-addresses', ALLOWED.join(',')];
  const lab = useLab({ nodes: 3, zones: 2, agentArgs, ...options }, async () => {
    const pods = await runPods(lab());
    for (const node of lab().nodes.values()) await output(shIn(node, UNLIMITED_REFUSALS));
    made = serviceLab(lab(), pods, await openCallers(lab(), pods, opened));
  });
  test.after.always(() => Promise.all(opened.map((caller) => caller.end())));
  return () => {
    if (made) return made;
    throw new Error('the lab of this file is not up');
  };
}

function serviceLab(
  lab: TestLab,
  pods: ReadonlyMap<string, PodStatus>,
  callers: ReadonlyMap<Client, Caller>,
): ServiceLab {
  const api = serviceApi(lab.control, pods);
  const caller = (client: Client) => callers.get(client) as Caller;
  let count = 0;
  return {
    lab,
    pods,
    api,
    caller,
    addressesOf: (client) => addressesOf(lab, pods, client),
    nodeAddresses: (node) => [...lab.node(node).addresses, ...lab.node(node).podCidrs.map(firstAddress)],
    async written() {
      if (count > 0) {
        await api.deleteService(`written-${count}`);
        await api.deleteSlice(`written-${count}`, 'ipv4');
      }
      await announce(api, `written-${++count}`, [caller('host-1'), caller('host-3')]);
      for (const node of ['node-1', 'node-3']) await untilSettled(lab.node(node));
    },
  };
}

/** `10.84.3.1` of `10.84.3.0/24`: what a node is called in the pod network. */
const firstAddress = (cidr: string): IpAddress =>
  cidr.replace(/\/\d+$/, '').replace(/(::|\.0)$/, (end) => (end === '::' ? '::1' : '.1')) as IpAddress;

function addressesOf(lab: TestLab, pods: ReadonlyMap<string, PodStatus>, client: Client): readonly IpAddress[] {
  const podOf: Partial<Record<Client, string>> = { 'pod-1': 'idle-1', 'self-1': 'web-1', 'pod-3': 'web-3' };
  const pod = pods.get(podOf[client] ?? '');
  if (pod) return pod.addresses;
  return client.startsWith('out') ? outsideAddresses(Number(client.at(-1))) : lab.node(nodeOf(client)).addresses;
}

/** Watches keep the order of changes: who serves this Service knows of all Services and slices before it. */
async function announce(api: ServiceApi, name: string, callers: readonly Caller[]): Promise<void> {
  const { clusterIps } = await api.createService(name, { ports: TCP_AND_UDP });
  const ip = clusterIps.find((each) => familyOf(each) === 'ipv4') as IpAddress;
  await api.createSlice({ of: name, family: 'ipv4', endpoints: '1 2 3' });
  for (const caller of callers) {
    const isServed = async () => (await caller.call({ how: 'tcp', ip, port: 80, deadlineMs: 1000 })).from !== undefined;
    await until(isServed, { describe: `the Service ${name}`, deadlineMs: TIMEOUT_MS, intervalMs: 20 });
  }
}

/** The address of the Service `kubernetes` in a lab; once, and whatever comes is in the pod's log. */
const ASK_API = ['curl', '-sSk', '--max-time', '20', 'https://10.96.0.1/version'];

async function runPods({ control }: TestLab): Promise<ReadonlyMap<string, PodStatus>> {
  const namespace = 'default';
  const serving = [1, 2, 3].map((i) =>
    control.runPod({ namespace, name: `web-${i}`, node: `node-${i}`, labels: GROUP, serve: SERVED }),
  );
  const idle = control.runPod({ namespace, name: 'idle-1', node: 'node-1', command: ASK_API });
  const pods = await Promise.all([...serving, idle]);
  return new Map(pods.map((pod) => [pod.name, pod]));
}

async function openCallers(
  lab: TestLab,
  pods: ReadonlyMap<string, PodStatus>,
  opened: OpenCaller[],
): Promise<ReadonlyMap<Client, Caller>> {
  const { supervisorPid } = await lab.control.status();
  const open = async (inside: readonly [string, ...string[]]): Promise<OpenCaller> => {
    const caller = await openCaller(inside);
    opened.push(caller);
    return caller;
  };
  const inPodOf = (name: string) => {
    const { node, netns } = pods.get(name) as PodStatus;
    return open(inPod(lab.node(node), netns, []));
  };
  const outside = async (i: number): Promise<Caller> => {
    const caller = await open(['unshare', '--net', '--']);
    await attach(lab, supervisorPid, caller.pid, i);
    return caller;
  };
  const made: Readonly<Record<Client, Promise<Caller>>> = {
    'pod-1': inPodOf('idle-1'),
    'self-1': inPodOf('web-1'),
    'pod-3': inPodOf('web-3'),
    'host-1': open(inNode(lab.node('node-1'), [])),
    'host-3': open(inNode(lab.node('node-3'), [])),
    'out-1': outside(1),
    'out-3': outside(3),
  };
  return new Map(await Promise.all(CLIENTS.map(async (client) => [client, await made[client]] as const)));
}

const outsideAddresses = (i: number): readonly IpAddress[] => [`172.30.0.${i + 4}`, `fd30::${i + 4}`] as IpAddress[];

/** Gives the network namespace of a process an address beside the nodes, and routes to Services by one of them. */
async function attach(lab: TestLab, supervisorPid: number, pid: number, i: number): Promise<void> {
  const inside = (of: number) => ['nsenter', '--target', String(of), '--net', '--', 'ip'];
  const pair = ['type', 'veth', 'peer', 'name', 'eth0', 'netns', String(pid)];
  await output([...inside(supervisorPid), 'link', 'add', `out${i}`, 'master', 'br0', ...pair]);
  await output([...inside(supervisorPid), 'link', 'set', `out${i}`, 'up']);
  const [v4, v6] = outsideAddresses(i);
  await output([...inside(pid), 'address', 'add', `${v4}/24`, 'dev', 'eth0']);
  await output([...inside(pid), 'address', 'add', `${v6}/64`, 'dev', 'eth0', 'nodad']);
  for (const name of ['lo', 'eth0']) await output([...inside(pid), 'link', 'set', name, 'up']);
  for (const to of [...ALLOWED, ...CLUSTER_RANGES]) {
    const via = lab.node(`node-${i}`).addresses.find((ip) => ip.includes(':') === to.includes(':'));
    await output([...inside(pid), 'route', 'add', to, 'via', String(via)]);
  }
}

/** As many connections as make chance an unlikely cause of an answer that is missing. */
const TRIES = 16;

/** Who answers there, sorted, or the errors. */
export async function serversAt(
  { caller }: ServiceLab,
  client: Client,
  ips: readonly IpAddress[],
  port = 80,
  deadlineMs = 10_000,
): Promise<readonly string[]> {
  const calls = ips.flatMap((ip) => Array.from({ length: TRIES }, (): Call => ({ how: 'tcp', ip, port, deadlineMs })));
  const answers = await caller(client).callAll(calls);
  return [...new Set(answers.map(({ from, error = '' }) => from?.split(' ')[0] ?? error))].sort();
}

/** What the API server says of its version to a pod that asks it at its real address. */
export async function askApiServer({ lab, pods }: Pick<ServiceLab, 'lab' | 'pods'>): Promise<string> {
  const { apiServer } = await lab.control.status();
  const { node, netns } = pods.get('idle-1') as PodStatus;
  return output(inPod(lab.node(node), netns, ['curl', '-sSk', '--max-time', '20', `${apiServer.url}/version`]));
}
