/** What changes about a node while its pods run: backend, address, peers, the underlay itself. All of it is followed, nothing stale remains. */
import test from 'ava';
import { apiPath } from '../../lab/api-writer.ts';
import { NODES, useLiveLab } from '../support/live-lab.ts';
import { fabricPlace, podPlace, shellIn } from '../support/places.ts';

const { lab, choose, node, pods, mentions, allIsWell, untilGone, moveNode2, restartAgents } =
  useLiveLab('backend: vxlan');

test.serial('another backend keeps the pods with their addresses, and leaves nothing of the one before', async (t) => {
  await allIsWell(t, 'vxlan');
  const before = await pods();
  choose('backend: host-gw');
  await restartAgents();
  for (const name of NODES) await untilGone(name, /tulle\.84|8472/);
  await allIsWell(t, 'host-gw');
  t.is(
    (await mentions('node-1', /^(10\.84\.1\.0\/24|fd84:0:0:1::\/64) via (172\.30\.0\.12|fd30::12) dev eth0/)).length,
    2,
  );
  for (const { name, netns, addresses } of before) {
    const inside = await shellIn(
      podPlace(lab(), before.find((pod) => pod.name === name) as never),
      'ip -o address show eth0',
    );
    for (const address of addresses) t.true(inside.includes(` ${address}/`), `${netns} has ${address}`);
  }
  choose('backend: vxlan');
  await restartAgents();
  for (const name of NODES) await untilGone(name, /via (172\.30|fd30:)\S+ dev eth0 proto 84/);
  await allIsWell(t, 'vxlan again');
});

test.serial('a Node of another address is followed, running or away', async (t) => {
  for (const [from, to, isAway] of [
    [12, 77, false],
    [77, 12, true],
  ] as const) {
    const move = () => moveNode2(from, to);
    if (isAway) await restartAgents(move);
    else await move();
    for (const name of NODES) await untilGone(name, new RegExp(`172\\.30\\.0\\.${from}\\b|fd30::${from}\\b`));
    await allIsWell(t, `node-2 at .${to}`);
  }
});

test.serial('of a Node that was deleted while the agent was away nothing remains, until it is back', async (t) => {
  await lab().control.stopAgent('node-1');
  const { spec } = await lab().control.callApi({ method: 'GET', path: apiPath.node('node-2') });
  const { podCIDRs } = spec as { readonly podCIDRs: readonly string[] };
  const saved = await lab().control.callApi({ method: 'GET', path: apiPath.node('node-2') });
  await lab().control.callApi({ method: 'DELETE', path: apiPath.node('node-2') });
  await lab().control.startAgent('node-1');
  await untilGone('node-1', /10\.84\.1\.|fd84:0:0:1:|172\.30\.0\.12|fd30::12\b/);
  const { metadata, status } = saved as unknown as { metadata: { name: string; labels: object }; status: object };
  const object = {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: metadata.name, labels: metadata.labels },
    spec: { podCIDR: podCIDRs[0], podCIDRs },
  };
  await lab().control.callApi({ method: 'POST', path: apiPath.nodes, object });
  await lab().control.callApi({ method: 'PATCH', path: `${apiPath.node('node-2')}/status`, object: { status } });
  await allIsWell(t, 'node-2 is back');
});

test.serial('the underlay may be deleted and made again', async (t) => {
  const { pid } = lab().node('node-1');
  await shellIn(node('node-1'), 'ip link del eth0');
  const fabric = fabricPlace(await lab().control.status());
  await shellIn(
    fabric,
    `ip link add node-1 mtu 1500 master br0 type veth peer name eth0 mtu 1500 netns ${pid}; ip link set node-1 up`,
  );
  await shellIn(
    node('node-1'),
    `ip address add 172.30.0.11/24 dev eth0; ip address add fd30::11/64 dev eth0 nodad; ip link set eth0 up
     ip route add default via 172.30.0.1; ip -6 route add default via fd30::1`,
  );
  await allIsWell(t, 'eth0 made again');
});
