/** Where a test of the lab runs programs: nodes, pods, the fabric, and guests, hosts of its own that know nothing of Tulle. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { execa } from 'execa';
import { macOf } from '../../agent/model/mac.ts';
import type { LabStatus } from '../../lab/control.ts';
import { inNode, inPod, type NodeRef, pathOnHost } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { type Output, output, run, type TestLab } from './lab.ts';
import { type Netns, SPAWN } from './netns.ts';
import type { Datagram } from './send-datagram.ts';

export interface Place {
  readonly name: string;
  /** argv that runs `argv` there. */
  enter(argv: readonly string[]): readonly [string, ...string[]];
  /** The same in its network namespace only: the program is the process that is started, so a signal reaches it. */
  enterNetwork(argv: readonly string[]): readonly [string, ...string[]];
}

export const nodePlace = (node: NodeRef): Place => ({
  name: node.name,
  enter: (argv) => inNode(node, argv),
  enterNetwork: (argv) => inNetwork(networkOf(node.pid), argv),
});

export function podPlace(lab: TestLab, { name, node, netns }: PodStatus): Place {
  const host = lab.node(node);
  return {
    name,
    enter: (argv) => inPod(host, netns, argv),
    enterNetwork: (argv) => inNetwork(pathOnHost(host, `/run/netns/${netns}`), argv),
  };
}

/** The router and the wires between the nodes. */
export const fabricPlace = ({ supervisorPid }: LabStatus): Place => networkPlace('the fabric', supervisorPid);

function networkPlace(name: string, pid: number): Place {
  const enter: Place['enter'] = (argv) => inNetwork(networkOf(pid), argv);
  return { name, enter, enterNetwork: enter };
}

const networkOf = (pid: number): string => `/proc/${pid}/ns/net`;

const inNetwork = (path: string, argv: readonly string[]): readonly [string, ...string[]] => [
  'nsenter',
  `--net=${path}`,
  '--',
  ...argv,
];

/** Runs to its end; a failure is an answer too. */
export const runIn = (place: Place, ...argv: readonly string[]): Promise<Output> => run(place.enter(argv));
/** What the program prints. Throws unless its exit code is 0. */
export const outputIn = (place: Place, ...argv: readonly string[]): Promise<string> => output(place.enter(argv));
/** A shell line, of which nothing may fail. */
export const shellIn = (place: Place, line: string): Promise<string> => outputIn(place, 'sh', '-ec', line);

/** For capture() of netns.ts. What is started is killed at the end of the test. */
export const spawnerIn = (t: ExecutionContext, place: Place): Pick<Netns, 'name' | 'spawn'> => ({
  name: place.name,
  spawn: (...argv) => {
    const [file, ...args] = place.enterNetwork(argv);
    const subprocess = execa(file, args, SPAWN);
    t.teardown(async () => {
      subprocess.kill('SIGKILL');
      await subprocess;
    });
    return subprocess;
  },
});

/** Returns when it is on its way. */
export async function sendDatagram(place: Place, datagram: Datagram): Promise<void> {
  await outputIn(place, process.execPath, SENDER, JSON.stringify(datagram));
}

const SENDER = fileURLToPath(new URL('send-datagram.ts', import.meta.url));

/** True when one echo request of at most a second is answered. */
export async function pings(from: Place, address: string, ...options: readonly string[]): Promise<boolean> {
  return (await runIn(from, 'ping', '-n', '-q', '-c', '1', '-W', '1', ...options, address)).exitCode === 0;
}

export interface GuestOptions {
  readonly name: string;
  /** A process in whose network namespace the outer end of the wire is, named as the guest. */
  readonly beside: number;
  /** Bridge that the outer end joins. */
  readonly bridge?: string;
  /** Of the outer end, where it joins no bridge, as `192.0.2.1/24`. */
  readonly outerAddresses?: readonly string[];
  /** Of the guest's eth0. */
  readonly addresses: readonly string[];
  /** Of default routes. */
  readonly gateways: readonly string[];
}

/** A network namespace with one eth0. It ends with the test; its MAC follows from its name, as a neighbour may remember it. */
export async function createGuest(t: ExecutionContext, options: GuestOptions): Promise<Place> {
  const { name, beside, bridge, outerAddresses = [], addresses, gateways } = options;
  const [file, ...args] = inNetwork(networkOf(beside), [
    'unshare',
    '--net',
    '--',
    'sh',
    '-c',
    'echo made; exec sleep 300',
  ]);
  const holder = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const end = once(holder, 'exit');
  t.teardown(async () => {
    holder.kill('SIGKILL');
    await end;
  });
  const { pid } = holder;
  await Promise.race([once(holder.stdout, 'data'), end]);
  if (pid === undefined || holder.exitCode !== null) throw new Error(`cannot make guest ${name}`);
  const guest = networkPlace(name, pid);
  const outer = bridge === undefined ? '' : `master ${bridge}`;
  const add = (address: string, link: string) =>
    `ip address add ${address} dev ${link}${address.includes(':') ? ' nodad' : ''}`;
  const outside = networkPlace(`outside of ${name}`, beside);
  // The kernel destroys the namespace some time after its last process, and until then the name would be taken.
  t.teardown(() => runIn(outside, 'ip', 'link', 'delete', name));
  await shellIn(
    outside,
    [
      `ip link add ${name} ${outer} type veth peer name eth0 address ${macOf(`guest/${name}`)} netns ${pid}`,
      ...outerAddresses.map((address) => add(address, name)),
      `ip link set ${name} up`,
    ].join('\n'),
  );
  await shellIn(
    guest,
    [
      'ip link set lo up',
      ...addresses.map((address) => add(address, 'eth0')),
      'ip link set eth0 up',
      ...gateways.map((gateway) => `ip route add default via ${gateway}`),
    ].join('\n'),
  );
  return guest;
}
