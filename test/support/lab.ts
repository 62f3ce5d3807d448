/** A lab for one test file: its own directory, ended with the file, and short ways to run things in it. */
import { randomBytes } from 'node:crypto';
import test from 'ava';
import { execa } from 'execa';
import { askAgent } from '../../agent/commands/ask-agent.ts';
import { type LabControl, type LabNodeStatus, type LabOptions, labControl } from '../../lab/control.ts';
import { removeLab } from '../../lab/down.ts';
import { labLayout } from '../../lab/layout.ts';
import { inNode, type NodeRef, pathOnHost } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { DEFAULT_OPTIONS, startLabProcess, TULLE } from '../../lab/up.ts';
import { RUN_DIR } from './agent-status.ts';

/** Bound against hanging. */
export const TIMEOUT_MS = 60_000;

export interface Output {
  readonly exitCode: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

export interface TestLab {
  readonly control: LabControl;
  /** As they were when the lab came up. */
  readonly nodes: ReadonlyMap<string, LabNodeStatus>;
  node(name: string): LabNodeStatus;
  runPod(name: string, node: string, command?: readonly string[]): Promise<PodStatus>;
}

/**
 * Starts a lab before the tests of this file and removes it after them; `prepare` is for what all of them need in it.
 * Call once, at the top of a file.
 */
export function useLab(options: Partial<LabOptions>, prepare?: () => Promise<void>): () => TestLab {
  const layout = labLayout(`/run/tulle-lab-test-${randomBytes(4).toString('hex')}`);
  let lab: TestLab | undefined;
  test.before(async () => {
    await startLabProcess(layout, { ...DEFAULT_OPTIONS, ...options }, () => undefined);
    const control = labControl(layout);
    lab = testLab(control, new Map((await control.status()).nodes.map((node) => [node.name, node])));
    await prepare?.();
  });
  test.after.always(() => removeLab(layout, () => undefined));
  return () => {
    if (lab) return lab;
    throw new Error('the lab of this file is not up');
  };
}

function testLab(control: LabControl, nodes: ReadonlyMap<string, LabNodeStatus>): TestLab {
  return {
    control,
    nodes,
    node: (name) => {
      const node = nodes.get(name);
      if (node) return node;
      throw new Error(`no node ${name}`);
    },
    runPod: (name, node, command) => control.runPod({ namespace: 'default', name, node, command }),
  };
}

/** Runs to its end; a failure is an answer too. */
export async function run([file = '', ...args]: readonly string[]): Promise<Output> {
  const { exitCode, stdout, stderr } = await execa(file, args, { reject: false, timeout: TIMEOUT_MS });
  return { exitCode, stdout, stderr };
}

/** Throws unless the exit code is 0. */
export async function output(argv: readonly string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await run(argv);
  if (exitCode === 0) return stdout;
  throw new Error(`exit code ${exitCode} of ${argv.join(' ')}: ${stderr || stdout}`);
}

/** Shell lines in a node; the first that fails ends them. */
export const shIn = (node: NodeRef, line: string): readonly string[] => inNode(node, ['sh', '-ec', line]);
/** Shell lines in a named network namespace of a node; `/sys` is that namespace's. */
export const shInNetns = (node: NodeRef, netns: string, line: string): readonly string[] =>
  inNode(node, ['ip', 'netns', 'exec', netns, 'sh', '-ec', line]);

/** `tulle ...` in a node. */
export const tulle = (node: NodeRef, ...args: readonly string[]): Promise<Output> =>
  run(inNode(node, [TULLE, ...args]));

/** Waits until the agent would change nothing, and says what it would change if that does not happen. */
export async function untilSettled(node: NodeRef): Promise<void> {
  let last = '';
  const isSettled = async () => {
    const changes = await askAgent(pathOnHost(node, RUN_DIR), 'diff').catch(String);
    last = JSON.stringify(changes);
    return Array.isArray(changes) && changes.length === 0;
  };
  try {
    await until(isSettled, { describe: `an empty diff of ${node.name}`, deadlineMs: TIMEOUT_MS, intervalMs: 50 });
  } catch (cause) {
    throw new Error(`${node.name} does not settle: ${last}`, { cause });
  }
}
