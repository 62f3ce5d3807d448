/**
 * A node for the programs at sockets: a network namespace with servers on addresses of its own, a cgroup, a bpffs, and
 * processes inside that call what a test says. Needs root.
 */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { execa } from 'execa';
import { type BpfLane, type BpfLaneOptions, openBpfLane } from '../../agent/kernel/bpf/lane.ts';
import type { MapSizes } from '../../agent/kernel/bpf/store.ts';
import { type Family, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { SOCKET_HOOKS } from '../../agent/model/items.ts';
import { type Backend, type BackendSet, backendSet, type Frontend } from '../../agent/model/services.ts';
import { cgroupRoot } from '../../scripts/isolation.ts';
import { type Caller, openCaller } from './caller.ts';
import { converge, type Outcome } from './converge.ts';
import { createNetns, type Netns, TEST_PREFIX, waitFor } from './netns.ts';

const CALLER = join(import.meta.dirname, 'socket-caller.ts');
/** Small: what is not preallocated costs nothing, what is would cost every test tens of megabytes. */
export const TEST_SIZES: MapSizes = { frontends: 1024, backends: 4096, clients: 1024 };

export const SERVERS: Readonly<Record<Family, readonly IpAddress[]>> = {
  ipv4: ['10.1.0.1', '10.1.0.2', '10.1.0.3'] as IpAddress[],
  ipv6: ['fd01::1', 'fd01::2', 'fd01::3'] as IpAddress[],
};
export const SERVER_PORT = 8080;
export const VIPS: Readonly<Record<Family, IpAddress>> = {
  ipv4: '10.96.0.1' as IpAddress,
  ipv6: 'fd96::1' as IpAddress,
};

type LaneOptions = Partial<Pick<BpfLaneOptions, 'sizes' | 'object' | 'directory' | 'run'>>;

export interface EbpfNode {
  readonly netns: Netns;
  readonly cgroup: string;
  /** A directory of this test's own, for files. */
  readonly directory: string;
  readonly bpffs: string;
  openLane(options?: LaneOptions): BpfLane;
  /** A process in a namespace, the node's by default, and in the node's cgroup. */
  caller(netns?: Netns): Promise<Caller>;
}

export async function createEbpfNode(t: ExecutionContext): Promise<EbpfNode> {
  const netns = await createNetns(t, 'node');
  const addresses = [...SERVERS.ipv4, ...SERVERS.ipv6];
  await netns.feed(
    addresses.map((ip) => `address add ${ip}/${familyOf(ip) === 'ipv4' ? 32 : 128} dev lo nodad`).join('\n'),
    'ip',
    '-batch',
    '-',
  );
  const cgroup = createCgroup(t);
  const directory = mkdtempSync(join(tmpdir(), TEST_PREFIX));
  const bpffs = join(directory, 'bpf');
  mkdirSync(bpffs);
  await execa('mount', ['-n', '-t', 'bpf', 'bpf', bpffs]);
  t.teardown(async () => {
    await execa('umount', ['--lazy', bpffs]);
    rmSync(directory, { recursive: true });
  });
  const server = netns.spawn(process.execPath, CALLER, 'serve', ...addresses);
  await once(server.stdout, 'data', { signal: AbortSignal.timeout(20_000) });
  const openLane: EbpfNode['openLane'] = (options = {}) => {
    const lane = openBpfLane({ directory: join(bpffs, 'tulle'), cgroup, sizes: TEST_SIZES, ...options });
    t.teardown(() => lane.close());
    return lane;
  };
  return { netns, cgroup, directory, bpffs, openLane, caller: (where = netns) => startCaller(t, where, cgroup) };
}

/** Of this test alone, below the root that this process sees. Programs attached to it go with it. */
function createCgroup(t: ExecutionContext): string {
  const root = cgroupRoot();
  if (root === undefined) throw new Error('cannot make a cgroup: expected a mount of type cgroup2, got none');
  const path = join(root, `${TEST_PREFIX}ebpf-${process.pid}-${randomBytes(3).toString('hex')}`);
  mkdirSync(path);
  t.teardown(async () => {
    writeFileSync(join(path, 'cgroup.kill'), '1');
    const isEmpty = () => readFileSync(join(path, 'cgroup.events'), 'utf8').includes('populated 0');
    await waitFor(isEmpty, { describe: `the end of all in ${path}` });
    rmdirSync(path);
  });
  return path;
}

/** In the cgroup of this process, unless another one is given. Ends with the test. */
export async function startCaller(t: ExecutionContext, netns: Netns, cgroup?: string): Promise<Caller> {
  const join = '[ -z "$0" ] || echo 0 >"$0/cgroup.procs" && exec "$@"';
  const caller = await openCaller(['sh', '-c', join, cgroup ?? '', 'ip', 'netns', 'exec', netns.name]);
  t.teardown(() => caller.end());
  return caller;
}

/** Everything that a test wants of one lane. */
export interface Wanted {
  readonly sets?: readonly BackendSet[];
  readonly frontends?: readonly Frontend[];
  /** False: nothing is attached. */
  readonly attached?: boolean;
}

/** Makes it so, in the order of applying: writes first, then removals in reverse. Throws what fails. */
export async function program(lane: BpfLane, { sets = [], frontends = [], attached = true }: Wanted): Promise<void> {
  const { drivers, build } = lane;
  const known = await drivers['backend-set'].list(AbortSignal.timeout(10_000));
  const check = (outcome: Outcome<'backend-set' | 'frontend' | 'attachment'>): void => {
    for (const error of outcome.failures.values()) throw error;
  };
  const all = new Map([...known.values(), ...sets].map((set) => [set.id, set]));
  check(await converge(drivers['backend-set'], [...all.values()]));
  check(await converge(drivers.frontend, frontends));
  check(await converge(drivers.attachment, attached ? SOCKET_HOOKS.map((hook) => ({ hook, build })) : []));
  check(await converge(drivers['backend-set'], sets));
}

/** The first `count` servers, or those given. */
export const setOf = (family: Family, ...servers: readonly number[]): BackendSet =>
  backendSet(servers.map((i): Backend => ({ ip: SERVERS[family][i] as IpAddress, port: SERVER_PORT })));

/** A frontend of the VIP, port 80, TCP, that refuses unless it is told otherwise. */
export const frontendOf = (family: Family, fields: Partial<Frontend> = {}): Frontend => ({
  scope: 'internal',
  ip: VIPS[family],
  port: 80,
  protocol: 'TCP',
  kind: 'cluster',
  target: 'refuse',
  service: 'default/web:http',
  ...fields,
});
