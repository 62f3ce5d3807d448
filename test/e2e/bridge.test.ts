/** Bridged pods: that they have a network, that nobody takes another's address, and that both types of pod link go together. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type Family, families, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { BRIDGE_NAME, bridgeMac, setName } from '../../agent/model/kernel-names.ts';
import { type MacAddress, macOf, parseMac } from '../../agent/model/mac.ts';
import { pingAll, pingEnds } from '../../lab/ping.ts';
import { until } from '../../lab/until.ts';
import { TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import { capture } from '../support/netns.ts';
import { nodePlace, outputIn, type Place, pings, podPlace, shellIn, spawnerIn } from '../support/places.ts';
import { claimFrame, datagramFrame, type Frame, openInjection, redirectFrame } from '../support/raw-frame.ts';

const directory = mkdtempSync(join(tmpdir(), 'tulle-test-bridge-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const configFile = join(directory, 'config.yaml');
const choose = (podLink: 'bridge' | 'routed') => writeFileSync(configFile, `podLink: ${podLink}\n`);
choose('bridge');

/** Full lists are so rare that only a notice of the kernel can be behind a repair. */
const lab = useLab({ nodes: 2, agentArgs: ['--config', configFile, '--resync-seconds', '600'] });

const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };
const PORT = 9999;

interface Pod {
  readonly place: Place;
  readonly mac: MacAddress;
  ip(family: Family): IpAddress;
}

/** By name, as the tests go on with what earlier ones made. */
const pods = new Map<string, Pod>();

async function runPod(name: string, onNode = 'node-1'): Promise<Pod> {
  const status = await lab().runPod(name, onNode);
  const place = podPlace(lab(), status);
  const mac = parseMac((await outputIn(place, 'cat', '/sys/class/net/eth0/address')).trim()) as MacAddress;
  const ip = (family: Family) => status.addresses.find((each) => familyOf(each) === family) as IpAddress;
  const pod = { place, mac, ip };
  pods.set(name, pod);
  return pod;
}

function podOf(name: string): Pod {
  const pod = pods.get(name);
  if (pod) return pod;
  throw new Error(`no earlier test made pod ${name}`);
}

const node = () => nodePlace(lab().node('node-1'));
const PREFIX_LENGTH = { ipv4: 24, ipv6: 64 } as const;
const GATEWAY = { ipv4: '10.84.0.1' as IpAddress, ipv6: 'fd84::1' as IpAddress } as const;

test.serial('bridged pods have an address with its subnet, a gateway, and everybody answers', async (t) => {
  await withoutBridgeNetfilter();
  const alice = await runPod('alice');
  const carol = await runPod('carol');
  await runPod('dave', 'node-2');
  const seen = await capture(spawnerIn(t, alice.place), 'eth0', 'arp or icmp');
  await everyPairAnswers(t);
  // Not every packet that gives the kernel a reason for a redirect makes it send one.
  t.true(await pings(alice.place, carol.ip('ipv4'), '-c', '10', '-i', '0.02'));
  t.true(await pings(alice.place, GATEWAY.ipv4, '-s', '333'));
  await until(async () => seen.lines.some((line) => line.includes('length 341')), {
    describe: 'the last one',
    ...WAIT,
  });
  const needless = (await seen.stop()).filter((line) => /ARP|redirect/.test(line));
  t.deepEqual(needless, [], 'nobody is asked for an address, and nobody is told of a shorter way');
  for (const { family } of families) {
    const prefixLength = PREFIX_LENGTH[family];
    const flag = { ipv4: '-4', ipv6: '-6' }[family];
    t.regex(
      await outputIn(alice.place, 'ip', flag, 'address', 'show', 'eth0'),
      new RegExp(`${alice.ip(family)}/${prefixLength} `),
    );
    t.regex(
      await outputIn(alice.place, 'ip', flag, 'route'),
      new RegExp(`default via ${GATEWAY[family]} dev eth0.* mtu 1450`),
    );
    t.regex(
      await outputIn(node(), 'ip', 'address', 'show', BRIDGE_NAME),
      new RegExp(`${GATEWAY[family]}/${prefixLength} `),
    );
  }
  const link = await outputIn(node(), 'ip', '-details', 'link', 'show', BRIDGE_NAME);
  t.regex(link, new RegExp(`mtu 1500 [^]*link/ether ${bridgeMac('node-1')} [^]*promiscuity 0 `));
  await lab().control.checkPod('default', 'alice');
  await untilSettled(lab().node('node-1'));
  const { stdout } = await tulle(lab().node('node-1'), 'doctor', '--json');
  const { checks } = JSON.parse(stdout) as { checks: readonly { findings: readonly { summary: string }[] }[] };
  t.deepEqual(
    checks.flatMap(({ findings }) => findings.map(({ summary }) => summary)),
    [],
    'the doctor wants the same',
  );
});

test.serial('what a pod sends to the MAC of another pod does not arrive', async (t) => {
  const [alice, carol, mallory] = [podOf('alice'), podOf('carol'), await runPod('mallory')];
  inject = await openInjection(mallory.place);
  const macs = { source: mallory.mac, destination: alice.mac };
  const arrived = await capture(spawnerIn(t, alice.place), 'eth0', `ether src ${mallory.mac}`);
  for (const { family } of families) {
    for (const source of [mallory.ip(family), carol.ip(family)])
      await inject(datagramFrame({ macs, source, destination: alice.ip(family), port: PORT }));
    await inject(
      claimFrame({ ip: carol.ip(family), mac: mallory.mac, victim: { ip: alice.ip(family), mac: alice.mac } }),
    );
    t.true(await pings(mallory.place, alice.ip(family)), `${family}: by the gateway it does`);
  }
  t.deepEqual(packets(await arrived.stop()), []);
});

test.serial('no pod can claim the address of another pod or of the gateway, also where ports are joined', async (t) => {
  const [alice, carol, mallory] = [podOf('alice'), podOf('carol'), podOf('mallory')];
  await lab().control.stopAgent('node-1');
  await shellIn(node(), 'ls /sys/class/net/tulle0/brif | xargs -I PORT bridge link set dev PORT isolated off');
  for (const facts of families) {
    const { family } = facts;
    for (const other of [carol.ip(family), GATEWAY[family]]) {
      t.true(await pings(alice.place, other), `${other}: before`);
      const before = await neighbours(alice.place);
      const told = await capture(spawnerIn(t, alice.place), 'eth0', `ether src ${mallory.mac}`);
      const victim = { ip: alice.ip(family), mac: alice.mac };
      for (let i = 0; i < 3; i++) await inject(claimFrame({ ip: other, mac: mallory.mac, victim }));
      await until(async () => told.lines.length === 3, { describe: 'the claims to arrive', ...WAIT });
      await told.stop();
      t.deepEqual(await neighbours(alice.place), before, `${other}: alice does not believe it`);
      const seen = await capture(spawnerIn(t, mallory.place), 'eth0', `host ${alice.ip(family)}`);
      t.true(await pings(alice.place, other), `${other}: after`);
      t.deepEqual(packets(await seen.stop()), [], `${other}: mallory sees nothing`);
    }
    const before = await neighbours(node());
    await inject(
      claimFrame({ ip: alice.ip(family), mac: mallory.mac, victim: { ip: GATEWAY[family], mac: bridgeMac('node-1') } }),
    );
    t.true(await pings(node(), alice.ip(family)), `${family}: the node does not believe it either`);
    t.deepEqual(await neighbours(node()), before);
  }
});

test.serial('a forged redirect of the gateway is not obeyed', async (t) => {
  const [alice, mallory] = [podOf('alice'), podOf('mallory')];
  const destination = podOf('dave').ip('ipv4');
  t.true(await pings(alice.place, destination));
  const route = () => outputIn(alice.place, 'ip', '-4', 'route', 'get', destination);
  const before = await route();
  const macs = { source: mallory.mac, destination: alice.mac };
  const arrived = await capture(spawnerIn(t, alice.place), 'eth0', 'icmp[icmptype] == icmp-redirect');
  // The first would make alice look for the new gateway, the answer would satisfy her, the second would turn her.
  const redirect = redirectFrame({
    macs,
    gateway: GATEWAY.ipv4,
    victim: alice.ip('ipv4'),
    destination,
    newGateway: mallory.ip('ipv4'),
  });
  await inject(redirect);
  await inject(
    claimFrame({ ip: mallory.ip('ipv4'), mac: mallory.mac, victim: { ip: alice.ip('ipv4'), mac: alice.mac } }),
  );
  await inject(redirect);
  await until(async () => arrived.lines.length === 2, { describe: 'the redirects to arrive', ...WAIT });
  await arrived.stop();
  t.is(await route(), before);
  await lab().control.startAgent('node-1');
  await untilSettled(lab().node('node-1'));
});

test.serial('a pod sends with its own MAC and its own address only', async (t) => {
  const [alice, dave, mallory] = [podOf('alice'), podOf('dave'), podOf('mallory')];
  const destination = bridgeMac('node-1');
  for (const facts of families) {
    const { family } = facts;
    const frame = (port: number, mac: MacAddress, source: IpAddress): Frame =>
      datagramFrame({ macs: { source: mac, destination }, source, destination: dave.ip(family), port });
    const onBridge = await capture(spawnerIn(t, node()), BRIDGE_NAME, `udp portrange ${PORT}-${PORT + 9}`);
    const atDave = await capture(spawnerIn(t, dave.place), 'eth0', `udp portrange ${PORT}-${PORT + 9}`);
    const dropped = await sourceDrops();
    await inject(frame(PORT + 1, alice.mac, mallory.ip(family)));
    await inject(frame(PORT + 2, alice.mac, alice.ip(family)));
    await inject(frame(PORT + 3, macOf('nobody'), mallory.ip(family)));
    await inject(frame(PORT + 4, mallory.mac, alice.ip(family)));
    await inject(frame(PORT + 5, mallory.mac, GATEWAY[family]));
    await inject(frame(PORT + 6, mallory.mac, mallory.ip(family)));
    await until(async () => atDave.lines.length > 0, { describe: 'the honest datagram to arrive', ...WAIT });
    const ports = (lines: readonly string[]) =>
      packets(lines).map((line) => Number(/ > \S+\.(\d+): /.exec(line)?.[1]) - PORT);
    t.deepEqual(ports(await atDave.stop()), [6], `${family}: only what is honest arrives`);
    t.deepEqual(ports(await onBridge.stop()), [4, 5, 6], `${family}: the port lets no other MAC in`);
    // Beside them what IPv6 sends by itself from link-local addresses.
    t.true((await sourceDrops()) - dropped >= 2, `${family}: the addresses of others are dropped and counted`);
  }
});

test.serial('no packet passes the gate between two bridged pods if one of them is not ready', async (t) => {
  const [alice, carol] = [podOf('alice'), podOf('carol')];
  for (const facts of families) {
    const answered = async () => [
      await pings(alice.place, carol.ip(facts.family)),
      await pings(carol.place, alice.ip(facts.family)),
    ];
    t.deepEqual(await answered(), [true, true]);
    await lab().control.stopAgent('node-1');
    await shellIn(node(), `ipset del ${setName('ready', facts)} ${carol.ip(facts.family)}`);
    t.deepEqual(await answered(), [false, false], `${facts.family}: not ready`);
    await lab().control.startAgent('node-1');
    await until(() => pings(alice.place, carol.ip(facts.family)), { describe: 'carol to be ready again', ...WAIT });
    t.deepEqual(await answered(), [true, true]);
  }
});

test.serial('what somebody alters comes back at once, and an agent that was killed changes nothing', async (t) => {
  const alice = podOf('alice');
  await lab().control.removePod('default', 'mallory');
  await untilSettled(lab().node('node-1'));
  const port = /^\d+: (tl[0-9a-f]{12})@/m.exec(
    await outputIn(node(), 'sh', '-c', 'ip -o link | grep alias.tulle:pod:default/alice'),
  )?.[1];
  t.truthy(port);
  const lines = [
    `tc filter del dev ${BRIDGE_NAME} ingress`,
    `tc qdisc del dev ${BRIDGE_NAME} clsact`,
    `bridge link set dev ${port} isolated off`,
    `ip link set ${port} nomaster`,
    `bridge link set dev ${port} learning on`,
    `bridge link set dev ${port} locked off`,
    `ip link set ${port} type bridge_slave flood on`,
    `bridge fdb del ${alice.mac} dev ${port} master`,
    `bridge fdb add ${macOf('nobody')} dev ${port} master static`,
    ...families.map(({ family }) => `ip neighbour del ${alice.ip(family)} dev ${BRIDGE_NAME}`),
    ...families.map(({ family }) => `ip route del ${alice.ip(family)}`),
    ...families.map(({ family }) => `ip address del ${GATEWAY[family]}/${PREFIX_LENGTH[family]} dev ${BRIDGE_NAME}`),
    `ip link set ${BRIDGE_NAME} down`,
    `ip link set ${BRIDGE_NAME} type bridge stp_state 1`,
    `ip link set ${BRIDGE_NAME} type bridge mcast_snooping 1`,
    `ip link set ${BRIDGE_NAME} address ${macOf('nobody')}`,
    `ip link set ${BRIDGE_NAME} mtu 1300`,
    `sysctl -qw net.ipv4.conf.${BRIDGE_NAME}.rp_filter=0`,
    `ip link delete ${BRIDGE_NAME}`,
  ];
  const before = await stateOf(port as string);
  for (const line of lines) {
    await shellIn(node(), line);
    await t.notThrowsAsync(until(async () => (await stateOf(port as string)) === before, { describe: line, ...WAIT }));
    await everyPairAnswers(t, line);
    await lab().control.checkPod('default', 'alice');
  }
  await lab().control.killAgent('node-1');
  await everyPairAnswers(t, 'while there is no agent');
  await untilSettled(lab().node('node-1'));
  t.is(await stateOf(port as string), before);
});

test.serial(
  'nobody takes an address while there is no agent, and what it missed of the guard comes back with it',
  async (t) => {
    const [alice, dave] = [podOf('alice'), podOf('dave')];
    const mallory = await runPod('mallory');
    inject = await openInjection(mallory.place);
    await lab().control.killAgent('node-1');
    // The lab starts it again.
    for (const { family } of families) {
      const dropped = await sourceDrops();
      const macs = { source: mallory.mac, destination: bridgeMac('node-1') };
      await inject(datagramFrame({ macs, source: alice.ip(family), destination: dave.ip(family), port: PORT }));
      t.true(await pings(mallory.place, dave.ip(family)));
      t.true((await sourceDrops()) > dropped, family);
    }
    await untilSettled(lab().node('node-1'));
    await lab().control.stopAgent('node-1');
    const map = await guardMap();
    await shellIn(node(), `bpftool map delete id ${map} key hex ${await keyIn(map, alice)}`);
    t.false(await pings(alice.place, dave.ip('ipv4')), 'the map does not know alice');
    t.true(await pings(alice.place, dave.ip('ipv6')));
    await lab().control.startAgent('node-1');
    await until(() => pings(alice.place, dave.ip('ipv4')), { describe: 'alice to be known again', ...WAIT });
    await untilSettled(lab().node('node-1'));
    t.is(await guardMap(), map, 'it is the map of the agent before');
    await lab().control.removePod('default', 'mallory');
  },
);

/** Id of the map that the filter's program asks. */
async function guardMap(): Promise<number> {
  const filter = await outputIn(node(), 'tc', 'filter', 'show', 'dev', BRIDGE_NAME, 'ingress');
  const id = / id (\d+) /.exec(filter)?.[1] ?? '';
  return JSON.parse(await outputIn(node(), 'bpftool', '-j', 'prog', 'show', 'id', id)).map_ids[0];
}

/** The key of a pod's IPv4 address. */
async function keyIn(map: number, pod: Pod): Promise<string> {
  const entries = JSON.parse(await outputIn(node(), 'bpftool', '-j', 'map', 'dump', 'id', String(map)));
  const keys = (entries as { key: string[] }[]).map(({ key }) => key.map((byte) => byte.slice(2)));
  const mac = pod.mac.replaceAll(':', '');
  const key = keys.find((bytes) => bytes.join('').startsWith(`${mac}0800`));
  if (!key) throw new Error(`no entry of ${mac}`);
  return key.join(' ');
}

test.serial('another podLink is for new pods; the bridge goes with its last pod, and comes back', async (t) => {
  choose('routed');
  await restartAgents();
  await runPod('erin');
  await everyPairAnswers(t, 'bridged and routed pods of one node');
  for (const name of ['alice', 'erin']) await lab().control.checkPod('default', name);
  t.true(await hasBridge());
  for (const name of ['alice', 'carol', 'dave']) await lab().control.removePod('default', name);
  t.false(await hasBridge(), 'nobody asks for it any more');
  t.notRegex(await outputIn(node(), 'sh', '-c', 'iptables-save; ip6tables-save'), /TULLE-BRIDGE/);
  await runPod('frank', 'node-2');
  await everyPairAnswers(t, 'routed pods alone');
  choose('bridge');
  await restartAgents();
  t.true(await hasBridge());
  await runPod('grace');
  await everyPairAnswers(t, 'routed pods and a bridged one');
  await lab().control.checkPod('default', 'erin');
});

/** Sends a frame as mallory. */
let inject: (frame: Frame) => Promise<void>;

/** tcpdump ends with an empty line. */
const packets = (lines: readonly string[]): readonly string[] => lines.filter((line) => line !== '');

async function everyPairAnswers(t: ExecutionContext, when = ''): Promise<void> {
  const ends = pingEnds(await lab().control.status()).filter(({ name }) => name !== 'default/mallory');
  const options = { count: 1, families: families.map(({ family }) => family), nodes: true };
  const results = await pingAll(ends, options, AbortSignal.timeout(TIMEOUT_MS));
  t.true(results.length > 0);
  const lost = results.filter(({ ok }) => !ok).map(({ from, to, address }) => `${from} → ${to} ${address}`);
  t.deepEqual(lost, [], when);
}

/** Where it is on, iptables sees also what a bridge forwards, and this must hold without. The matrix has it on. */
const withoutBridgeNetfilter = () =>
  shellIn(node(), 'for name in iptables ip6tables arptables; do sysctl -qw net.bridge.bridge-nf-call-$name=0; done');

const hasBridge = async (): Promise<boolean> =>
  (await outputIn(node(), 'ip', '-o', 'link')).includes(`: ${BRIDGE_NAME}:`);

async function restartAgents(): Promise<void> {
  for (const { name } of lab().nodes.values()) {
    await lab().control.stopAgent(name);
    await lab().control.startAgent(name);
  }
  for (const each of lab().nodes.values()) await untilSettled(each);
}

/** Who is known under which hardware address, whatever the state. */
async function neighbours(place: Place): Promise<readonly string[]> {
  const text = await outputIn(place, 'ip', 'neighbour');
  return text
    .split('\n')
    .map((line) => line.replace(/ (router )?[A-Z]+ *$/, ''))
    .filter((line) => line.includes('lladdr') && !line.startsWith('fe80:'))
    .sort();
}

/** Packets that the filter of the bridge dropped. */
async function sourceDrops(): Promise<number> {
  const [qdisc] = JSON.parse(await outputIn(node(), 'tc', '-s', '-j', 'qdisc', 'show', 'dev', BRIDGE_NAME, 'clsact'));
  return (qdisc as { drops: number }).drops;
}

/** Everything of the bridge and of one of its ports, without what a device made anew has otherwise. */
async function stateOf(port: string): Promise<string> {
  const questions = [
    ...[port, BRIDGE_NAME].map((link) => `ip -o link show ${link}`),
    `bridge -d link show dev ${port}`,
    `bridge fdb show dev ${port}`,
    `ip -d link show ${BRIDGE_NAME} | grep -oE '(stp_state|mcast_snooping) [0-9]'`,
    `ip -o address show dev ${BRIDGE_NAME}`,
    `tc filter show dev ${BRIDGE_NAME} ingress | sed 's/ id .*//'`,
    `ip neighbour show dev ${BRIDGE_NAME} nud permanent`,
    'ip -4 route',
    'ip -6 route',
    `sysctl net.ipv4.conf.${BRIDGE_NAME}.rp_filter`,
  ];
  const text = await outputIn(node(), 'sh', '-c', questions.join('; '));
  const lines = text.split('\n').map((line) => line.replace(/^\d+: /, '').trim());
  return lines.sort().join('\n');
}
