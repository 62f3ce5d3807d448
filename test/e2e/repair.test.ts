/** Whatever somebody deletes or alters in what Tulle owns comes back, and nothing else is touched. */
import test, { type ExecutionContext } from 'ava';
import type { AgentStatus } from '../../agent/agent-status.ts';
import { type Cidr, FAMILIES, type FamilyFacts, families } from '../../agent/model/ip.ts';
import type { Kind } from '../../agent/model/items.ts';
import { vtepMac } from '../../agent/model/kernel-names.ts';
import { nodeIpOf } from '../../agent/plan/underlay.ts';
import { pingAll, pingEnds } from '../../lab/ping.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { differences } from '../support/cni-calls.ts';
import { type TestLab, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import { dumpNode } from '../support/node-dump.ts';
import { nodePlace, outputIn, type Place, pings, podPlace, shellIn } from '../support/places.ts';
import { recreateNode } from '../support/recreate-node.ts';

/** Full lists are so rare that only a notice of the kernel can be behind a repair. */
const attentive = useLab({ nodes: 2, agentArgs: ['--resync-seconds', '600'] });
/** Full lists are all there is for what the kernel gives no notice of. */
const listing = useLab({ nodes: 2, agentArgs: ['--resync-seconds', '5'] });

const SETTLED = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };

interface Scene {
  readonly lab: TestLab;
  readonly node: Place;
  readonly pod: PodStatus;
  /** Host side of the pod's link. */
  readonly podLink: string;
}

type Disturbance = readonly [Kind, what: string, line: string];

const scenes = new Map<() => TestLab, Promise<Scene>>();

/** Made by the first test that asks. */
function sceneOf(lab: () => TestLab): Promise<Scene> {
  const scene = scenes.get(lab) ?? setScene(lab());
  scenes.set(lab, scene);
  return scene;
}

test.serial('what the kernel gives notice of comes back at once', async (t) => {
  const scene = await sceneOf(attentive);
  await addForeignObjects(scene.node);
  const before = await dump(scene);
  const disturbances = [...families.flatMap((facts) => familyDisturbances(scene, facts)), ...linkDisturbances(scene)];
  const times: string[] = [];
  for (const [kind, what, line] of disturbances) {
    const repairs = await repairsOf(scene, kind);
    await shellIn(scene.node, line);
    const startMs = performance.now();
    await isAsBefore(t, scene, before, what);
    times.push(`${what}: ${(performance.now() - startMs).toFixed(0)} ms`);
    await until(async () => (await repairsOf(scene, kind)) > repairs, { describe: `a repaired ${kind}`, ...SETTLED });
    await everyPingIsAnswered(t, scene, what);
  }
  t.log(times.join('\n'));
  t.is((await tulle(scene.lab.node('node-1'), 'diff')).exitCode, 0);
});

test.serial('tulle diff names what is disturbed in netfilter, and an agent that starts repairs it', async (t) => {
  const scene = await sceneOf(attentive);
  const node = scene.lab.node('node-1');
  const before = await dump(scene);
  for (const [, , line] of netfilterDisturbances(scene)) await shellIn(scene.node, line);
  const { exitCode, stdout } = await tulle(node, 'diff');
  t.is(exitCode, 3);
  // The gate's set was flushed: until it is full again nothing passes, whatever else is disturbed.
  const address = scene.pod.addresses.find((ip) => ip.includes(':')) as string;
  const far = (await scene.lab.control.status()).pods.find(({ name }) => name === 'far');
  t.false(await pings(podPlace(scene.lab, far as PodStatus), address), 'a pod that is not in the set of ready ones');
  // Without the parts of a chain, which are disturbed together.
  const heads = stdout.split('\n').flatMap((line) => /^([-+~] (chain-part \S+ \S+ \S+|\S.*\S))/.exec(line)?.[1] ?? []);
  t.deepEqual(
    [...new Set(heads)].sort(),
    [
      '+ chain-part ipv4 mangle TULLE-FORWARD',
      '+ chain-part ipv6 nat TULLE-POSTROUTING',
      `+ member tulle-direct-4 ${peerCidr(scene, FAMILIES.ipv4)}`,
      `+ member tulle-ready-6 ${scene.pod.addresses[1]}/128`,
      '- chain-part ipv4 mangle TULLE-FORWARD',
      '- member tulle-nodes-4 192.0.2.66/32',
      '~ chain-part ipv4 filter TULLE-FORWARD',
      '~ chain-part ipv4 raw TULLE-TUNNEL',
      '~ chain-part ipv6 filter TULLE-FORWARD',
      '~ chain-part ipv6 mangle TULLE-FORWARD',
    ].sort(),
  );
  await scene.lab.control.killAgent('node-1');
  await isAsBefore(t, scene, before, 'after the start');
  await untilSettled(node);
  await everyPingIsAnswered(t, scene, 'after the start');
});

test.serial('what the kernel gives no notice of comes back with the next full list', async (t) => {
  const scene = await sceneOf(listing);
  await addForeignObjects(scene.node);
  const before = await dump(scene);
  for (const [, , line] of netfilterDisturbances(scene)) await shellIn(scene.node, line);
  await isAsBefore(t, scene, before, 'after a full list');
  await everyPingIsAnswered(t, scene, 'after a full list');
  t.is((await tulle(scene.lab.node('node-1'), 'diff')).exitCode, 0);
});

test.serial('the underlay may go and come back', async (t) => {
  const scene = await sceneOf(attentive);
  const before = await dump(scene);
  // What is the host's own to restore: it knows nothing of Tulle.
  const host = 'dev eth0 | grep -v "proto kernel" | sed';
  const restore = await shellIn(
    scene.node,
    `ip -o -6 address show dev eth0 scope global | sed 's/.*inet6 \\([^ ]*\\) .*/ip address replace \\1 dev eth0 nodad/'
     ip -4 route show ${host} 's/^.*/ip -4 route replace & dev eth0/'
     ip -6 route show ${host} 's/ pref .*//; s/.*/ip -6 route replace & dev eth0/'`,
  );
  await shellIn(scene.node, `ip link set eth0 down; ip link set eth0 up\n${restore}`);
  await isAsBefore(t, scene, before, 'eth0 down and up');
  await everyPingIsAnswered(t, scene, 'eth0 down and up');
});

/** Of the tunnel, of both ends of the pod's link, and of the pod's default routes of IPv4 and IPv6. */
async function readMtus({ lab, node, pod, podLink }: Scene): Promise<string> {
  const links = await shellIn(node, `cat /sys/class/net/tulle.84/mtu /sys/class/net/${podLink}/mtu`);
  const inside = await shellIn(
    podPlace(lab, pod),
    `cat /sys/class/net/eth0/mtu; { ip -4 route show default; ip -6 route show default; } | sed 's/.* mtu \\([0-9]*\\).*/\\1/'`,
  );
  return `${links}\n${inside}`.split('\n').join(' ');
}

test.serial('the MTU of tunnel and pods follows the underlay', async (t) => {
  const scene = await sceneOf(attentive);
  const before = await dump(scene);
  const become = (mtus: string) =>
    until(async () => (await readMtus(scene)) === mtus, { describe: `MTUs ${mtus}`, ...SETTLED });
  t.is(await readMtus(scene), '1450 1500 1500 1450 1450');
  await shellIn(scene.node, 'ip link set eth0 mtu 1400');
  await become('1350 1400 1400 1350 1350');
  await everyPingIsAnswered(t, scene, 'MTU lowered');
  await shellIn(scene.node, 'ip link set eth0 mtu 1500');
  await isAsBefore(t, scene, before, 'MTU raised');
  await become('1450 1500 1500 1450 1450');
  for (const [underlay, mtus] of [
    [9000, '8950 9000 9000 8950 8950'],
    [1500, '1450 1500 1500 1450 1450'],
  ] as const) {
    await scene.lab.control.stopAgent('node-1');
    await shellIn(scene.node, `ip link set eth0 mtu ${underlay}`);
    await scene.lab.control.startAgent('node-1');
    await become(mtus);
  }
  await isAsBefore(t, scene, before, 'MTU changed while there was no agent');
});

test.serial(
  'of a Node that came back with another podCIDR while the agent was away nothing stale remains',
  async (t) => {
    const { lab, node, pod } = await sceneOf(attentive);
    const old = lab.node('node-2').podCidrs;
    const podCIDRs = ['10.84.200.0/24', 'fd84:0:0:c8::/64'];
    await lab.control.stopAgent('node-1');
    await recreateNode(lab, 'node-2', podCIDRs);
    await lab.control.startAgent('node-1');
    const mentions = async (cidr: string) => (await dumpNode(node, pod.netns)).filter((line) => line.includes(cidr));
    for (const cidr of podCIDRs)
      await until(async () => (await mentions(`${cidr} via`)).length === 1, {
        describe: `a route to ${cidr}`,
        ...SETTLED,
      });
    await untilSettled(lab.node('node-1'));
    for (const cidr of old) t.deepEqual(await mentions(cidr.replace(/0?\/\d+$/, '')), [], cidr);

    const fresh = await lab.runPod('fresh', 'node-2');
    t.regex(fresh.addresses.join(), /^10\.84\.200\.\d+,fd84:0:0:c8::/);
    await until(async () => (await pingsBetween(lab, [pod.name, fresh.name])).length === 0, {
      describe: 'the new pod to be reached',
      ...SETTLED,
    });
  },
);

async function setScene(lab: TestLab): Promise<Scene> {
  const pod = await lab.runPod('near', 'node-1');
  await lab.runPod('far', 'node-2');
  const node = nodePlace(lab.node('node-1'));
  const podLink = /tl[0-9a-f]{12}/.exec(await outputIn(node, 'ip', '-br', 'link'))?.[0] as string;
  return { lab, node, pod, podLink };
}

/** Of every kind something that looks like Tulle's and is not. */
const addForeignObjects = (node: Place): Promise<string> =>
  shellIn(
    node,
    `ip link add tl0 type bridge; ip link set tl0 up
     ip link add tl0123456789ab type bridge; ip link add tulle.x type bridge
     ip link add foreign type vxlan id 85 dstport 8473 local 172.30.0.11 dev eth0; ip link set foreign up
     ip address add 10.84.99.1/24 dev tl0
     ip route add 10.84.98.0/24 via 172.30.0.1 proto 99; ip -6 route add fd84:0:0:98::/64 via fd30::1 proto 99
     ip neighbour add 10.84.99.9 lladdr 02:00:00:00:00:09 dev tl0 nud permanent
     bridge fdb append 02:00:00:00:00:09 dev foreign dst 192.0.2.9
     ipset create foreign hash:ip; ipset add foreign 192.0.2.1
     for iptables in iptables ip6tables; do
       $iptables -N FOREIGN; $iptables -A FOREIGN -p tcp --dport 9 -j RETURN; $iptables -A FORWARD -j FOREIGN
       $iptables -t mangle -A FORWARD -p tcp --dport 9 -m comment --comment tulle -j ACCEPT
     done`,
  );

function familyDisturbances(scene: Scene, facts: FamilyFacts): readonly Disturbance[] {
  const { podLink, pod } = scene;
  const ip = `ip -${facts.digit}`;
  const peer = peerCidr(scene, facts);
  const [own, ownIp] = [cidrOf(scene, 'node-1', facts), nodeIpOf(cidrOf(scene, 'node-1', facts))];
  const gateway = nodeIpOf(peer);
  const podIp = pod.addresses.find((address) => address.includes(':') === (facts.family === 'ipv6'));
  const named = (disturbances: readonly Disturbance[]) =>
    disturbances.map(([kind, what, line]): Disturbance => [kind, `${facts.family}: ${what}`, line]);
  return named([
    ['route', "the peer's route deleted", `${ip} route del ${peer}`],
    ['route', "the peer's route altered", `${ip} route replace ${peer} dev eth0 proto 84`],
    ['route', "the pod's route deleted", `${ip} route del ${podIp}`],
    ['route', 'the dead end deleted', `${ip} route del unreachable ${own}`],
    [
      'route',
      'a route that nobody wants',
      `${ip} route add ${facts.digit === '4' ? '192.0.2.0/24' : '2001:db8::/64'} dev eth0 proto 84`,
    ],
    ['neighbour', 'the peer deleted', `${ip} neighbour del ${gateway} dev tulle.84`],
    [
      'neighbour',
      'the peer altered',
      `${ip} neighbour replace ${gateway} lladdr 02:00:00:00:00:01 dev tulle.84 nud permanent`,
    ],
    ['neighbour', 'the pod deleted', `${ip} neighbour del ${podIp} dev ${podLink}`],
    ['address', "the node's address deleted", `${ip} address del ${ownIp} dev tulle.84`],
    [
      'address',
      'an address that nobody wants',
      `${ip} address add ${facts.digit === '4' ? '192.0.2.1/32' : '2001:db8::1/128'} dev tulle.84`,
    ],
  ]);
}

function linkDisturbances({ podLink, pod, lab }: Scene): readonly Disturbance[] {
  const mac = vtepMac('node-2');
  const end = lab.node('node-2').addresses[0];
  const inPod = `ip netns exec ${pod.netns}`;
  return [
    ['fdb', 'the forwarding entry deleted', `bridge fdb del ${mac} dev tulle.84 dst ${end}`],
    ['fdb', 'the forwarding entry altered', `bridge fdb replace ${mac} dev tulle.84 dst 192.0.2.9`],
    ['fdb', 'a forwarding entry that nobody wants', 'bridge fdb append 02:00:00:00:00:07 dev tulle.84 dst 192.0.2.7'],
    ['link', 'the tunnel device down', 'ip link set tulle.84 down'],
    ['link', 'the MTU of the tunnel device', 'ip link set tulle.84 mtu 1300'],
    ['link', 'the MAC of the tunnel device', 'ip link set tulle.84 address 02:00:00:00:00:08'],
    ['link', 'the tunnel device deleted', 'ip link del tulle.84'],
    ['pod-link', 'the pod link down', `ip link set ${podLink} down`],
    ['pod-link', 'the MTU of the pod link', `ip link set ${podLink} mtu 1300`],
    ['pod-link', "the gateway's address on the pod link deleted", `ip address del fe80::1/64 dev ${podLink}`],
    ['pod-link', 'the pod link deleted', `ip link del ${podLink}`],
    ['pod-link', "the pod's end deleted", `${inPod} ip link del eth0`],
    ['sysctl', 'IPv4 forwarding off', 'sysctl -qw net.ipv4.ip_forward=0'],
    ['sysctl', 'IPv6 forwarding off', 'sysctl -qw net.ipv6.conf.all.forwarding=0'],
  ];
}

function netfilterDisturbances(scene: Scene): readonly Disturbance[] {
  return [
    ['chain-part', 'a chain flushed', 'iptables -t mangle -F TULLE-FORWARD'],
    ['chain-part', 'a jump deleted', `iptables -D FORWARD -j TULLE-FORWARD`],
    [
      'chain-part',
      'a rule altered under its comment',
      "ip6tables-save -t filter | sed '/^-A TULLE-FORWARD /s/-j ACCEPT/-j DROP/' | ip6tables-restore",
    ],
    ['chain-part', 'a rule inserted', 'iptables -t raw -I TULLE-TUNNEL -j ACCEPT'],
    [
      'chain-part',
      'a jump moved',
      `ip6tables -t mangle -D FORWARD -j TULLE-FORWARD; ip6tables -t mangle -A FORWARD -j TULLE-FORWARD`,
    ],
    [
      'chain-part',
      'a chain deleted',
      ['-D POSTROUTING', '-F', '-X']
        .map((verb) => `ip6tables -t nat ${verb}${verb.startsWith('-D') ? ' -j' : ''} TULLE-POSTROUTING`)
        .join('; '),
    ],
    ['member', 'a set flushed', 'ipset flush tulle-ready-6'],
    ['member', 'a member removed', `ipset del tulle-direct-4 ${peerCidr(scene, FAMILIES.ipv4)}`],
    ['member', 'a member added', 'ipset add tulle-nodes-4 192.0.2.66'],
  ];
}

const cidrOf = ({ lab }: Pick<Scene, 'lab'>, node: string, { digit }: FamilyFacts): Cidr =>
  lab.node(node).podCidrs.find((cidr) => cidr.includes(':') === (digit === '6')) as Cidr;
const peerCidr = (scene: Scene, facts: FamilyFacts): Cidr => cidrOf(scene, 'node-2', facts);

const dump = ({ node, pod }: Scene): Promise<readonly string[]> => dumpNode(node, pod.netns);

async function isAsBefore(t: ExecutionContext, scene: Scene, before: readonly string[], what: string): Promise<void> {
  let now: readonly string[] = [];
  const isEqual = async () => {
    now = await dump(scene);
    return now.join('\n') === before.join('\n');
  };
  const restored = until(isEqual, { describe: 'the node to be as before', ...SETTLED });
  await t.notThrowsAsync(
    restored.catch((cause: unknown) => {
      throw new Error(differences(before, now).join('\n'), { cause });
    }),
    what,
  );
}

async function repairsOf({ lab }: Scene, kind: Kind): Promise<number> {
  const { stdout } = await tulle(lab.node('node-1'), 'status', '--json');
  return (JSON.parse(stdout) as AgentStatus).kernel.kinds[kind]?.drift ?? 0;
}

async function everyPingIsAnswered(t: ExecutionContext, { lab }: Scene, what: string): Promise<void> {
  t.deepEqual(await pingsBetween(lab, ['near', 'far']), [], what);
}

/** Those that were not answered, over both families. */
async function pingsBetween(lab: TestLab, names: readonly string[]): Promise<readonly string[]> {
  const status = await lab.control.status();
  const ends = pingEnds(status).filter(({ name }) => names.includes(name.replace('default/', '')));
  const options = { count: 1, families: status.families, nodes: false };
  const results = await pingAll(ends, options, AbortSignal.timeout(TIMEOUT_MS));
  return results.filter(({ ok }) => !ok).map(({ from, to, address }) => `${from} -> ${to} ${address}`);
}
