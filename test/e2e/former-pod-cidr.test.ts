/** A Node that comes back with another podCIDR under pods that live: they keep what they have, and nothing stands open. */
import test, { type ExecutionContext } from 'ava';
import { type Family, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { output, shIn, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import { capture } from '../support/netns.ts';
import { nodePlace, type Place, pings, podPlace, spawnerIn } from '../support/places.ts';
import { recreateNode } from '../support/recreate-node.ts';

const CIDRS = ['10.84.210.0/24', 'fd84:0:0:d2::/64'];
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };

const lab = useLab({ nodes: 2 });
const node = () => lab().node('node-1');
const pods = new Map<string, PodStatus>();
const pod = (name: string): PodStatus => pods.get(name) as PodStatus;
const place = (name: string): Place => podPlace(lab(), pod(name));

async function start(name: string, on: string): Promise<void> {
  pods.set(name, await lab().runPod(name, on));
}

const problems = async (): Promise<readonly string[]> =>
  JSON.parse((await tulle(node(), 'status', '--json')).stdout).problems;

/** One ping to each of the addresses; those that are not answered. */
async function unanswered(from: Place, addresses: readonly IpAddress[]): Promise<readonly IpAddress[]> {
  const answers = await Promise.all(addresses.map(async (address) => ({ address, ok: await pings(from, address) })));
  return answers.filter(({ ok }) => !ok).map(({ address }) => address);
}

/** Sources of the echo requests that arrive of one ping, which is over then, answered or not. */
async function arrivals(t: ExecutionContext, from: Place, at: Place, to: IpAddress): Promise<readonly string[]> {
  const seen = await capture(spawnerIn(t, at), 'eth0', `dst host ${to} and (icmp or icmp6)`);
  await pings(from, to);
  const lines = await seen.stop();
  return lines.flatMap((line) => new RegExp(`(\\S+) > ${to}: .*echo request`).exec(line)?.[1] ?? []);
}

const ofFamily = (addresses: readonly IpAddress[], family: Family): IpAddress =>
  addresses.find((address) => familyOf(address) === family) as IpAddress;

test.serial('pods that live keep their addresses and are reported; new ones are of the new podCIDR', async (t) => {
  for (const name of ['old-a', 'old-b']) await start(name, 'node-1');
  await start('far', 'node-2');
  t.deepEqual(await problems(), []);
  await recreateNode(lab(), 'node-1', CIDRS);
  await until(async () => (await problems()).length > 0, { describe: 'a problem in the status', ...WAIT });
  const named = ['old-a', 'old-b'].map((name) => `default/${name} (${pod(name).addresses.join(', ')})`);
  t.is(
    (await problems())[0]?.split(';')[0],
    `2 pods have addresses outside the node's podCIDR (${CIDRS.join(', ')}): ${named.join(', ')}`,
  );
  t.regex((await tulle(node(), 'status')).stdout, /^problem +2 pods have addresses outside/m);
  await untilSettled(node());
  await start('fresh', 'node-1');
  t.regex(pod('fresh').addresses.join(), /^10\.84\.210\.\d+,fd84:0:0:d2::[0-9a-f]+$/);
});

test.serial('they reach their node, each other and new pods with their own addresses', async (t) => {
  for (const to of ['old-b', 'fresh']) t.deepEqual(await unanswered(place('old-a'), pod(to).addresses), [], to);
  t.deepEqual(await unanswered(place('fresh'), pod('old-a').addresses), []);
  t.deepEqual(await unanswered(place('old-a'), node().addresses), []);
  t.deepEqual(await unanswered(nodePlace(node()), pod('old-a').addresses), []);
  for (const family of ['ipv4', 'ipv6'] as const) {
    for (const to of ['old-b', 'fresh']) {
      const sources = await arrivals(t, place('old-a'), place(to), ofFamily(pod(to).addresses, family));
      t.deepEqual(sources, [ofFamily(pod('old-a').addresses, family)], to);
    }
  }
  await lab().control.checkPod('default', 'old-a');
});

test.serial('others they reach by an address of the node, also where the policy of FORWARD is DROP', async (t) => {
  const forward = (policy: string) =>
    output(shIn(node(), `iptables -P FORWARD ${policy}; ip6tables -P FORWARD ${policy}`));
  await forward('DROP');
  try {
    const peer = lab().node('node-2');
    t.deepEqual(await unanswered(place('old-a'), [...pod('far').addresses, ...peer.addresses]), []);
    for (const family of ['ipv4', 'ipv6'] as const) {
      const sources = await arrivals(t, place('old-a'), place('far'), ofFamily(pod('far').addresses, family));
      t.regex(sources.join(), /^(10\.84\.210\.1|fd84:0:0:d2::1)$/);
    }
    t.deepEqual(await unanswered(place('fresh'), pod('old-a').addresses), []);
  } finally {
    await forward('ACCEPT');
  }
});

test.serial('the gate is closed for them as for any other pod, in both directions', async (t) => {
  for (const [index, address] of pod('old-a').addresses.entries()) {
    const set = `tulle-ready-${index === 0 ? 4 : 6}`;
    const other = ofFamily(pod('fresh').addresses, familyOf(address));
    await output(shIn(node(), `ipset del ${set} ${address}`));
    t.deepEqual(await arrivals(t, place('fresh'), place('old-a'), address), [], 'to it');
    t.deepEqual(await arrivals(t, place('old-a'), place('fresh'), other), [], 'from it');
    await output(shIn(node(), `ipset add ${set} ${address} -exist`));
    t.is((await arrivals(t, place('fresh'), place('old-a'), address)).length, 1);
  }
});

test.serial('an agent that starts again finds them as they are, and DEL ends them', async (t) => {
  await lab().control.killAgent('node-1');
  await until(async () => (await tulle(node(), 'status')).exitCode === 0, {
    describe: 'the agent to be back',
    ...WAIT,
  });
  t.regex((await problems())[0] ?? '', /^2 pods have/);
  t.deepEqual(await unanswered(place('fresh'), pod('old-a').addresses), []);
  await lab().control.removePod('default', 'old-a');
  t.regex((await problems())[0] ?? '', /^1 pod has .*default\/old-b/);
  await lab().control.removePod('default', 'old-b');
  t.deepEqual(await problems(), []);
  const left = await output(shIn(node(), 'ip route; ip -6 route; ipset save; iptables-save; ip6tables-save'));
  for (const address of [...pod('old-a').addresses, ...pod('old-b').addresses])
    t.false(left.includes(`${address}`), address);
});
