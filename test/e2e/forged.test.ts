/** What the tunnel's port and the gate keep out, with real packets, and the proof that they would get in otherwise. */
import test, { type ExecutionContext } from 'ava';
import { type Cidr, FAMILIES, type Family, type FamilyFacts, families, type IpAddress } from '../../agent/model/ip.ts';
import { setName, vtepMac } from '../../agent/model/kernel-names.ts';
import { nodeIpOf } from '../../agent/plan/underlay.ts';
import { bridgeName } from '../../lab/fabric.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { type TestLab, TIMEOUT_MS, useLab } from '../support/lab.ts';
import { type Capture, capture } from '../support/netns.ts';
import {
  createGuest,
  nodePlace,
  type Place,
  pings,
  podPlace,
  sendDatagram,
  shellIn,
  spawnerIn,
} from '../support/places.ts';
import { tunnelFrame } from '../support/tunnel-frame.ts';

const TUNNEL_PORT = 8472;
const VNI = 84;
/** Of node-1; somebody else's rule sends on to the tunnel's port what comes there. */
const OWN_PORT = 10;
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };

/** Addresses by which a neighbour on a link reaches a node without naming an address of its own. */
const NEARBY: Readonly<Record<Family, readonly string[]>> = {
  ipv4: ['224.0.0.1', '172.30.0.255', '255.255.255.255'],
  // All nodes, the anycast address of the segment's routers.
  ipv6: ['ff02::1%eth0', 'fd30::'],
};

interface Attack {
  readonly name: string;
  readonly from: Place;
  readonly to: string;
  /** The tunnel's unless given. */
  readonly port?: number;
  readonly source?: string;
  readonly unprivileged?: boolean;
  /** Where it is dropped: node, table and chain. */
  readonly dropped: readonly [Place, table: 'raw' | 'mangle', chain: string];
  /** It would be delivered without the guard of the tunnel's port. */
  readonly needsGuard: boolean;
}

interface Scene {
  readonly facts: FamilyFacts;
  readonly lab: TestLab;
  readonly node1: Place;
  readonly node2: Place;
  /** Addresses of the tunnel's family. */
  readonly ips: { readonly node1: string; readonly node2: string; readonly node1InPodNetwork: string };
  readonly pod1: Place;
  readonly pod2: Place;
  readonly target: Place;
  /** The inner source is pod2, the inner destination target; the inner source port tells one from the other. */
  payload(sourcePort: number): string;
}

const labs = new Map(
  families.map((facts) => [facts, useLab({ nodes: 2, agentArgs: ['--tunnel-family', facts.family] })] as const),
);

for (const [facts, lab] of labs) {
  const { family } = facts;

  test.serial(`${family}: only nodes may send into the tunnel`, async (t) => {
    const scene = await setScene(lab(), facts);
    const attacks = await plan(t, scene);
    const delivered = await capture(spawnerIn(t, scene.target), 'eth0', 'udp port 9999');
    for (const [i, attack] of attacks.entries()) await isDropped(t, attack, scene.payload(20_000 + i), facts);
    await sendDatagram(scene.node2, { to: scene.ips.node1, port: TUNNEL_PORT, payload: scene.payload(30_000) });
    await arrives(delivered, 30_000);
    t.is(delivered.lines.length, 1, delivered.lines.join('\n'));

    // What is dropped for being tracked is dropped as well where somebody else has it not tracked.
    await shellIn(scene.node1, `${iptables(facts)} -t raw -A PREROUTING -p udp -j CT --notrack`);
    const nearby = attacks.filter(({ to }) => NEARBY[family].includes(to));
    for (const [i, attack] of nearby.entries()) await isDropped(t, attack, scene.payload(35_000 + i), facts);
    await shellIn(scene.node1, `${iptables(facts)} -t raw -D PREROUTING -p udp -j CT --notrack`);
    t.is(delivered.lines.length, 1, delivered.lines.join('\n'));

    await withoutGuard([scene.node1, scene.node2], facts, async () => {
      for (const [i, attack] of attacks.entries()) {
        if (!attack.needsGuard) continue;
        await send(attack, scene.payload(40_000 + i));
        await t.notThrowsAsync(() => arrives(delivered, 40_000 + i), `${attack.name}: shows that it can be delivered`);
      }
    });
  });
}

test.serial('no packet passes the gate from or to a pod that is not ready', async (t) => {
  const lab = (labs.get(FAMILIES.ipv4) as () => TestLab)();
  const [target, other] = [await lab.runPod('gated', 'node-1'), await lab.runPod('other', 'node-2')];
  const beside = await lab.runPod('beside', 'node-1');
  const [node1, node2] = [nodePlace(lab.node('node-1')), nodePlace(lab.node('node-2'))];
  const [from, to, near] = [podPlace(lab, target), podPlace(lab, other), podPlace(lab, beside)];
  for (const facts of families) {
    const [ip, otherIp] = [ipOf(target, facts.family), ipOf(other, facts.family)];
    const nearIp = ipOf(beside, facts.family);
    const answered = async () => [
      await pings(node2, ip),
      await pings(from, otherIp),
      await pings(near, ip),
      await pings(from, nearIp),
    ];
    t.deepEqual(await answered(), [true, true, true, true], `${facts.family}: ready`);
    await lab.control.stopAgent('node-1');
    await shellIn(node1, `ipset del ${setName('ready', facts)} ${ip}`);
    const before = await drops(node1, 'mangle', 'TULLE-FORWARD', facts);
    const [atTarget, atNear] = [
      await capture(spawnerIn(t, from), 'eth0', `src host ${nearIp}`),
      await capture(spawnerIn(t, near), 'eth0', `src host ${ip}`),
    ];
    t.deepEqual(await answered(), [false, false, false, false], `${facts.family}: not ready`);
    t.is((await drops(node1, 'mangle', 'TULLE-FORWARD', facts)) - before, 4);
    const seen = [...(await atTarget.stop()), ...(await atNear.stop())].filter((line) => line !== '');
    t.deepEqual(seen, [], 'nothing comes through, asked or answered');
    t.true(await pings(to, nodeInPodNetwork(lab, 'node-1', facts.family)), 'the node itself is not concerned');
    await lab.control.startAgent('node-1');
    await until(() => pings(node2, ip), { describe: 'the pod to be ready again', ...WAIT });
    t.deepEqual(await answered(), [true, true, true, true], `${facts.family}: ready again`);
  }
});

async function setScene(lab: TestLab, facts: FamilyFacts): Promise<Scene> {
  const [pod1, pod2, target] = await Promise.all([
    lab.runPod('pod1', 'node-1'),
    lab.runPod('pod2', 'node-2'),
    lab.runPod('target', 'node-1'),
  ]);
  const { family } = facts;
  const ips = {
    node1: ofFamily(lab.node('node-1').addresses, family),
    node2: ofFamily(lab.node('node-2').addresses, family),
    node1InPodNetwork: nodeInPodNetwork(lab, 'node-1', family),
  };
  const payload = (source: number) =>
    tunnelFrame({
      vni: VNI,
      macs: { source: vtepMac('node-2'), destination: vtepMac('node-1') },
      ips: { source: ipOf(pod2, 'ipv4'), destination: ipOf(target, 'ipv4') },
      ports: { source, destination: 9999 },
    }).toString('base64');
  return {
    facts,
    lab,
    node1: nodePlace(lab.node('node-1')),
    node2: nodePlace(lab.node('node-2')),
    ips,
    pod1: podPlace(lab, pod1),
    pod2: podPlace(lab, pod2),
    target: podPlace(lab, target),
    payload,
  };
}

async function plan(t: ExecutionContext, scene: Scene): Promise<readonly Attack[]> {
  const { node1, node2, ips, pod1, pod2, facts } = scene;
  const raw = (node: Place) => [node, 'raw', 'TULLE-TUNNEL'] as const;
  const input = [node1, 'mangle', 'TULLE-INPUT'] as const;
  const stranger = await createStranger(t, scene);
  const guest = await createMasqueraded(t, scene);
  const service = await redirect(scene);
  const own = `-p udp -d ${ips.node1} --dport ${OWN_PORT} -j REDIRECT --to-ports ${TUNNEL_PORT}`;
  await shellIn(node1, `${iptables(facts)} -t nat -A PREROUTING ${own}`);
  const attack = (name: string, from: Place, to: string, dropped: Attack['dropped']): Attack => ({
    name,
    from,
    to,
    dropped,
    needsGuard: true,
  });
  const nobody = { unprivileged: true };
  await shellIn(pod1, addAddress(ips.node2));
  await shellIn(pod2, addAddress(ips.node2));
  // Without the guard it is up to the host's rp_filter.
  const spoofed = (node: Place) => (facts.family === 'ipv4' ? raw(node) : ([node, 'raw', 'TULLE-PREROUTING'] as const));
  const asNode2 = { source: ips.node2, needsGuard: false };
  return [
    { ...attack('a pod, to another node, masqueraded by its own', pod2, ips.node1, raw(node2)), ...nobody },
    { ...attack('a pod, to its own node', pod1, ips.node1, raw(node1)), ...nobody },
    attack("a pod, to its node's address in the pod network", pod1, ips.node1InPodNetwork, raw(node1)),
    attack("a pod, to another node's address in the pod network", pod2, ips.node1InPodNetwork, raw(node1)),
    ...NEARBY[facts.family].map((to) => attack(`a pod, to ${to}`, pod1, to, input)),
    { ...attack('a pod as node-2, to node-1 from there', pod2, ips.node1, spoofed(node2)), ...asNode2 },
    { ...attack('a pod as node-2, to node-1 from beside', pod1, ips.node1, spoofed(node1)), ...asNode2 },
    {
      ...attack('a pod, by a DNAT of its node', pod2, service.to, [node2, 'mangle', 'TULLE-TUNNEL']),
      port: service.port,
    },
    attack('a stranger on the segment', stranger, ips.node1, raw(node1)),
    ...NEARBY[facts.family].map((to) => attack(`a stranger on the segment, to ${to}`, stranger, to, input)),
    {
      ...attack('a stranger on the segment, by a DNAT of the node itself', stranger, ips.node1, input),
      port: OWN_PORT,
    },
    attack('a guest that its node masquerades', guest, ips.node1, raw(node2)),
  ];
}

const addAddress = (ip: string): string => `ip address add ${ip} dev lo${ip.includes(':') ? ' nodad' : ''}`;

/** A host on the nodes' wire that is no node. */
async function createStranger(t: ExecutionContext, { lab, node1 }: Scene): Promise<Place> {
  const { supervisorPid } = await lab.control.status();
  const stranger = await createGuest(t, {
    name: 'stranger',
    beside: supervisorPid,
    bridge: bridgeName(0),
    addresses: ['172.30.0.9/24', 'fd30::9/64'],
    gateways: ['172.30.0.1', 'fd30::1'],
  });
  // Every router of the segment has the anycast address: the one that answers first would be meant.
  const mac = (await shellIn(node1, 'cat /sys/class/net/eth0/address')).trim();
  await shellIn(stranger, `ip neighbour replace fd30:: lladdr ${mac} dev eth0`);
  return stranger;
}

/** A host behind node-2 that somebody else's rule masquerades, such as a container of Docker. */
async function createMasqueraded(t: ExecutionContext, { lab, node2, facts }: Scene): Promise<Place> {
  const guest = await createGuest(t, {
    name: 'guest',
    beside: lab.node('node-2').pid,
    outerAddresses: ['192.168.77.1/24', 'fd77::1/64'],
    addresses: ['192.168.77.2/24', 'fd77::2/64'],
    gateways: ['192.168.77.1', 'fd77::1'],
  });
  const source = facts.family === 'ipv4' ? '192.168.77.0/24' : 'fd77::/64';
  await shellIn(node2, `${iptables(facts)} -t nat -A POSTROUTING -s ${source} -j MASQUERADE`);
  return guest;
}

/** Somebody else's rule of node-2, as for a published port: what is sent there goes on to the tunnel's port of node-1. */
async function redirect({ node2, ips, facts }: Scene): Promise<{ readonly to: string; readonly port: number }> {
  const [to, end] = facts.family === 'ipv4' ? ['192.0.2.1', ips.node1] : ['2001:db8::1', `[${ips.node1}]`];
  const dnat = `-p udp -d ${to} --dport 9 -j DNAT --to-destination ${end}:${TUNNEL_PORT}`;
  await shellIn(node2, `${iptables(facts)} -t nat -A PREROUTING ${dnat}`);
  return { to, port: 9 };
}

async function isDropped(t: ExecutionContext, attack: Attack, payload: string, facts: FamilyFacts): Promise<void> {
  const count = () => drops(...attack.dropped, facts);
  const before = await count();
  await send(attack, payload);
  const [node, table, chain] = attack.dropped;
  const wait = { describe: `${node.name} to count a drop in ${table} ${chain}`, ...WAIT, deadlineMs: 5_000 };
  await t.notThrowsAsync(() => until(async () => (await count()) > before, wait), attack.name);
}

const send = ({ from, to, port = TUNNEL_PORT, source, unprivileged }: Attack, payload: string): Promise<void> =>
  sendDatagram(from, {
    to,
    port,
    payload,
    ...(source && { from: source }),
    ...(unprivileged && { unprivileged }),
  });

const arrives = ({ lines }: Capture, sourcePort: number): Promise<boolean> =>
  until(() => lines.some((line) => line.includes(`.${sourcePort} > `)), {
    describe: `the datagram with source port ${sourcePort} in the pod`,
    ...WAIT,
    deadlineMs: 5_000,
  });

/** Packets that the DROP rules of one of Tulle's chains counted. */
async function drops(node: Place, table: string, chain: string, facts: FamilyFacts): Promise<number> {
  const rules = await shellIn(node, `${iptables(facts)}-save --counters --table ${table}`);
  const counts = rules.matchAll(new RegExp(`^\\[(\\d+):\\d+\\] -A ${chain} .*-j DROP$`, 'gm'));
  return [...counts].reduce((sum, [, packets]) => sum + Number(packets), 0);
}

/** Lets everything pass before it comes to the rules that guard the port. */
async function withoutGuard(nodes: readonly Place[], facts: FamilyFacts, work: () => Promise<void>): Promise<void> {
  const edit = (verb: '-I' | '-D') =>
    Promise.all(
      nodes.map((node) =>
        shellIn(
          node,
          ['raw PREROUTING', 'mangle INPUT', 'mangle FORWARD']
            .map((place) => place.split(' '))
            .map(
              ([table, chain]) =>
                `${iptables(facts)} -t ${table} ${verb} ${chain} -p udp --dport ${TUNNEL_PORT} -j ACCEPT`,
            )
            .join('\n'),
        ),
      ),
    );
  await edit('-I');
  try {
    await work();
  } finally {
    await edit('-D');
  }
}

const iptables = ({ family }: FamilyFacts): string => (family === FAMILIES.ipv4.family ? 'iptables' : 'ip6tables');

const ofFamily = <T extends string>(values: readonly T[], family: Family): T =>
  values.find((value) => value.includes(':') === (family === 'ipv6')) as T;

const ipOf = ({ addresses }: PodStatus, family: Family): IpAddress => ofFamily(addresses, family);

const nodeInPodNetwork = (lab: TestLab, node: string, family: Family): IpAddress =>
  nodeIpOf(ofFamily(lab.node(node).podCidrs, family) as Cidr) as IpAddress;
