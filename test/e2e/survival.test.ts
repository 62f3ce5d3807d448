/** What pods say to each other does not depend on the agents, nor on the API server: not one packet is lost. */
import test, { type ExecutionContext } from 'ava';
import type { AgentStatus } from '../../agent/agent-status.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from '../support/agent-status.ts';
import { createBuilds } from '../support/builds.ts';
import { type TestLab, TIMEOUT_MS, untilSettled, useLab } from '../support/lab.ts';
import { nodePlace, outputIn } from '../support/places.ts';
import { whileStreaming } from '../support/streaming.ts';

const NODES = ['node-1', 'node-2'] as const;
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };
const [OLD, NEW] = ['1.0.0', '1.1.0'] as const;
/** How agents end, and the version of those that follow. */
const RESTARTS = [
  ['SIGKILL', OLD],
  ['SIGTERM', OLD],
  ['SIGTERM', NEW],
  ['SIGKILL', OLD],
] as const;

/** The newer one words a rule of the gate differently, so that an upgrade rewrites the chain that every packet passes. */
const builds = await createBuilds([
  { version: OLD },
  {
    version: NEW,
    edits: [{ file: 'agent/plan/node-network.ts', from: "'from a pod that is not ready'", to: "'from no ready pod'" }],
  },
]);
test.after.always(() => builds.remove());

const labs = {
  routed: useLab({ nodes: 2, segments: 2, agentCommand: [builds.tulle, 'agent'] }),
  // Once of each: what the agents do is the same, and only the frames take another way.
  bridge: useLab({ nodes: 2, agentCommand: [builds.tulle, 'agent'], agentArgs: ['--pod-link', 'bridge'] }),
};

for (const [podLink, lab] of Object.entries(labs)) {
  const stream = async (t: ExecutionContext, disturb: () => Promise<void>) => {
    const { pods } = await lab().control.status();
    const [from, to] = NODES.map((node) => pods.find((pod) => pod.node === node));
    if (!from || !to) throw new Error('a pod is missing');
    await whileStreaming(t, { lab: lab(), from, to }, disturb);
    for (const node of NODES) await untilSettled(lab().node(node));
  };

  test.serial(`${podLink}: pods on two nodes`, async (t) => {
    for (const node of NODES) t.is((await lab().runPod(`pod-${node}`, node)).addresses.length, 2);
    for (const node of NODES) await untilSettled(lab().node(node));
  });

  test.serial(`${podLink}: no packet is lost while the agents are killed, restarted and upgraded`, async (t) => {
    const place = nodePlace(lab().node('node-1'));
    await stream(t, async () => {
      for (const [signal, version] of RESTARTS) {
        builds.switchTo(version);
        await untilReplaced(lab(), signal);
        await untilEach(lab(), `version ${version} ready`, (status) => isReady(status) && status.version === version);
        for (const node of NODES) await untilSettled(lab().node(node));
        t.is((await outputIn(place, 'iptables-save')).includes('from_no_ready_pod'), version === NEW);
        const executable = await outputIn(place, 'sh', '-c', '/opt/cni/bin/tulle --version 2>&1');
        t.regex(executable, new RegExp(`^tulle-cni ${version}:`));
      }
    });
  });

  for (const fault of podLink === 'routed' ? (['unavailable', 'stalled'] as const) : (['unavailable'] as const)) {
    test.serial(`${podLink}: no packet is lost while the API is ${fault} and agents start without it`, async (t) => {
      t.teardown(() => lab().control.setApiFault('none'));
      await stream(t, async () => {
        await lab().control.setApiFault(fault);
        if (fault === 'unavailable') await untilEach(lab(), 'an agent that cannot read the API', cannotRead);
        await untilReplaced(lab(), 'SIGKILL');
        await untilEach(lab(), 'an agent that is not ready', async (status) => !status.readiness.ready);
        await lab().control.setApiFault('none');
        await untilEach(lab(), 'a ready agent', isReady);
      });
    });
  }

  test.serial(`${podLink}: afterwards pods are as they were, and more can be made`, async (t) => {
    for (const node of NODES) await t.notThrowsAsync(lab().control.checkPod('default', `pod-${node}`));
    const { addresses } = await lab().runPod('late', 'node-1');
    const { pods } = await lab().control.status();
    t.is(new Set(pods.flatMap((pod) => pod.addresses)).size, 6, addresses.join(' '));
  });
}

async function untilEach(lab: TestLab, describe: string, holds: (status: AgentStatus) => unknown): Promise<void> {
  const check = async (node: string) => {
    const status = await agentStatus(lab.node(node));
    return status !== undefined && Boolean(await holds(status));
  };
  for (const node of NODES) await until(() => check(node), { describe: `${describe} on ${node}`, ...WAIT });
}

const isReady = ({ readiness }: AgentStatus): boolean => readiness.ready;
const cannotRead = ({ cluster }: AgentStatus): boolean => cluster.resources.some(({ error }) => error !== undefined);

async function untilReplaced(lab: TestLab, signal: NodeJS.Signals): Promise<void> {
  const pids = async () => (await lab.control.status()).nodes.map(({ agent }) => agent.pid);
  const before = await pids();
  for (const pid of before) if (pid !== undefined) process.kill(pid, signal);
  const areOthers = async () => (await pids()).every((pid) => pid !== undefined && !before.includes(pid));
  await until(areOthers, { describe: 'other agents', ...WAIT });
  await untilEach(lab, 'an agent that answers', () => true);
}
