/** Pods that Debian's containerd and runc run, asked over CRI as kubelet asks, with the agent's own conflist. */
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { execa } from 'execa';
import { sandboxConfigOf } from '../../lab/containerd.ts';
import type { Cri } from '../../lab/cri.ts';
import { inNode, pathOnHost } from '../../lab/node.ts';
import { PAUSE_IMAGE } from '../../lab/pause-image.ts';
import { pingAll, pingEnds } from '../../lab/ping.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { checkMachine } from '../../lab/preflight.ts';
import { until } from '../../lab/until.ts';
import {
  criOf,
  ctr,
  pingFrom,
  readContainerdHost,
  recordedIps,
  restartAgent,
  restartContainerd,
  runUntilItWorks,
  startIn,
  untilAsBefore,
} from '../support/containerd.ts';
import { output, run, shIn, TIMEOUT_MS, useLab } from '../support/lab.ts';

const NODES = ['node-1', 'node-2'] as const;
type NodeName = (typeof NODES)[number];
const CALLS = '/run/cni-calls';
const FAIL = '/run/fail-add';
const HOLD = '/run/hold-add';

/** Debian's portmap behind a witness of containerd's calls that lets an ADD wait or fail on demand, after Tulle's own. */
const WITNESS = `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID [$CNI_NETNS]" >>${CALLS}
while [ "$CNI_COMMAND" = ADD ] && [ -e ${HOLD} ]; do sleep 0.1; done
if [ "$CNI_COMMAND" = ADD ] && [ -e ${FAIL} ]; then
  echo '{"cniVersion":"1.0.0","code":100,"msg":"out of luck"}'
  exit 1
fi
exec /usr/lib/cni/portmap
`;

const lab = useLab({ nodes: NODES.length, runtime: 'containerd', agentArgs: ['--cni-chain', 'portmap'] }, prepare);
const cris = new Map<NodeName, Cri>();
const peers = new Map<NodeName, PodStatus>();

async function prepare(): Promise<void> {
  for (const name of NODES) {
    const file = pathOnHost(lab().node(name), '/opt/cni/bin/portmap');
    await writeFile(file, WITNESS);
    await chmod(file, 0o755);
    cris.set(name, criOf(lab().node(name)));
    peers.set(name, await lab().runPod(`peer-${name}`, name));
  }
}

test.after.always(() => {
  for (const cri of cris.values()) cri[Symbol.dispose]();
});

const criIn = (name: NodeName): Cri => cris.get(name) as Cri;
const podConfig = (name: string) => sandboxConfigOf({ namespace: 'default', name, uid: `uid-${name}` });
const readNode = (name: NodeName) => readContainerdHost(lab().node(name));
const asBefore = (name: NodeName, before: readonly string[]) => untilAsBefore(lab().node(name), before);

/** From the standing pod of the other node. */
const pingFromOther = async (name: NodeName, addresses: readonly string[]): Promise<void> => {
  const other = NODES.find((candidate) => candidate !== name) as NodeName;
  await pingFrom(lab().node(other), (peers.get(other) as PodStatus).netns, addresses);
};

test.serial('a machine without containerd is told what to install', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'tulle-test-path-'));
  t.teardown(() => rm(dir, { recursive: true }));
  const link = 'for name in unshare nsenter setpriv mount ip openssl ping; do ln -s "$(command -v $name)" "$0"; done';
  await output(['sh', '-ec', link, dir]);
  t.notThrows(() => checkMachine('lab', dir));
  const { message = '' } = t.throws(() => checkMachine('containerd', dir)) ?? {};
  t.regex(message, /got no containerd, .*; apt-get install containerd runc musl-tools, or run scripts\/setup/);
});

test.serial('a sandbox has the addresses on record, in the network where its process is', async (t) => {
  for (const name of NODES) {
    const node = lab().node(name);
    const { containerId, addresses, netns } = peers.get(name) as PodStatus;
    const { ips, state, netns: path, pid } = await criIn(name).podSandboxStatus(containerId);
    t.is(state, 'SANDBOX_READY');
    t.is(ips.length, 2);
    t.deepEqual(ips, [...addresses]);
    t.deepEqual(ips, await recordedIps(node, containerId));
    t.is(path, `/var/run/netns/${netns}`);
    const [ofProcess, ofPath] = (await output(shIn(node, `stat -Lc %i /proc/${pid}/ns/net ${path}`))).split('\n');
    t.is(ofProcess, ofPath);
    const inside = await output(shIn(node, `nsenter -t ${pid} -n ip -o address show dev eth0`));
    for (const ip of ips) t.true(inside.includes(` ${ip}/`), inside);
  }
});

test.serial('sandboxes and nodes reach each other over both families', async (t) => {
  const status = await lab().control.status();
  const options = { count: 2, families: status.families, nodes: true };
  const results = await pingAll(pingEnds(status), options, AbortSignal.timeout(TIMEOUT_MS));
  t.is(results.length, 20);
  t.deepEqual(
    results.filter(({ ok }) => !ok),
    [],
  );
  for (const { namespace, name } of peers.values()) await lab().control.checkPod(namespace, name);
});

test.serial('DEL comes twice, the second time without a namespace, and nothing is left', async (t) => {
  const before = await readNode('node-1');
  const id = await criIn('node-1').runPodSandbox(podConfig('twice'));
  const { netns } = await criIn('node-1').podSandboxStatus(id);
  await criIn('node-1').stopPodSandbox(id);
  t.is((await criIn('node-1').podSandboxStatus(id)).state, 'SANDBOX_NOTREADY');
  t.deepEqual(await recordedIps(lab().node('node-1'), id), []);
  await criIn('node-1').removePodSandbox(id);
  const calls = (await readFile(pathOnHost(lab().node('node-1'), CALLS), 'utf8')).split('\n');
  t.deepEqual(
    calls.filter((line) => line.includes(id)).map((line) => line.replace(id, 'ID')),
    [`ADD ID [${netns}]`, `DEL ID [${netns}]`, 'DEL ID []'],
  );
  await asBefore('node-1', before);
});

test.serial('a sandbox with the network of the node asks Tulle for nothing', async (t) => {
  const before = await readNode('node-1');
  const securityContext = { namespaceOptions: { network: 'NODE' } } as const;
  const config = { ...podConfig('hostnet'), hostname: '', linux: { securityContext } };
  const id = await criIn('node-1').runPodSandbox(config);
  t.deepEqual((await criIn('node-1').podSandboxStatus(id)).ips, []);
  t.deepEqual(await recordedIps(lab().node('node-1'), id), []);
  await criIn('node-1').removePodSandbox(id);
  await asBefore('node-1', before);
});

test.serial('a sandbox that a later plugin refuses leaves nothing behind', async (t) => {
  const before = await readNode('node-1');
  const fail = pathOnHost(lab().node('node-1'), FAIL);
  await writeFile(fail, '');
  const { message } = await t.throwsAsync(criIn('node-1').runPodSandbox(podConfig('refused')), { name: 'CriError' });
  t.regex(message, /plugin type="portmap" failed \(add\): out of luck/);
  await rm(fail);
  t.is((await criIn('node-1').listPodSandbox()).length, 1, 'the standing pod');
  await asBefore('node-1', before);
});

test.serial('while the agent is away nothing starts, saying why, and what stops is released later', async (t) => {
  const node = lab().node('node-1');
  const cri = criIn('node-1');
  const before = await readNode('node-1');
  const id = await cri.runPodSandbox(podConfig('leaving'));
  await lab().control.stopAgent('node-1');
  const { message } = await t.throwsAsync(cri.runPodSandbox(podConfig('lonely')), { name: 'CriError' });
  t.regex(message, /plugin type="tulle" failed \(add\): .*agent is not running on this node/);
  await cri.stopPodSandbox(id);
  await cri.removePodSandbox(id);
  const queued = (await output(shIn(node, 'cat /run/tulle/delete-queue/*'))).split(id).length - 1;
  t.true(queued > 0, 'its DEL waits');
  t.not((await recordedIps(node, id)).length, 0, 'and nobody could take the record away');
  await lab().control.startAgent('node-1');
  await asBefore('node-1', before);
});

/** Waits, at a millisecond's pace, until node-1 has so many records of pods: until somebody's ADD is under way. */
async function untilRecords(count: number): Promise<void> {
  const directory = pathOnHost(lab().node('node-1'), '/run/tulle/pods');
  const isThere = async () => (await readdir(directory)).length >= count;
  await until(isThere, { describe: `${count} records`, deadlineMs: TIMEOUT_MS, intervalMs: 1 });
}

/** Every gap between two calls is used for a restart; the pod is reached from another node before it ends. */
async function liveThrough(name: NodeName, pod: string, restart: () => Promise<void>): Promise<readonly string[]> {
  const cri = criIn(name);
  const id = await cri.runPodSandbox(podConfig(pod));
  const recorded = await recordedIps(lab().node(name), id);
  await restart();
  const { ips, state } = await cri.podSandboxStatus(id);
  if (state !== 'SANDBOX_READY' || `${ips}` !== `${recorded}`)
    throw new Error(`${pod}: ${state} ${ips}, not ${recorded}`);
  await pingFromOther(name, ips);
  await restart();
  await cri.stopPodSandbox(id);
  await restart();
  await cri.removePodSandbox(id);
  return ips;
}

test.serial('restarts of containerd or of the agent between any two calls change nothing', async (t) => {
  const before = await Promise.all(NODES.map(readNode));
  const { control } = lab();
  const ips = await Promise.all([
    liveThrough('node-1', 'survivor-1', () => restartContainerd(control, 'node-1', criIn('node-1'))),
    liveThrough('node-2', 'survivor-2', () => restartAgent(control, lab().node('node-2'))),
  ]);
  t.deepEqual(
    ips.map((addresses) => addresses.length),
    [2, 2],
  );
  for (const [index, name] of NODES.entries()) await asBefore(name, before[index] as readonly string[]);
  for (const name of NODES) await pingFromOther(name, (peers.get(name) as PodStatus).addresses);
});

test.serial(
  'containerd killed amid a RunPodSandbox: what it then lists can be removed, and nothing is left',
  async (t) => {
    const cri = criIn('node-1');
    const before = await readNode('node-1');
    const hold = pathOnHost(lab().node('node-1'), HOLD);
    await writeFile(hold, '');
    const answer = cri.runPodSandbox(podConfig('torn')).catch((error: unknown) => error);
    await untilRecords(2);
    await restartContainerd(lab().control, 'node-1', cri);
    await rm(hold);
    t.like(await answer, { name: 'CriError', code: 'UNAVAILABLE' });
    const torn = (await cri.listPodSandbox()).filter(({ state }) => state === 'SANDBOX_NOTREADY');
    t.deepEqual(
      torn.map(({ metadata }) => metadata.name),
      ['torn'],
    );
    for (const { id } of torn) await cri.stopPodSandbox(id);
    for (const { id } of torn) await cri.removePodSandbox(id);
    await asBefore('node-1', before);
  },
);

test.serial('ten sandboxes at once, the agent killed in their midst', async (t) => {
  const cri = criIn('node-1');
  const before = await readNode('node-1');
  const running = Array.from({ length: 10 }, (_, i) => runUntilItWorks(cri, podConfig(`crowd-${i}`), /type="tulle"/));
  await untilRecords(2);
  await lab().control.killAgent('node-1');
  const ids = await Promise.all(running);
  const ips = await Promise.all(ids.map(async (id) => (await cri.podSandboxStatus(id)).ips));
  t.is(new Set(ips.flat()).size, 20, 'each has its own');
  await pingFromOther('node-1', ips.flat());
  await Promise.all(ids.map((id) => cri.removePodSandbox(id)));
  await asBefore('node-1', before);
});

test.serial('a container of ctr run --cni has a network as well', async (t) => {
  const node = lab().node('node-1');
  const before = await readNode('node-1');
  // Shares of a CPU controller that the node's cgroup tree may not have.
  const [file, ...args] = ctr(node, 'run', '--cni', '--rm', '--cpu-shares', '0', PAUSE_IMAGE, 'by-hand');
  const running = execa(file, args, { reject: false, timeout: TIMEOUT_MS, all: true });
  const ips = await until(
    async () => {
      const found = await recordedIps(node, 'k8s.io-by-hand');
      return (
        found.length > 0 && (await run(inNode(node, ['pgrep', '-x', 'pause']))).stdout.split('\n').length > 1 && found
      );
    },
    { describe: 'the container', deadlineMs: TIMEOUT_MS },
  );
  await pingFromOther('node-1', ips);
  await output(ctr(node, 'task', 'kill', '--signal', 'SIGTERM', 'by-hand'));
  t.is((await running).exitCode, 0, (await running).all);
  await asBefore('node-1', before);
});

const HOST_PORT = 8080;
const SERVER = `require('http').createServer((q, a) => a.end('web ' + q.socket.remoteAddress)).listen(80, '::')`;

test.serial('a hostPort leads into its sandbox', async (t) => {
  const [node, outside] = [lab().node('node-1'), lab().node('node-2')];
  const before = await readNode('node-1');
  const config = { ...podConfig('web'), portMappings: [{ containerPort: 80, hostPort: HOST_PORT }] };
  const id = await criIn('node-1').runPodSandbox(config);
  const { netns } = await criIn('node-1').podSandboxStatus(id);
  {
    await using _ = await startIn(node, netns.replace(/.*\//, ''), [process.execPath, '-e', SERVER]);
    for (const [index, address] of node.addresses.entries()) {
      const host = address.includes(':') ? `[${address}]` : address;
      const ask = async () => {
        const { exitCode, stdout } = await run(inNode(outside, ['curl', '-sS', `http://${host}:${HOST_PORT}/`]));
        return exitCode === 0 && stdout;
      };
      const answer = await until(ask, { describe: 'an answer', deadlineMs: TIMEOUT_MS, intervalMs: 100 });
      t.is(answer, `web ${index === 0 ? '::ffff:' : ''}${outside.addresses[index]}`);
    }
  }
  await criIn('node-1').removePodSandbox(id);
  await asBefore('node-1', before);
});
