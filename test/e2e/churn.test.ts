/**
 * Pods that come and go while agents and callers are killed leave nothing behind, and no address is given twice. Runs
 * TULLE_CHURN_PAIRS pairs of ADD and DEL (`npm run soak`: 100,000), with TULLE_CHURN_SEED.
 */
import { randomInt } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import test from 'ava';
import { type NodeRef, pathOnHost } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from '../support/agent-status.ts';
import { churn } from '../support/churn.ts';
import { differences } from '../support/cni-calls.ts';
import { TIMEOUT_MS, untilSettled, useLab } from '../support/lab.ts';
import { dumpNode } from '../support/node-dump.ts';
import { nodePlace } from '../support/places.ts';

const PAIRS = Number(process.env['TULLE_CHURN_PAIRS'] ?? 2_000);
const SEED = Number(process.env['TULLE_CHURN_SEED'] ?? randomInt(2 ** 31));
/** Bound against hanging. */
const TIMEOUT_PER_PAIR_MS = 100;

const lab = useLab({ nodes: 1 });

test.serial(
  'no address, link, route, record, set member or queue entry is left, and none was given twice',
  async (t) => {
    t.timeout(60_000 + PAIRS * TIMEOUT_PER_PAIR_MS);
    t.log(`seed ${SEED}`);
    const node = lab().node('node-1');
    await untilSettled(node);
    const before = await remainders(node);
    const startMs = performance.now();
    const { faults, ...report } = await churn({
      node,
      pairs: PAIRS,
      concurrency: 8,
      live: 120,
      seed: SEED,
      callerKillPercent: 8,
      addsPerAgent: 250,
      killAgent: () => lab().control.killAgent('node-1'),
    });
    t.log(`${JSON.stringify(report)} in ${((performance.now() - startMs) / 1000).toFixed(1)} s`);
    t.deepEqual(faults, []);
    t.deepEqual([report.adds, report.dels], [PAIRS, PAIRS]);
    t.true(report.callersKilled > 0 && report.agentsKilled > 0, 'too little was killed to prove anything');

    let now: readonly string[] = [];
    const isClean = async () => {
      if ((await agentStatus(node))?.readiness.ready !== true) return false;
      now = await remainders(node);
      return differences(before, now).length === 0;
    };
    await until(isClean, { describe: 'nothing to be left', deadlineMs: TIMEOUT_MS, intervalMs: 100 }).catch(
      (cause: unknown) => t.fail(`${String(cause)}: ${differences(before, now).join('\n')}`),
    );
    await untilSettled(node);
    t.deepEqual((await agentStatus(node))?.attachments, []);
    const { agentLog } = node;
    t.regex(readFileSync(agentLog, 'utf8'), /^\{"level":"info"/m, 'levels are told apart');
    t.deepEqual(faultsOfAgents(agentLog), []);
  },
);

/** The node's kernel, and the files of records and of the queue, also those that are half written. */
async function remainders(node: NodeRef): Promise<readonly string[]> {
  const files = (directory: string) =>
    readdirSync(pathOnHost(node, directory)).map((name) => `file ${directory}/${name}`);
  const kernel = await dumpNode(nodePlace(node), '.');
  return [...kernel, ...files('/run/tulle/pods'), ...files('/run/tulle/delete-queue'), ...files('/run/netns')];
}

/** What an agent logs as an error needs a person: nothing here should. */
const faultsOfAgents = (log: string): readonly string[] =>
  readFileSync(log, 'utf8')
    .split('\n')
    .filter((line) => /^\{"level":"(error|fatal)"/.test(line));
