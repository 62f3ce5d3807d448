/** A lab node's containerd as kubelet sees it, its end, and everything that a sandbox could leave in the node. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { createCgroup, removeCgroup } from '../../lab/cgroup.ts';
import type { LabControl, LabNodeStatus } from '../../lab/control.ts';
import { Cri, CriError, type SandboxConfig } from '../../lab/cri.ts';
import { inNode, inPod, type NodeRef, pathOnHost, podCgroup } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { cni, differences, readHost } from './cni-calls.ts';
import { output, shIn, TIMEOUT_MS } from './lab.ts';

const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };

/** Throws where the lab was made without containerd. */
export function criOf({ name, containerd }: LabNodeStatus): Cri {
  if (containerd) return new Cri(containerd.socket);
  throw new Error(`${name} has no containerd`);
}

/** SIGKILL; resolves when another process is ready for sandboxes. */
export async function restartContainerd(control: LabControl, name: string, cri: Cri): Promise<void> {
  const pid = async () => (await control.status()).nodes.find((node) => node.name === name)?.containerd?.pid;
  const old = await pid();
  if (old === undefined) throw new Error(`no containerd runs in ${name}`);
  process.kill(old, 'SIGKILL');
  await until(async () => ![undefined, old].includes(await pid()), { describe: 'another containerd', ...WAIT });
  const isReady = async () => (await cri.conditions().catch(() => [])).filter(({ status }) => status).length === 2;
  await until(isReady, { describe: `containerd of ${name} to be ready`, ...WAIT });
}

/** SIGKILL; resolves when another process answers the runtime. */
export async function restartAgent(control: LabControl, node: NodeRef): Promise<void> {
  await control.killAgent(node.name);
  const nobody = { node, containerId: 'none', netns: 'none', ifName: 'none' };
  const isReady = async () => (await cni(nobody, 'STATUS')).code === 0;
  await until(isReady, { describe: `the agent of ${node.name} to be ready`, ...WAIT });
}

/** The addresses that the agent has on record for a container. */
export async function recordedIps(node: NodeRef, containerId: string): Promise<readonly string[]> {
  const directory = pathOnHost(node, '/run/tulle/pods');
  const names = (await readdir(directory)).filter((name) => name.endsWith('.json'));
  const records = await Promise.all(
    names.map(async (name) => JSON.parse(await readFile(join(directory, name), 'utf8'))),
  );
  return records.find((record) => record.containerId === containerId)?.ips ?? [];
}

/** What kubelet does with a failure: another attempt of the same pod, until it works. Returns the id. */
export async function runUntilItWorks(cri: Cri, config: SandboxConfig, expected: RegExp): Promise<string> {
  let attempt = 0;
  const run = () =>
    cri.runPodSandbox({ ...config, metadata: { ...config.metadata, attempt: attempt++ } }).catch((error: unknown) => {
      if (error instanceof CriError && expected.test(error.message)) return undefined;
      throw error;
    });
  return until(run, { describe: `sandbox ${config.metadata.name}`, deadlineMs: TIMEOUT_MS, intervalMs: 300 });
}

/** One echo request to each address. Throws when an answer is missing. */
export async function pingFrom(node: NodeRef, netns: string, addresses: readonly string[]): Promise<void> {
  for (const address of addresses) await output(inPod(node, netns, ['ping', '-n', '-c', '1', '-W', '5', address]));
}

/** Runs a command in a sandbox's network until it is disposed of. */
export async function startIn(node: NodeRef, netns: string, command: readonly string[]): Promise<AsyncDisposable> {
  const cgroup = podCgroup(node, netns);
  await createCgroup(cgroup);
  const [file, ...args] = inPod(node, netns, command);
  const ended = execa(file, args, { reject: false, stdio: 'ignore' });
  return {
    [Symbol.asyncDispose]: async () => {
      await removeCgroup(cgroup);
      await ended;
    },
  };
}

const QUESTIONS = [
  'ls /run/netns',
  'ls /var/lib/cni/results 2>/dev/null || true',
  'ctr -n k8s.io containers ls -q',
  'ctr -n k8s.io tasks ls -q',
  // runc leaves the parents of a container's cgroup.
  'find /sys/fs/cgroup -mindepth 1 -type d ! -path /sys/fs/cgroup/k8s.io',
  'pgrep -a pause || true',
];

/** What stays of portmap's first work: chains and their headers. */
const PORTMAP = /CNI-HOSTPORT-|^\*|^COMMIT/;

/** As readHost, with what containerd, runc and libcni could leave. */
export async function readContainerdHost(node: NodeRef): Promise<readonly string[]> {
  const facts = (await output(shIn(node, QUESTIONS.join('; ')))).split('\n');
  return [...(await readHost(node)).filter((line) => !PORTMAP.test(line)), ...facts.sort()];
}

/** Throws, with what differs, when a node does not become as it was. */
export async function untilAsBefore(node: NodeRef, before: readonly string[]): Promise<void> {
  let last: readonly string[] = [];
  const isAsBefore = async () => {
    last = differences(before, await readContainerdHost(node));
    return last.length === 0;
  };
  await until(isAsBefore, { describe: `${node.name} to be as before`, ...WAIT }).catch((cause: unknown) => {
    throw new Error(last.join('\n'), { cause });
  });
}

/** `ctr` in a node, in the namespace of CRI, where the pause image is. */
export const ctr = (node: NodeRef, ...args: readonly string[]): readonly [string, ...string[]] =>
  inNode(node, ['ctr', '--namespace', 'k8s.io', ...args]);
