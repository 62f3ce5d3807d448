/** The lab as a person uses it, by its command line, with real agents. */
import { randomBytes } from 'node:crypto';
import { access } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { execa } from 'execa';
import type { LabStatus } from '../../lab/control.ts';
import { removeLab } from '../../lab/down.ts';
import { labLayout } from '../../lab/layout.ts';
import type { PingResult } from '../../lab/ping.ts';
import { until } from '../../lab/until.ts';

const TULLE = fileURLToPath(new URL('../../tulle', import.meta.url));
const layout = labLayout(`/run/tulle-lab-test-${randomBytes(4).toString('hex')}`);
const NODES = ['node-1', 'node-2', 'node-3'];
/** Bound against hanging. */
const TIMEOUT_MS = 60_000;
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };

interface Answer {
  readonly exitCode: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

async function lab(...args: readonly string[]): Promise<Answer> {
  const env = { TULLE_LAB_DIR: layout.dir };
  const { exitCode, stdout, stderr } = await execa(TULLE, ['lab', ...args], {
    reject: false,
    env,
    timeout: TIMEOUT_MS,
  });
  return { exitCode, stdout, stderr };
}

async function status(): Promise<LabStatus> {
  return JSON.parse((await lab('status', '--json')).stdout) as LabStatus;
}

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** What a lab could leave behind, or change, outside of itself: one line a fact. */
async function readOutside(): Promise<ReadonlySet<string>> {
  const questions = [
    ['ip', '-o', 'link'],
    ['ip', '-o', 'address', 'show', 'scope', 'global'],
    ['ip', 'route', 'show', 'table', 'all'],
    ['ip', '-6', 'route', 'show', 'table', 'all'],
    ['ip', 'rule'],
    ['iptables-save'],
    ['ip6tables-save'],
    ['ipset', 'list', '-n'],
    ['sysctl', 'net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding', 'net.ipv6.conf.default.accept_dad'],
    ['cat', '/proc/self/mounts'],
    ['ls', '-d', '/etc/cni', '/opt/cni', '/var/lib/cni', '/run/tulle', '/run/mount', '/sys/fs/bpf/tulle'],
  ];
  const answers = await Promise.all(questions.map(([file = '', ...args]) => execa(file, args, { reject: false })));
  const lines = answers.flatMap(({ command, stdout }) => stdout.split('\n').map((line) => `${command}: ${line}`));
  // Not what other tests of the same run have for themselves, nor comments, nor counters.
  const lasting = lines.filter((line) => !/tulle-test-|: #/.test(line));
  return new Set(lasting.map((line) => line.replace(/\[\d+:\d+\]/, '')));
}

async function outsideDifferences(): Promise<readonly string[]> {
  const now = await readOutside();
  return [...now].filter((line) => !before.has(line)).concat([...before].filter((line) => !now.has(line)));
}

let before: ReadonlySet<string> = new Set();
test.before(async () => {
  before = await readOutside();
});
test.after.always(() => removeLab(layout, () => undefined));

test.serial('lab up brings three ready agents, each step with its time', async (t) => {
  const { exitCode, stdout, stderr } = await lab('up', '--nodes', '3', '--families', 'dual');
  t.is(exitCode, 0, stderr);
  for (const step of [
    'fabric',
    'certificates',
    'API server',
    'nodes: node-1 to node-3',
    'agents ready',
    'the lab is up',
  ]) {
    t.regex(stdout, new RegExp(`^ *\\d+ ms  ${step}`, 'm'));
  }
  const { nodes } = await status();
  t.deepEqual(
    nodes.map(({ name, state, agent, podCidrs, addresses }) => [
      name,
      state,
      agent.state,
      agent.ready,
      podCidrs.length,
      addresses.length,
    ]),
    NODES.map((name) => [name, 'up', 'running', true, 2, 2]),
  );
});

test.serial('pods of every node reach each other and the nodes, over both families', async (t) => {
  for (const node of NODES) {
    for (const name of [`${node}-a`, `${node}-b`]) {
      const { exitCode, stderr } = await lab('pod', 'run', name, '--node', node, '--', 'sleep', '1000');
      t.is(exitCode, 0, stderr);
    }
  }
  const { stdout, exitCode } = await lab('ping', '--json', '--nodes');
  const { ok, results } = JSON.parse(stdout) as { ok: boolean; results: readonly PingResult[] };
  t.deepEqual(
    results.filter((result) => !result.ok).map(({ from, to, address }) => `${from} -> ${to} ${address}`),
    [],
  );
  // 6 pods to 5 others, 6 pods to 3 nodes, 3 nodes to 6 pods; each over two families.
  t.is(results.length, (6 * 5 + 6 * 3 + 3 * 6) * 2);
  t.deepEqual([ok, exitCode], [true, 0]);
  for (const name of (await status()).pods.map((pod) => pod.name))
    t.is((await lab('pod', 'check', name)).exitCode, 0, name);
});

test.serial('lab exec passes the exit code on, and a pod that is removed is gone', async (t) => {
  const { exitCode, stdout } = await lab('exec', 'node-1-a', '--', 'sh', '-c', 'ip -o link show eth0; exit 7');
  t.is(exitCode, 7);
  t.regex(stdout, /eth0@/);
  t.is((await lab('pod', 'rm', 'node-1-b')).exitCode, 0);
  const again = await lab('pod', 'rm', 'node-1-b');
  t.is(again.exitCode, 1);
  t.regex(again.stderr, /cannot find the pod/);
  t.false((await status()).pods.some(({ name }) => name === 'node-1-b'));
  t.is((await lab('pod', 'run', 'node-1-b', '--node', 'node-1')).exitCode, 0, 'the name is free again');
});

test.serial('lab tour shows a packet in the tunnel, a repaired route and a settled node', async (t) => {
  const { exitCode, stdout, stderr } = await lab('tour');
  t.is(exitCode, 0, stderr);
  t.regex(stdout, /VXLAN.* vni 84\nIP 10\.84\.\d+\.\d+ > 10\.84\.\d+\.\d+: ICMP echo/);
  t.regex(stdout, /Deleted 10\.84\.1\.0\/24 .*\n.*10\.84\.1\.0\/24 .*\nrepaired after \d+\.\d ms/);
  for (const address of [/10\.96\.\d+\.\d+:80/, /\[fd96::\w+\]:80/]) {
    const line = new RegExp(`^${address.source} +(\\d+) +(\\d+) +(\\d+) +\\d+\\.\\d+ ms +\\d+\\.\\d+ ms$`, 'm');
    const counts = (line.exec(stdout) ?? []).slice(1).map(Number);
    t.is(
      counts.reduce((sum, count) => sum + count, 0),
      300,
      stdout,
    );
    // By chance less than once in a million tours, as 300 connections go to three by 100, give or take 8.
    t.true(Math.min(...counts) > 55, stdout);
  }
  t.regex(stdout, /tulle diff.*\n\(nothing: the kernel is as it should be\)/);
  t.regex(stdout, /tulle lab down/);
});

test.serial('an agent that is killed comes back while traffic goes on', async (t) => {
  const killed = Number(/process (\d+)/.exec((await lab('kill-agent', 'node-2')).stdout)?.[1]);
  const ping = await lab('ping');
  t.is(ping.exitCode, 0, ping.stdout);
  const isBack = async () => {
    const agent = (await status()).nodes.find(({ name }) => name === 'node-2')?.agent;
    return agent?.state === 'running' && agent.pid !== killed && agent.restarts === 1;
  };
  await until(isBack, { describe: 'the agent to run again', ...WAIT });
  const added = async () => (await lab('pod', 'run', 'after-restart', '--node', 'node-2')).exitCode === 0;
  await until(added, { describe: 'the agent to attach pods again', ...WAIT });
});

test.serial('lab up refuses to disturb a lab that is up', async (t) => {
  const { exitCode, stderr } = await lab('up');
  t.is(exitCode, 1);
  t.regex(stderr, /one that is up .*tulle lab down.*--force/);
});

test.serial('when the supervisor is killed everything ends, and down removes what is left', async (t) => {
  const { supervisorPid, nodes } = await status();
  process.kill(supervisorPid, 'SIGKILL');
  const isEmpty = async () => (await execa('cat', [`${layout.cgroup}/cgroup.events`])).stdout.includes('populated 0');
  await until(isEmpty, { describe: 'every process of the lab to end', ...WAIT });
  t.is(nodes.length, 3);
  const asked = await lab('status');
  t.is(asked.exitCode, 1);
  t.regex(asked.stderr, /no lab is up/);

  const { exitCode, stderr } = await lab('down');
  t.is(exitCode, 0, stderr);
  t.deepEqual([await exists(layout.dir), await exists(layout.cgroup)], [false, false]);
  t.deepEqual(await outsideDifferences(), []);
});

test.serial('a second lab up, set otherwise, starts from what a crash left, and lab down ends it', async (t) => {
  const options = ['--nodes', '1', '--families', 'ipv4'];
  t.is((await lab('up', ...options)).exitCode, 0);
  process.kill((await status()).supervisorPid, 'SIGKILL');
  const settings = ['--backend', 'host-gw', '--pod-link', 'bridge', '--', '--backend', 'vxlan'];
  const second = await lab('up', ...options, ...settings);
  t.is(second.exitCode, 0, second.stderr);
  t.regex(second.stdout, /removed /);
  const { stdout } = await lab('exec-node', 'node-1', '--', TULLE, 'status', '--json');
  t.like(JSON.parse(stdout), { backend: 'vxlan', podLink: 'bridge' }, 'what stands after -- wins');
  const { supervisorPid } = await status();
  t.is((await lab('down')).exitCode, 0);
  t.false(await exists(`/proc/${supervisorPid}/exe`));
  t.deepEqual([await exists(layout.dir), await exists(layout.cgroup)], [false, false]);
  t.deepEqual(await outsideDifferences(), []);
});
