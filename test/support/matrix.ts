/** Ways of building the pod network, each proved by real packets of every size between every kind of place. */
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { type Family, familyOf } from '../../agent/model/ip.ts';
import { type LabControl, type LabStatus, labControl } from '../../lab/control.ts';
import { removeLab } from '../../lab/down.ts';
import { labLayout } from '../../lab/layout.ts';
import { inNode } from '../../lab/node.ts';
import { type PingEnd, pingAll, pingEnds } from '../../lab/ping.ts';
import { DEFAULT_OPTIONS, startLabProcess } from '../../lab/up.ts';
import { output, run, TIMEOUT_MS } from './lab.ts';

const ECHO = fileURLToPath(new URL('echo.ts', import.meta.url));
export const BOTH: readonly Family[] = ['ipv4', 'ipv6'];

export interface Cell {
  readonly name: string;
  readonly families: readonly Family[];
  readonly segments: number;
  readonly agentArgs: readonly string[];
  /** MTU that pods get on an underlay of 1500 bytes. */
  readonly mtuBytes: number;
  /** What else holds once all of it was tried. */
  readonly alsoHolds?: (t: ExecutionContext, status: LabStatus) => Promise<void>;
}

type PodLink = 'routed' | 'bridge';

/** Of node-1, node-2 and node-3: with two segments, 1 and 3 share one. */
const PODS = [
  { name: 'a', node: 'node-1' },
  { name: 'b', node: 'node-1' },
  { name: 'c', node: 'node-2' },
  { name: 'd', node: 'node-3' },
] as const;

/** A test for each, in a lab of its own. */
export function testCell(network: Cell, podLink: PodLink): void {
  test.serial(`${network.name}, pods ${podLink}`, async (t) => {
    const { control, status, ends } = await startCell(t, network, podLink);
    await everyPairAnswers(t, ends, network);
    await everySizePasses(t, status, ends);
    await noPathIsSmaller(t, status);
    await pathMtuIsTold(t, ends, network);
    await nothingLeftToDo(t, status);
    await network.alsoHolds?.(t, status);
    await control.removePod('default', 'a');
  });
}

async function startCell(
  t: ExecutionContext,
  { families, segments, agentArgs }: Cell,
  podLink: PodLink,
): Promise<{ control: LabControl; status: LabStatus; ends: readonly PingEnd[] }> {
  const layout = labLayout(`/run/tulle-lab-test-${randomBytes(4).toString('hex')}`);
  t.teardown(() => removeLab(layout, () => undefined));
  const link = podLink === 'routed' ? [] : ['--pod-link', podLink];
  const options = { ...DEFAULT_OPTIONS, families, segments, agentArgs: [...agentArgs, ...link] };
  await startLabProcess(layout, options, () => undefined);
  const control = labControl(layout);
  for (const pod of PODS) {
    await control.runPod({ namespace: 'default', ...pod, command: [process.execPath, ECHO, 'serve'] });
  }
  const status = await control.status();
  return { control, status, ends: pingEnds(status) };
}

/** Pods to pods of the same and of other nodes, nodes to pods, pods to nodes; and large enough to be fragmented. */
async function everyPairAnswers(t: ExecutionContext, ends: readonly PingEnd[], { families }: Cell): Promise<void> {
  const results = await pingAll(ends, { count: 1, families, nodes: true }, AbortSignal.timeout(TIMEOUT_MS));
  t.true(results.length > 0);
  t.deepEqual(
    results.filter(({ ok }) => !ok).map(({ from, to, address }) => `${from} → ${to} ${address}`),
    [],
  );
}

/** TCP streams and datagrams of all sizes: same node, other node, own node's pod, other node's pod, pod to node. */
async function everySizePasses(t: ExecutionContext, { nodes }: LabStatus, ends: readonly PingEnd[]): Promise<void> {
  const server = nodes.find(({ name }) => name === 'node-2');
  if (!server) throw new Error('no node-2');
  const end = (name: string) => ends.find((each) => each.name === name) as PingEnd;
  const serving = run(inNode(server, ['timeout', '-s', 'KILL', '30', process.execPath, ECHO, 'serve']));
  const ask = async (from: string, ...to: readonly string[]) => {
    const addresses = to.flatMap((name) => end(name).addresses);
    const { exitCode, stderr } = await run(end(from).enter([process.execPath, ECHO, 'ask', ...addresses]));
    t.is(exitCode, 0, `${from} → ${to.join(', ')}: ${stderr}`);
  };
  await ask('default/a', 'default/b', 'default/c', 'default/d', 'node-2');
  await ask('node-1', 'default/a', 'default/c');
  void serving;
}

/**
 * No node has learned that the way to another takes less than the underlay: it would hold for the tunnel's outer packets, too.
 * Large answers of a node to a pod that is masqueraded on its way would teach it so, if the pod's link could not take them.
 */
async function noPathIsSmaller(t: ExecutionContext, { nodes }: LabStatus): Promise<void> {
  for (const node of nodes) {
    const learned = await output(inNode(node, ['sh', '-ec', 'ip -4 route show cache; ip -6 route show cache']));
    t.notRegex(learned, / mtu /, node.name);
  }
}

/** What just fits passes whole; one byte more is refused where it is sent, with the MTU to use. */
async function pathMtuIsTold(t: ExecutionContext, ends: readonly PingEnd[], { mtuBytes }: Cell): Promise<void> {
  const from = ends.find(({ name }) => name === 'default/a') as PingEnd;
  const to = ends.find(({ name }) => name === 'default/c') as PingEnd;
  for (const address of to.addresses) {
    const headers = familyOf(address) === 'ipv4' ? 28 : 48;
    const ping = (bytes: number) =>
      run(from.enter(['ping', '-M', 'do', '-c', '1', '-W', '5', '-s', String(bytes), address]));
    const fits = await ping(mtuBytes - headers);
    t.is(fits.exitCode, 0, `${address}: ${fits.stdout}${fits.stderr}`);
    const tooLong = await ping(mtuBytes - headers + 1);
    t.not(tooLong.exitCode, 0, address);
    t.regex(`${tooLong.stdout}${tooLong.stderr}`, new RegExp(`mtu[ =:]*${mtuBytes}`, 'i'));
  }
}

async function nothingLeftToDo(t: ExecutionContext, { nodes }: LabStatus): Promise<void> {
  for (const node of nodes) t.is(await output(inNode(node, [DEFAULT_OPTIONS.agentCommand[0] as string, 'diff'])), '');
}
