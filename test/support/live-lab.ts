/** A lab of two nodes whose agents read a file of settings that a test writes while pods run. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { apiPath } from '../../lab/api-writer.ts';
import { pingAll, pingEnds } from '../../lab/ping.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { type TestLab, TIMEOUT_MS, tulle, untilSettled, useLab } from './lab.ts';
import { dumpNode } from './node-dump.ts';
import { nodePlace, type Place, shellIn } from './places.ts';

export const NODES = ['node-1', 'node-2'] as const;
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };

export interface LiveLab {
  /** As useLab gives it. */
  readonly lab: () => TestLab;
  /** Own files beside that of the settings, which are YAML. */
  readonly directory: string;
  /** For agents that start from now on. */
  choose(settings: string): void;
  node(name: string): Place;
  pods(): Promise<readonly PodStatus[]>;
  /** Everything of a node and its pod that speaks of this. */
  mentions(name: string, what: RegExp): Promise<readonly string[]>;
  /** Pods reach each other in both families, and no node has anything left to do. */
  allIsWell(t: ExecutionContext, what: string): Promise<void>;
  untilGone(name: string, what: RegExp): Promise<void>;
  /** Gives node-2 and its Node other addresses: from and to are the last parts of them. */
  moveNode2(from: number, to: number): Promise<void>;
  /** With the settings of the moment. */
  restartAgents(whileAway?: () => Promise<void>): Promise<void>;
}

/** Full lists are so rare that only a notice can be behind what happens. Call once, at the top of a file. */
export function useLiveLab(settings: string): LiveLab {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-test-live-'));
  test.after.always(() => rmSync(directory, { recursive: true, force: true }));
  const configFile = join(directory, 'config.yaml');
  const choose = (text: string): void => writeFileSync(configFile, `${text}\n`);
  choose(settings);
  const lab = useLab({ nodes: 2, agentArgs: ['--config', configFile, '--resync-seconds', '600'] }, async () => {
    for (const name of NODES) await lab().runPod(`on-${name}`, name);
  });
  const node = (name: string) => nodePlace(lab().node(name));
  const pods = async () => (await lab().control.status()).pods;
  async function mentions(name: string, what: RegExp): Promise<readonly string[]> {
    const pod = (await pods()).find((each) => each.node === name);
    return (await dumpNode(node(name), pod?.netns as string)).filter((line) => what.test(line));
  }
  return {
    lab,
    directory,
    choose,
    node,
    pods,
    mentions,
    allIsWell: (t, what) => allIsWell(t, lab(), what),
    untilGone: (name, what) => untilGone(name, what, () => mentions(name, what)),
    moveNode2: (from, to) => moveNode2(lab(), from, to),
    async restartAgents(whileAway = async () => {}) {
      for (const name of NODES) await lab().control.stopAgent(name);
      await whileAway();
      for (const name of NODES) await lab().control.startAgent(name);
    },
  };
}

async function allIsWell(t: ExecutionContext, lab: TestLab, what: string): Promise<void> {
  for (const name of NODES) await untilSettled(lab.node(name));
  const status = await lab.control.status();
  const options = { count: 1, families: status.families, nodes: false };
  const lost = async () =>
    (await pingAll(pingEnds(status), options, AbortSignal.timeout(TIMEOUT_MS))).filter(({ ok }) => !ok);
  await until(async () => (await lost()).length === 0, { describe: `every ping to be answered: ${what}`, ...WAIT });
  for (const name of NODES) t.is((await tulle(lab.node(name), 'diff')).stdout, '', `${what}: ${name}`);
}

async function moveNode2(lab: TestLab, from: number, to: number): Promise<void> {
  await shellIn(
    nodePlace(lab.node('node-2')),
    `ip address del 172.30.0.${from}/24 dev eth0; ip address del fd30::${from}/64 dev eth0
     ip address add 172.30.0.${to}/24 dev eth0; ip address add fd30::${to}/64 dev eth0 nodad
     ip route replace default via 172.30.0.1; ip -6 route replace default via fd30::1 dev eth0`,
  );
  const addresses = [`172.30.0.${to}`, `fd30::${to}`].map((address) => ({ type: 'InternalIP', address }));
  const path = `${apiPath.node('node-2')}/status`;
  await lab.control.callApi({ method: 'PATCH', path, object: { status: { addresses } } });
}

async function untilGone(name: string, what: RegExp, mentions: () => Promise<readonly string[]>): Promise<void> {
  let left: readonly string[] = [];
  const isGone = async () => {
    left = await mentions();
    return left.length === 0;
  };
  await until(isGone, { describe: `${what} to go from ${name}`, ...WAIT }).catch((cause: unknown) => {
    throw new Error(`${name} still has:\n${left.join('\n')}`, { cause });
  });
}
