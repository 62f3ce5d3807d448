/**
 * The image, built from the Dockerfile, in the pod that the manifest asks for: its capabilities, its mounts, its profile,
 * under containerd in nodes that are containers of a Docker of our own.
 */
import { readdir } from 'node:fs/promises';
import test, { type ExecutionContext } from 'ava';
import type { AgentStatus } from '../../agent/agent-status.ts';
import { parseIp } from '../../agent/model/ip.ts';
import { inNode, inPod, pathOnHost } from '../../lab/node.ts';
import type { Sandbox } from '../../lab/runtime.ts';
import { until } from '../../lab/until.ts';
import { type ClusterNode, type DockerCluster, startCluster } from '../docker/cluster.ts';
import { podSpec } from '../docker/daemon-set.ts';
import { differences, readHost } from '../support/cni-calls.ts';
import { recordedIps } from '../support/containerd.ts';
import { output } from '../support/lab.ts';

/** Bounds against hanging; the first for a machine without the cache of debian-base.ts. */
const SET_UP_MS = 900_000;
const TIMEOUT_MS = 60_000;
/** Of an agent without pods, as the manifest has it. */
const IDLE_LIMIT_KIB = 90 * 1024;
/** linux/capability.h */
const CAPABILITY_BITS: Readonly<Record<string, number>> = {
  DAC_OVERRIDE: 1,
  NET_ADMIN: 12,
  NET_RAW: 13,
  SYS_ADMIN: 21,
};

interface Pod {
  readonly host: ClusterNode;
  readonly sandbox: Sandbox;
}

const life = new AbortController();
let cluster: DockerCluster | undefined;
let before: readonly (readonly string[])[] = [];
let pods: readonly Pod[] = [];

test.before(async (t) => {
  t.timeout(SET_UP_MS);
  let startMs = performance.now();
  const tell = (step: string) => {
    t.log(`${step}: ${((performance.now() - startMs) / 1000).toFixed(1)} s`);
    startMs = performance.now();
  };
  cluster = await startCluster({ 'node-1': {}, 'node-2': { TULLE_SERVICES_MODE: 'auto' } }, tell, life.signal);
});

test.after.always(async (t) => {
  t.timeout(TIMEOUT_MS);
  life.abort();
  await cluster?.remove();
});

const hosts = (): readonly ClusterNode[] => cluster?.nodes ?? [];

/** Packets that came through the tunnel. */
const tunnelled = async ({ node }: ClusterNode): Promise<number> =>
  Number(await output(inNode(node, ['cat', '/sys/class/net/tulle.84/statistics/rx_packets'])));

const ping = ({ host, sandbox }: Pod, address: string, ...options: readonly string[]): Promise<string> =>
  output(inPod(host.node, sandbox.netns, ['ping', '-n', '-c', '3', '-i', '0.2', '-W', '5', ...options, address]));

/** Between the two pods, both ways and both families, through the tunnel. */
async function pingAll(t: ExecutionContext): Promise<void> {
  const counted = await Promise.all(hosts().map(tunnelled));
  for (const from of pods)
    for (const to of pods) if (from !== to) for (const address of to.sandbox.addresses) await ping(from, address);
  for (const [i, host] of hosts().entries()) {
    t.true((await tunnelled(host)) - (counted[i] as number) >= 12, `${host.node.name}: the pings took another way`);
  }
}

async function untilAsBefore(t: ExecutionContext): Promise<void> {
  for (const [i, { node }] of hosts().entries()) {
    let last: readonly string[] = [];
    const isAsBefore = async () => {
      last = differences(before[i] as readonly string[], await readHost(node));
      return last.length === 0;
    };
    const wait = { describe: `${node.name} to be as before`, deadlineMs: TIMEOUT_MS / 2, intervalMs: 100 };
    await until(isAsBefore, wait).catch(() => t.deepEqual(last, [], node.name));
  }
}

/** In KiB. What the start took is given back once there is nothing to do. */
function memoryAtRest(agent: ClusterNode['agent']): Promise<number> {
  const ask = async () => {
    const { stdout } = await agent.exec('cat', '/proc/1/status');
    const residentKib = Number(/^VmRSS:\s*(\d+) kB$/m.exec(stdout)?.[1]);
    return residentKib < IDLE_LIMIT_KIB && residentKib;
  };
  const describe = `the agent to take less than ${IDLE_LIMIT_KIB} KiB`;
  return until(ask, { describe, deadlineMs: 30_000, intervalMs: 500 });
}

test.serial('the agents get ready with what the manifest gives them, and with no more', async (t) => {
  t.timeout(TIMEOUT_MS);
  await Promise.all(hosts().map(({ agent }) => agent.start()));
  await Promise.all(hosts().map(({ agent }) => agent.ready()));
  const [{ livenessProbe, securityContext }] = podSpec().containers;
  const bits = securityContext.capabilities.add.map((name) => 1n << BigInt(CAPABILITY_BITS[name] ?? Number.NaN));
  const capabilities = bits.reduce((set, bit) => set | bit, 0n).toString(16);
  for (const { agent, node } of hosts()) {
    t.regex(await agent.probe(livenessProbe), /^200 /);
    const process = (await agent.exec('cat', '/proc/1/status')).stdout;
    for (const set of ['CapEff', 'CapPrm', 'CapBnd'])
      t.regex(process, new RegExp(`^${set}:\\t0*${capabilities}$`, 'm'));
    t.regex(process, /^Seccomp:\t2$/m);
    if (node.name === 'node-1') t.log(`${await memoryAtRest(agent)} KiB resident`);
    t.not((await agent.exec('touch', '/opt/tulle/file')).exitCode, 0, 'the root of the container can be written');
    t.not((await agent.exec('sh', '-c', 'echo 0 >/proc/sys/net/ipv4/ip_forward')).exitCode, 0);
    t.is((await agent.exec('sh', '-c', 'exec 3<>/dev/net/tun')).exitCode, 0, 'the backend tun cannot open its device');
    const { stdout, exitCode } = await agent.exec('tulle', 'status');
    t.is(exitCode, 0, stdout);
    t.notRegex(stdout, /^(problem|failing|blocked) /m);
    t.is((await agent.exec('tulle', 'diff')).exitCode, 0);
    const findings = await agent.exec('tulle', 'doctor');
    t.is(findings.exitCode, 0, findings.stdout);
    t.deepEqual((await readdir(pathOnHost(node, '/opt/cni/bin'))).sort(), ['loopback', 'tulle']);
  }
  before = await Promise.all(hosts().map(({ node }) => readHost(node)));
});

test.serial('sandboxes over CRI have the addresses on record and reach each other through the tunnel', async (t) => {
  t.timeout(TIMEOUT_MS);
  pods = await Promise.all(
    hosts().map(async (host) => {
      await host.containerd.networkReady(life.signal);
      const name = `pod-on-${host.node.name}`;
      const pod = { namespace: 'default', name, uid: `uid-of-${name}` };
      return { host, sandbox: await host.containerd.addPod(host.node, pod, life.signal) };
    }),
  );
  for (const { host, sandbox } of pods) {
    const { containerId, addresses } = sandbox;
    t.is(addresses.length, 2);
    t.true(addresses.every((address) => parseIp(address) === address));
    t.deepEqual(await recordedIps(host.node, containerId), addresses);
  }
  await pingAll(t);
});

test.serial('Services are served at the sockets of the node, not of the container of the agent', async (t) => {
  t.timeout(TIMEOUT_MS);
  const [, { host, sandbox }] = pods as [Pod, Pod];
  const { stdout } = await host.agent.exec('tulle', 'status', '--json');
  t.is((JSON.parse(stdout) as AgentStatus).services?.mode, 'ebpf', stdout);
  // Who asks has no credentials, which is an answer of the API server, too.
  const ask = ['curl', '-sSk', '--max-time', '10', 'https://10.96.0.1/version'];
  for (const inside of [inPod(host.node, sandbox.netns, ask), inNode(host.node, ask)])
    t.regex(await output(inside), /"(gitVersion|Status)"/);
});

test.serial(
  'without the agents packets go on, and what is deleted meanwhile is cleaned up by the next ones',
  async (t) => {
    t.timeout(TIMEOUT_MS);
    await Promise.all(hosts().map(({ agent }) => agent.kill()));
    await pingAll(t);
    const [first, second] = pods as [Pod, Pod];
    await first.host.containerd.removePod(first.host.node, first.sandbox, life.signal);
    t.is((await readdir(pathOnHost(first.host.node, '/run/tulle/delete-queue'))).length, 1);
    await Promise.all(hosts().map(({ agent }) => agent.start()));
    await Promise.all(hosts().map(({ agent }) => agent.ready()));
    await second.host.containerd.removePod(second.host.node, second.sandbox, life.signal);
    pods = [];
    await untilAsBefore(t);
    for (const { node, agent } of hosts()) {
      t.deepEqual(await readdir(pathOnHost(node, '/run/tulle/delete-queue')), []);
      t.is((await agent.exec('tulle', 'diff')).exitCode, 0);
    }
  },
);
