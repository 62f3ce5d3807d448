/** What pods say to each other does not depend on the agents, nor on the API server: not one packet is lost. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import type { AgentStatus } from '../../agent/agent.ts';
import { inPod } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import type { Receipt, Sending } from '../support/traffic.ts';

const NODES = ['node-1', 'node-2'] as const;
const PORT = '7000';
const TRAFFIC = fileURLToPath(new URL('../support/traffic.ts', import.meta.url));
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };

const lab = useLab({ nodes: 2, segments: 2 });

interface Program {
  readonly child: ChildProcess;
  readonly lines: Interface;
}

/** In a pod, before all others in the queue for a processor: a receiver that sleeps loses what the network brought. */
async function start(
  t: ExecutionContext,
  pod: { node: string; netns: string },
  ...args: readonly string[]
): Promise<Program> {
  const [file, ...rest] = inPod(lab().node(pod.node), pod.netns, [
    'nice',
    '-n',
    '-15',
    process.execPath,
    TRAFFIC,
    ...args,
  ]);
  const child = spawn(file, rest, { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const program = { child, lines: createInterface({ input: child.stdout as Readable }) };
  t.is(await nextLine(program), 'ready');
  return program;
}

async function nextLine({ lines }: Program): Promise<string> {
  return String((await once(lines, 'line', { signal: AbortSignal.timeout(TIMEOUT_MS) }))[0]);
}

/** From a pod of the first node to one of the second, over both families, while `disturb` does its work. */
async function whileStreaming(t: ExecutionContext, disturb: () => Promise<void>): Promise<void> {
  const { pods } = await lab().control.status();
  const [from, to] = NODES.map((node) => pods.find((pod) => pod.node === node));
  if (!from || !to) throw new Error('a pod is missing');
  const receiver = await start(t, to, 'receive', PORT);
  const sender = await start(t, from, 'send', PORT, ...to.addresses);
  await disturb();
  sender.child.stdin?.end();
  const { datagrams, connections } = JSON.parse(await nextLine(sender)) as Sending;
  receiver.child.stdin?.write(`${JSON.stringify(datagrams)}\n`);
  const { distinct, socketDrops } = JSON.parse(await nextLine(receiver)) as Receipt;

  t.log(`sent ${JSON.stringify(datagrams)}, arrived ${JSON.stringify(distinct)}`);
  t.log(
    `connections: ${connections.map(({ echoed, gapMs }) => `${echoed} echoes, at most ${gapMs} ms apart`).join('; ')}`,
  );
  t.is(socketDrops, 0, 'the receiver read too slowly: this says nothing of the network');
  t.is(Object.keys(datagrams).length, 2);
  for (const [address, sent] of Object.entries(datagrams)) {
    t.true(sent > 500, `${sent} datagrams to ${address} prove nothing`);
    t.is(sent - (distinct[address] ?? 0), 0, `datagrams to ${address} that were lost`);
  }
  for (const { address, sent, echoed, broken } of connections) {
    t.is(broken, undefined, address);
    t.is(sent - echoed, 0, `heartbeats over the connection to ${address} without an echo`);
  }
}

/** Undefined while no agent answers; one that is not ready does. */
async function agentStatus(node: string): Promise<AgentStatus | undefined> {
  const { stdout } = await tulle(lab().node(node), 'status', '--json');
  return stdout === '' ? undefined : (JSON.parse(stdout) as AgentStatus);
}

const untilEach = async (describe: string, holds: (node: string) => Promise<boolean | undefined>): Promise<void> => {
  for (const node of NODES) await until(() => holds(node), { describe: `${describe} on ${node}`, ...WAIT });
};

const isReady = async (node: string) => (await agentStatus(node))?.readiness.ready;
const cannotRead = async (node: string) => (await agentStatus(node))?.cluster.resources.some(({ error }) => error);

async function killAgents(): Promise<void> {
  const killed = await Promise.all(NODES.map((node) => lab().control.killAgent(node)));
  const isBack = async (node: string) => {
    const agent = (await lab().control.status()).nodes.find(({ name }) => name === node)?.agent;
    return (
      agent?.pid !== undefined &&
      killed.every(({ pid }) => pid !== agent.pid) &&
      (await agentStatus(node)) !== undefined
    );
  };
  await untilEach('another agent that answers', isBack);
}

test.serial('pods on two nodes of two segments', async (t) => {
  for (const node of NODES) t.is((await lab().runPod(`pod-${node}`, node)).addresses.length, 2);
  for (const node of NODES) await untilSettled(lab().node(node));
});

test.serial('no packet is lost while the agents are killed and come back, three times', async (t) => {
  await whileStreaming(t, async () => {
    for (let round = 0; round < 3; round++) {
      await killAgents();
      await untilEach('a ready agent', isReady);
    }
  });
  for (const node of NODES) await untilSettled(lab().node(node));
});

for (const fault of ['unavailable', 'stalled'] as const) {
  test.serial(`no packet is lost while the API server is ${fault} and the agents are started without it`, async (t) => {
    t.teardown(() => lab().control.setApiFault('none'));
    await whileStreaming(t, async () => {
      await lab().control.setApiFault(fault);
      if (fault === 'unavailable') await untilEach('an agent that cannot read the API', cannotRead);
      await killAgents();
      await untilEach(
        'an agent that is not ready',
        async (node) => (await agentStatus(node))?.readiness.ready === false,
      );
      await lab().control.setApiFault('none');
      await untilEach('a ready agent', isReady);
    });
    for (const node of NODES) await untilSettled(lab().node(node));
  });
}

test.serial('afterwards pods are as they were, and more can be made', async (t) => {
  for (const node of NODES) await t.notThrowsAsync(lab().control.checkPod('default', `pod-${node}`));
  const { addresses } = await lab().runPod('late', 'node-1');
  const { pods } = await lab().control.status();
  t.is(new Set(pods.flatMap((pod) => pod.addresses)).size, 6, addresses.join(' '));
});
