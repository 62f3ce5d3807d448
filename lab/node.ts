/** A node of the lab: process 1 of its own network, mount, pid, cgroup, uts and ipc namespaces, and how to enter them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { createCgroup } from './cgroup.ts';
import { LabError } from './lab-error.ts';
import type { NodeLayout } from './layout.ts';

/** All that is needed to enter a node, from any process of the host. */
export interface NodeRef {
  readonly name: string;
  /** The node's process 1, as the host numbers it. */
  readonly pid: number;
  /** Absolute path of the node's cgroup v2 directory. */
  readonly cgroup: string;
}

export interface RunningNode extends NodeRef {
  /** Resolves when every process of the node is gone. */
  readonly ended: Promise<void>;
}

const INIT = fileURLToPath(new URL('node-init.sh', import.meta.url));
const START_DEADLINE_MS = 10_000;

/** Moves itself into the cgroup whose cgroup.procs is the first argument, then becomes the rest. */
const JOIN_CGROUP = 'echo 0 >"$0" && exec "$@"';

/** argv that runs `argv` inside a node: its namespaces, its file system view, its cgroup. */
export const inNode = (node: NodeRef, argv: readonly string[]): readonly [string, ...string[]] =>
  inCgroup(node.cgroup, ['nsenter', '--target', String(node.pid), '--all', '--', ...argv]);

/** argv that runs `argv` in the named network namespace of a node, in the cgroup of that pod; `/sys` is the pod's. */
export const inPod = (node: NodeRef, netns: string, argv: readonly string[]): readonly [string, ...string[]] =>
  inCgroup(podCgroup(node, netns), [
    'nsenter',
    '--target',
    String(node.pid),
    '--all',
    '--',
    'ip',
    'netns',
    'exec',
    netns,
    ...argv,
  ]);

export const podCgroup = (node: NodeRef, netns: string): string => `${node.cgroup}/pods/${netns}`;

/** Where the host sees a file of the node. */
export const pathOnHost = (node: NodeRef, path: string): string => `/proc/${node.pid}/root${path}`;

/** nsenter leaves the cgroup as it is, so it is joined first. */
const inCgroup = (cgroup: string, argv: readonly string[]): readonly [string, ...string[]] => [
  'sh',
  '-c',
  JOIN_CGROUP,
  `${cgroup}/cgroup.procs`,
  ...argv,
];

/**
 * Starts a node. It dies with this process (and so must be called from the main thread: a parent-death signal belongs
 * to the thread that forked). Throws LabError.
 */
export async function startNode(name: string, layout: NodeLayout, signal: AbortSignal): Promise<RunningNode> {
  await createCgroup(`${layout.cgroup}/pods`);
  await mkdir(layout.podLogs, { recursive: true });
  const [file, ...args] = nodeCommand(name, layout);
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'exit').then(() => undefined);
  const stderr = text(child.stderr);
  const pid = await Promise.race([firstLine(child, signal), ended]);
  if (pid !== undefined && /^\d+$/.test(pid)) return { name, pid: Number(pid), cgroup: layout.cgroup, ended };
  child.kill('SIGKILL');
  throw new LabError({
    operation: `start node ${name}`,
    expected: 'the number of its first process',
    received: pid ?? ((await stderr).trim() || 'nothing'),
    remedy: 'a lab needs root with CAP_SYS_ADMIN, and the file systems overlay, bpf, cgroup2',
  });
}

const nodeCommand = (name: string, { cgroup, dir }: NodeLayout): readonly [string, ...string[]] => [
  'setpriv',
  '--pdeathsig',
  'KILL',
  ...inCgroup(cgroup, [
    'unshare',
    ...['--net', '--mount', '--pid', '--cgroup', '--uts', '--ipc'],
    ...['--fork', '--kill-child=KILL', '--propagation', 'private', '--', 'sh', INIT, dir, name],
  ]),
];

async function firstLine(child: ChildProcess, signal: AbortSignal): Promise<string | undefined> {
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(START_DEADLINE_MS)]);
  const lines = createInterface({ input: child.stdout as NonNullable<ChildProcess['stdout']>, signal: deadline });
  for await (const line of lines) return line;
  return undefined;
}
