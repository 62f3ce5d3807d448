/**
 * Bridged pods: that they have a network, that nobody takes another's address or gets past the node, and that both types of
 * pod link go together.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type Family, type FamilyFacts, families, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { BRIDGE_NAME, bridgeMac, setName } from '../../agent/model/kernel-names.ts';
import { type MacAddress, macOf, parseMac } from '../../agent/model/mac.ts';
import { pingAll, pingEnds } from '../../lab/ping.ts';
import { until } from '../../lab/until.ts';
import { TIMEOUT_MS, untilSettled, useLab } from '../support/lab.ts';
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
interface Sender {
  readonly mac: MacAddress;
  readonly ip: IpAddress;
}
type Captured = Awaited<ReturnType<typeof capture>>;
const BROADCAST = parseMac('ff:ff:ff:ff:ff:ff') as MacAddress;
const PREFIX_LENGTH = { ipv4: 24, ipv6: 64 } as const;
const GATEWAY = { ipv4: '10.84.0.1' as IpAddress, ipv6: 'fd84::1' as IpAddress } as const;

test.serial('bridged pods have an address with its subnet, a gateway, and everybody answers', async (t) => {
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
    const unused = { ipv4: '10.84.0.250', ipv6: 'fd84::fa' }[family];
    t.regex(await shellIn(alice.place, `ping -c 1 -W 5 ${unused} || true`), /nreachable/, 'told at once');
  }
  const link = await outputIn(node(), 'ip', '-details', 'link', 'show', BRIDGE_NAME);
  t.regex(link, new RegExp(`mtu 1500 [^]*link/ether ${bridgeMac('node-1')} [^]*promiscuity 0 `));
  t.is(
    await outputIn(node(), 'ip', 'link', 'show', 'master', BRIDGE_NAME),
    '',
    'pods meet on the node, not on the bridge',
  );
  await lab().control.checkPod('default', 'alice');
  await untilSettled(lab().node('node-1'));
});

test.serial('no pod can claim the address of another pod or of the gateway', async (t) => {
  const [alice, carol, mallory] = [podOf('alice'), podOf('carol'), await runPod('mallory')];
  inject = await openInjection(mallory.place);
  const link = await hostLinkOf('mallory');
  const gateway = bridgeMac('node-1');
  for (const { family } of families) {
    for (const other of [carol.ip(family), GATEWAY[family]]) {
      t.true(await pings(alice.place, other), `${other}: before`);
      const before = [await neighbours(alice.place), await neighbours(node())];
      const told = await capture(spawnerIn(t, alice.place), 'eth0', `ether src ${mallory.mac}`);
      const sent = await capture(spawnerIn(t, node()), link, `ether src ${mallory.mac}`);
      // To alice, to alice by the gateway, and to the node itself.
      const address = alice.ip(family);
      const victims = [alice.mac, gateway].map((mac) => ({ ip: address, mac }));
      for (const victim of victims) await inject(claimFrame({ ip: other, mac: mallory.mac, victim }));
      await inject(claimFrame({ ip: address, mac: mallory.mac, victim: { ip: GATEWAY[family], mac: gateway } }));
      await until(async () => sent.lines.length >= 3, { describe: 'the claims to leave', ...WAIT });
      await sent.stop();
      const seen = await capture(spawnerIn(t, mallory.place), 'eth0', `host ${address}`);
      t.true(await pings(alice.place, other), `${other}: after`);
      t.true(await pings(node(), address), `${other}: the node does not believe it either`);
      t.deepEqual(packets(await told.stop()), [], `${other}: nothing of it comes to alice`);
      t.deepEqual([await neighbours(alice.place), await neighbours(node())], before, other);
      t.deepEqual(packets(await seen.stop()), [], `${other}: mallory sees nothing`);
    }
  }
});

test.serial('a forged redirect of the gateway does not arrive', async (t) => {
  const [alice, mallory] = [podOf('alice'), podOf('mallory')];
  const destination = podOf('dave').ip('ipv4');
  t.true(await pings(alice.place, destination));
  const route = () => outputIn(alice.place, 'ip', '-4', 'route', 'get', destination);
  const before = await route();
  const filter = 'icmp[icmptype] == icmp-redirect';
  const arrived = await capture(spawnerIn(t, alice.place), 'eth0', filter);
  const sent = await capture(spawnerIn(t, node()), await hostLinkOf('mallory'), filter);
  const redirect = {
    gateway: GATEWAY.ipv4,
    victim: alice.ip('ipv4'),
    destination,
    newGateway: mallory.ip('ipv4'),
  };
  for (const mac of [alice.mac, bridgeMac('node-1')])
    await inject(redirectFrame({ macs: { source: mallory.mac, destination: mac }, ...redirect }));
  await until(async () => sent.lines.length === 2, { describe: 'the redirects to leave', ...WAIT });
  await sent.stop();
  t.true(await pings(alice.place, destination));
  t.deepEqual(packets(await arrived.stop()), []);
  t.is(await route(), before);
});

test.serial('a pod sends with its own address only, and only to the node', async (t) => {
  const [alice, dave, mallory] = [podOf('alice'), podOf('dave'), podOf('mallory')];
  const gateway = bridgeMac('node-1');
  for (const facts of families) {
    const { family } = facts;
    const send = async (port: number, from: Sender, to: { pod: Pod; mac: MacAddress }): Promise<void> => {
      const [source, destination] = [from.ip, to.pod.ip(family)];
      const macs = { source: from.mac, destination: to.mac };
      await inject(datagramFrame({ macs, source, destination, port: PORT + port }));
    };
    const [hers, his] = [alice.ip(family), mallory.ip(family)];
    const toDave = { pod: dave, mac: gateway };
    const captures = [alice, dave].map(({ place }) =>
      capture(spawnerIn(t, place), 'eth0', `udp portrange ${PORT}-${PORT + 9}`),
    );
    const [atAlice, atDave] = (await Promise.all(captures)) as [Captured, Captured];
    const [before, dropped] = [await neighbours(node()), await sourceDrops(facts)];
    await send(1, { mac: mallory.mac, ip: hers }, toDave);
    await send(2, { mac: alice.mac, ip: hers }, toDave);
    await send(3, { mac: mallory.mac, ip: GATEWAY[family] }, toDave);
    // Around the node, where no gate and no policy would see it.
    await send(4, { mac: mallory.mac, ip: his }, { pod: alice, mac: alice.mac });
    await send(5, { mac: mallory.mac, ip: his }, { pod: alice, mac: BROADCAST });
    // The hardware address of another gives nobody anything.
    await send(6, { mac: alice.mac, ip: his }, toDave);
    await send(7, { mac: mallory.mac, ip: his }, toDave);
    await send(8, { mac: mallory.mac, ip: his }, { pod: alice, mac: gateway });
    await until(async () => atDave.lines.length > 1 && atAlice.lines.length > 0, {
      describe: 'the honest datagrams to arrive',
      ...WAIT,
    });
    const ports = (lines: readonly string[]) =>
      packets(lines).map((line) => Number(/ > \S+\.(\d+): /.exec(line)?.[1]) - PORT);
    t.deepEqual(ports(await atDave.stop()), [6, 7], `${family}: only what has his own address`);
    t.deepEqual(ports(await atAlice.stop()), [8], `${family}: only what the node has passed on`);
    t.deepEqual(await neighbours(node()), before);
    // Beside them what IPv6 sends by itself from link-local addresses.
    t.true((await sourceDrops(facts)) - dropped >= 2, `${family}: the addresses of others are dropped and counted`);
    t.true(await pings(node(), hers), `${family}: alice has her place`);
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
  const link = await hostLinkOf('alice');
  const lines = [
    `ip link set ${link} master ${BRIDGE_NAME}`,
    `ip link set ${link} address ${macOf('nobody')}`,
    `ip link set ${link} down`,
    `ip address del fe80::1/64 dev ${link}`,
    `sysctl -qw net.ipv4.conf.${link}.rp_filter=0`,
    ...families.map(({ family }) => `ip neighbour del ${alice.ip(family)} dev ${link}`),
    ...families.map(({ family }) => `ip route del ${alice.ip(family)}`),
    ...families.map(({ family }) => `ip address del ${GATEWAY[family]}/${PREFIX_LENGTH[family]} dev ${BRIDGE_NAME}`),
    `ip link set ${BRIDGE_NAME} down`,
    `ip link set ${BRIDGE_NAME} address ${macOf('nobody')}`,
    `ip link set ${BRIDGE_NAME} mtu 1300`,
    `ip link delete ${BRIDGE_NAME}`,
  ];
  const before = await stateOf(link);
  for (const line of lines) {
    await shellIn(node(), line);
    await t.notThrowsAsync(until(async () => (await stateOf(link)) === before, { describe: line, ...WAIT }));
    await everyPairAnswers(t, line);
    await lab().control.checkPod('default', 'alice');
  }
  await lab().control.killAgent('node-1');
  await everyPairAnswers(t, 'while there is no agent');
  await untilSettled(lab().node('node-1'));
  t.is(await stateOf(link), before);
});

test.serial('another podLink is for new pods; the bridge goes with its last pod, and comes back', async (t) => {
  choose('routed');
  await restartAgents();
  await runPod('erin');
  await everyPairAnswers(t, 'bridged and routed pods of one node');
  for (const name of ['alice', 'erin']) await lab().control.checkPod('default', name);
  t.true(await hasBridge());
  for (const name of ['alice', 'carol', 'dave']) await lab().control.removePod('default', name);
  t.false(await hasBridge(), 'nobody asks for it any more');
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

/** Packets that were dropped because of their source: by rp_filter, which IPv6 does not have, or by a rule. */
async function sourceDrops({ family }: FamilyFacts): Promise<number> {
  if (family === 'ipv4')
    return Number(
      /(\d+)/.exec(await shellIn(node(), "nstat -asz TcpExtIPReversePathFilter | awk '/Reverse/ {print $2}'"))?.[1],
    );
  const rules = await outputIn(node(), 'ip6tables-save', '-c', '-t', 'raw');
  return Number(/^\[(\d+):\d+\] -A TULLE-PREROUTING .* rpfilter .*-j DROP$/m.exec(rules)?.[1]);
}

/** Name of the host side of a pod's link on node-1. */
async function hostLinkOf(name: string): Promise<string> {
  const links = await outputIn(node(), 'ip', '-o', 'link');
  const link = new RegExp(`^\\d+: (tl[0-9a-f]{12})@.*alias tulle:pod:default/${name}\\b`, 'm').exec(links)?.[1];
  if (link) return link;
  throw new Error(`pod ${name} has no link: ${links}`);
}

/** Everything of the bridge and of one pod's link, without what a device made anew has otherwise. */
async function stateOf(link: string): Promise<string> {
  const questions = [
    ...[link, BRIDGE_NAME].flatMap((each) => [`ip -o link show ${each}`, `ip -o address show dev ${each}`]),
    `ip neighbour show dev ${link} nud permanent`,
    'ip -4 route',
    'ip -6 route',
    `sysctl net.ipv4.conf.${link}.rp_filter`,
  ];
  const text = await outputIn(node(), 'sh', '-c', questions.join('; '));
  const lines = text.split('\n').map((line) => line.replace(/^\d+: /, '').trim());
  return lines.sort().join('\n');
}
