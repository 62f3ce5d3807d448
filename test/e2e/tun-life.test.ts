/** Backend `tun` over time: other backends before and after it, beside it, agents and peers that go and come, a device that goes. */
import test from 'ava';
import type { AgentStatus } from '../../agent/agent-status.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { pingAll, pingEnds } from '../../lab/ping.ts';
import { until } from '../../lab/until.ts';
import { ip } from '../support/cluster-values.ts';
import { TIMEOUT_MS, tulle } from '../support/lab.ts';
import { NODES, useLiveLab } from '../support/live-lab.ts';
import { shellIn } from '../support/places.ts';
import { keptAlive, streamWhile } from '../support/streaming.ts';
import { hasPeer, isAgreed, statusOf, untilStatus } from '../support/tun-lab.ts';

const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };
const TUN = /tulle-tun|8285/;
const VXLAN = /tulle\.84|8472/;

const live = useLiveLab('backend: vxlan');
const { lab, choose, node, allIsWell, untilGone, restartAgents } = live;

async function ends() {
  const { pods } = await lab().control.status();
  const [from, to] = NODES.map((name) => pods.find((pod) => pod.node === name));
  if (!from || !to) throw new Error('a pod is missing');
  return { lab: lab(), from, to };
}

test.serial(
  'vxlan, then tun: running pods keep their addresses, nothing of vxlan remains, connections live',
  async (t) => {
    await allIsWell(t, 'vxlan');
    const before = (await live.pods()).map(({ addresses }) => addresses);
    const { sent } = await streamWhile(t, await ends(), async () => {
      choose('backend: tun');
      await restartAgents();
      for (const name of NODES) await untilGone(name, VXLAN);
      await allIsWell(t, 'tun');
    });
    keptAlive(t, sent);
    t.deepEqual(
      (await live.pods()).map(({ addresses }) => addresses),
      before,
    );
    for (const name of NODES) await untilStatus(live, name, 'an agreement', isAgreed);
  },
);

test.serial(
  'agents killed and started again, also without the API: packets flow before the cluster has answered',
  async (t) => {
    t.teardown(() => lab().control.setApiFault('none'));
    const { sent, received } = await streamWhile(t, await ends(), async () => {
      await lab().control.setApiFault('unavailable');
      for (const name of NODES) await killAgent(name);
      const status = await lab().control.status();
      const options = { count: 1, families: status.families, nodes: false };
      const lost = async () =>
        (await pingAll(pingEnds(status), options, AbortSignal.timeout(TIMEOUT_MS))).filter(({ ok }) => !ok);
      await until(async () => (await lost()).length === 0, { describe: 'every ping to be answered', ...WAIT });
      for (const name of NODES) {
        const { cluster, tunnel } = (await statusOf(live, name)) as AgentStatus;
        t.false(
          cluster.resources.some(({ synced }) => synced),
          `${name} has heard of no cluster`,
        );
        t.is(tunnel?.peers.length, 1, name);
      }
      await lab().control.setApiFault('none');
      for (const name of NODES) await untilStatus(live, name, 'a ready agent', ({ readiness }) => readiness.ready);
    });
    keptAlive(t, sent);
    const gaps = sent.connections.map(({ gapMs }) => gapMs);
    const lost = Object.entries(sent.datagrams).map(([address, count]) => count - (received.distinct[address] ?? 0));
    t.log(
      `connections were silent for at most ${Math.max(...gaps)} ms; datagrams lost, one a millisecond: ${lost.join(', ')}`,
    );
    await allIsWell(t, 'after the API came back');
  },
);

async function killAgent(name: string): Promise<void> {
  const pidOf = async () => (await lab().control.status()).nodes.find((each) => each.name === name)?.agent.pid;
  const before = await pidOf();
  process.kill(before as number, 'SIGKILL');
  const isAnother = async () => ![before, undefined].includes(await pidOf());
  await until(isAnother, { describe: `another agent on ${name}`, ...WAIT });
  await untilStatus(live, name, 'an agent that answers', () => true);
}

test.serial('the device may be deleted, and its routes and addresses with it', async (t) => {
  await shellIn(node('node-1'), 'ip link del tulle-tun');
  await allIsWell(t, 'the device made again');
  await untilStatus(live, 'node-1', 'an agreement', isAgreed);
  await shellIn(node('node-2'), 'ip link set tulle-tun down');
  await allIsWell(t, 'the device up again');
});

test.serial('a Node of another address is followed by its peers, and by its own socket', async (t) => {
  for (const [from, to] of [
    [12, 77],
    [77, 12],
  ] as const) {
    await live.moveNode2(from, to);
    for (const name of NODES) await untilGone(name, new RegExp(`172\\.30\\.0\\.${from}\\b|fd30::${from}\\b`));
    await allIsWell(t, `node-2 at .${to}`);
    t.is((await statusOf(live, 'node-2'))?.tunnel?.path?.local, ip(`172.30.0.${to}`));
    t.is((await statusOf(live, 'node-1'))?.tunnel?.peers[0]?.end, ip(`172.30.0.${to}`));
  }
});

test.serial('the MTU of the underlay is followed while packets flow', async (t) => {
  for (const [mtuBytes, ofPods] of [
    [1400, 1360],
    [1500, 1460],
  ] as const) {
    for (const name of NODES) await shellIn(node(name), `ip link set eth0 mtu ${mtuBytes}`);
    for (const name of NODES)
      await untilStatus(live, name, 'that MTU', ({ underlay }) => underlay?.mtuBytes === ofPods);
    await allIsWell(t, `an underlay of ${mtuBytes} bytes`);
    t.regex(await shellIn(node('node-1'), 'ip link show tulle-tun'), new RegExp(` mtu ${ofPods} `));
  }
});

test.serial('a peer that leaves the cluster is forgotten, and taken up when it is back', async (t) => {
  const path = apiPath.node('node-2');
  const saved = await lab().control.callApi({ method: 'GET', path });
  const { metadata, spec, status } = saved as unknown as {
    readonly metadata: { readonly name: string; readonly labels: object };
    readonly spec: { readonly podCIDRs: readonly string[] };
    readonly status: object;
  };
  await lab().control.callApi({ method: 'DELETE', path });
  await untilGone('node-1', /10\.84\.1\.|fd84:0:0:1:|172\.30\.0\.12|fd30::12\b/);
  t.deepEqual((await statusOf(live, 'node-1'))?.tunnel?.peers, []);
  const object = {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: metadata.name, labels: metadata.labels },
    spec: { podCIDR: spec.podCIDRs[0], podCIDRs: spec.podCIDRs },
  };
  await lab().control.callApi({ method: 'POST', path: apiPath.nodes, object });
  await lab().control.callApi({ method: 'PATCH', path: `${path}/status`, object: { status } });
  await allIsWell(t, 'node-2 is back');
});

test.serial('a node of another backend is a problem at both, with the remedy', async (t) => {
  choose('backend: vxlan');
  await lab().control.stopAgent('node-2');
  await lab().control.startAgent('node-2');
  await untilGone('node-2', TUN);
  const refuses = hasPeer('refused', /Node node-2 refuses the tunnel.*backend.*the same on all nodes/);
  await untilStatus(live, 'node-1', 'a peer that refuses', refuses);
  const told = await tulle(lab().node('node-1'), 'status');
  t.regex(told.stdout, /^problem {3}Node node-2 refuses the tunnel/m);
  t.regex(told.stdout, /^peers {5}0 of 1 agreed/m);
  const seen = await tulle(lab().node('node-2'), 'doctor');
  t.is(seen.exitCode, 1);
  t.regex(seen.stdout, /tunnel to node-1 does not carry packets/);
  t.regex(seen.stdout, /The peer uses backend tun, it seems/);
});

test.serial('back to vxlan: nothing of tun remains', async (t) => {
  await restartAgents();
  for (const name of NODES) await untilGone(name, TUN);
  await allIsWell(t, 'vxlan again');
  t.is((await statusOf(live, 'node-1'))?.tunnel, undefined);
});
