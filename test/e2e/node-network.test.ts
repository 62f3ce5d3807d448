/** The node's own network, beside the tunnel: what leaves the cluster, what ends here, and hosts that are not as they should be. */
import test, { type ExecutionContext } from 'ava';
import {
  addressAt,
  type Cidr,
  type Family,
  type FamilyFacts,
  families,
  familyOf,
  type IpAddress,
  parseIp,
} from '../../agent/model/ip.ts';
import { setName } from '../../agent/model/kernel-names.ts';
import { macOf } from '../../agent/model/mac.ts';
import { nodeIpOf } from '../../agent/plan/underlay.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { bridgeName } from '../../lab/fabric.ts';
import { until } from '../../lab/until.ts';
import { TULLE } from '../../lab/up.ts';
import { cni, createPod } from '../support/cni-calls.ts';
import { type Output, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import { capture } from '../support/netns.ts';
import {
  createGuest,
  fabricPlace,
  nodePlace,
  type Place,
  pings,
  podPlace,
  runIn,
  sendDatagram,
  shellIn,
  spawnerIn,
} from '../support/places.ts';
import { recreateNode } from '../support/recreate-node.ts';
import { advertisementFrame } from '../support/tunnel-frame.ts';

const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };

/** Hosts of the fabric that are no nodes; the second is told to see pod addresses. */
const OUTSIDE = { ipv4: '172.30.0.9', ipv6: 'fd30::9' } as const;
const TRUSTED = { ipv4: '172.30.0.8', ipv6: 'fd30::8' } as const;
const PREFIX = { ipv4: 24, ipv6: 64 } as const;
const MTU = 1450;
const UNDERLAY_MTU = 1500;
/** IP header and ICMP header. */
const PING_OVERHEAD = { ipv4: 28, ipv6: 48 } as const;

const lab = useLab({ nodes: 2, agentArgs: ['--non-masquerade-cidrs', `${TRUSTED.ipv4}/32,${TRUSTED.ipv6}/128`] });

interface Scene {
  readonly node1: Place;
  readonly node2: Place;
  readonly near: Place;
  readonly far: Place;
  readonly address: { readonly [P in 'node1' | 'node2' | 'near' | 'far']: Readonly<Record<Family, string>> };
  readonly cidr: Readonly<Record<Family, Cidr>>;
}

let scene: Promise<Scene> | undefined;
const sceneOf = (): Promise<Scene> => {
  scene ??= setScene();
  return scene;
};

test.serial('what leaves the cluster has the address of the node, and nothing else has', async (t) => {
  const { near, far, node1, node2, address } = await sceneOf();
  const [outside, trusted] = [await createHost(t, 'outside', OUTSIDE), await createHost(t, 'trusted', TRUSTED)];
  for (const { family } of families) {
    const seenAs = async (from: Place, at: Place, to: string): Promise<string | undefined> => sourceOf(t, from, at, to);
    t.is(await seenAs(near, outside, OUTSIDE[family]), address.node1[family], `${family}: pod to a host outside`);
    t.is(await seenAs(near, trusted, TRUSTED[family]), address.near[family], `${family}: pod to an excepted host`);
    t.is(await seenAs(near, far, address.far[family]), address.near[family], `${family}: pod to pod`);
    t.is(await seenAs(near, node2, address.node2[family]), address.node1[family], `${family}: pod to another node`);
    t.is(await seenAs(near, node1, address.node1[family]), address.near[family], `${family}: pod to its own node`);
    t.is(
      await seenAs(node2, near, address.near[family]),
      nodeInPods(family, 'node-2'),
      `${family}: node to remote pod`,
    );
  }
});

test.serial('groups are not masqueraded', async (t) => {
  const { node1 } = await sceneOf();
  for (const facts of families) {
    const group = facts.family === 'ipv4' ? '239.1.2.3' : 'ff0e::1:3';
    const { exitCode, stderr } = await runIn(node1, 'ipset', 'test', setName('direct', facts), group);
    t.is(exitCode, 0, stderr);
  }
});

test.serial('pods talk where the policy of FORWARD is DROP', async (t) => {
  const { near, far, node1, node2, address } = await sceneOf();
  await createHost(t, 'outside', OUTSIDE);
  const setPolicy = (policy: string) =>
    Promise.all(
      [node1, node2].map((node) => shellIn(node, `iptables -P FORWARD ${policy}; ip6tables -P FORWARD ${policy}`)),
    );
  t.teardown(() => setPolicy('ACCEPT'));
  await setPolicy('DROP');
  for (const { family } of families) {
    t.true(await pings(near, address.far[family]), family);
    t.true(await pings(far, address.near[family]), family);
    t.true(await pings(near, OUTSIDE[family]), `${family}: out of the cluster`);
  }
});

test.serial('what is for an unused pod address ends at the node that has it', async (t) => {
  const { near, far, node1, address, cidr } = await sceneOf();
  for (const { family } of families) {
    const unused = addressAt(cidr[family], 200);
    const underlay = await capture(spawnerIn(t, node1), 'eth0', `host ${unused} or udp port 8472`);
    const fromNear = await ping(near, unused, '-W', '5');
    t.regex(fromNear.stdout, /[Uu]nreachable|No route/, family);
    // From the other node it comes through the tunnel once, and its answer goes back.
    const fromFar = await ping(far, unused, '-W', '5');
    t.regex(fromFar.stdout, /[Uu]nreachable|No route/, family);
    t.notRegex(fromNear.stdout + fromFar.stdout, /exceeded/);
    t.true(await pings(far, address.near[family]));
    const isFence = (line: string) => line.includes(`${address.near[family]} > ${address.far[family]}`);
    await until(() => underlay.lines.some(isFence), { describe: 'the last answer on the wire', ...WAIT });
    const requests = underlay.lines.filter(
      (line) => / echo request/.test(line) && line.includes(`> ${unused}: `) && !line.includes('unreachable'),
    );
    t.is(requests.length, 1, underlay.lines.join('\n'));
    await underlay.stop();
  }
});

const unfragmented = (from: Place, to: string, size: number) => ping(from, to, '-M', 'do', '-s', `${size}`, '-W', '5');

test.serial('a packet of the MTU passes unfragmented, and a larger one is told how large it may be', async (t) => {
  const { near, node1, node2, address, cidr } = await sceneOf();
  const trusted = await createHost(t, 'trusted', TRUSTED);
  for (const { family } of families) {
    await shellIn(trusted, `ip route add ${cidr[family]} via ${address.node1[family]}`);
    for (const [name, from, to, mtu] of [
      ['pod to remote pod', near, address.far[family], MTU],
      ['pod to remote node', near, address.node2[family], MTU],
      ['node to remote pod', node2, address.near[family], MTU],
      ['node to its own pod', node1, address.near[family], UNDERLAY_MTU],
      ['outside to pod', trusted, address.near[family], UNDERLAY_MTU],
    ] as const) {
      const fits = mtu - PING_OVERHEAD[family];
      const whole = await unfragmented(from, to, fits);
      t.is(whole.exitCode, 0, `${family}: ${name}: ${whole.stdout}`);
      const larger = await unfragmented(from, to, fits + 1);
      t.not(larger.exitCode, 0, `${family}: ${name}`);
      t.regex(larger.stdout + larger.stderr, new RegExp(`mtu[ =:]+${mtu}`, 'i'), `${family}: ${name}`);
    }
  }
});

test.serial(
  'a pod that sends as much as its link takes into the tunnel is told by its node how much it may',
  async (t) => {
    const { near, address } = await sceneOf();
    for (const { family, digit } of families) {
      const gateway = { ipv4: '169.254.1.1', ipv6: 'fe80::1' }[family];
      const route = `${address.far[family]} via ${gateway} dev eth0 onlink`;
      // As a route of the pod's own, or a program that knows the link only.
      await shellIn(near, `ip -${digit} route add ${route}`);
      const larger = await unfragmented(near, address.far[family], UNDERLAY_MTU - PING_OVERHEAD[family]);
      t.not(larger.exitCode, 0, family);
      t.regex(larger.stdout, new RegExp(`^From \\S+ .*(Frag needed|Packet too big).*mtu ?= ?${MTU}`, 'm'), family);
      t.is((await unfragmented(near, address.far[family], MTU - PING_OVERHEAD[family])).exitCode, 0, 'as it was told');
      await shellIn(near, `ip -${digit} route del ${route}`);
    }
  },
);

test.serial('a node that lives by router advertisements keeps its default route', async (t) => {
  const { node2 } = await sceneOf();
  const advertise = await createRouter(t, fabricPlace(await lab().control.status()));
  const fixed = (await shellIn(node2, 'ip -6 route show default')).replace(/ pref .*/, '').trim();
  await lab().control.stopAgent('node-2');
  // As after a boot: nothing has switched forwarding on, and nothing remembers that.
  await shellIn(
    node2,
    `sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1
     rm -f /run/tulle/sysctl.json; ip -6 route del default`,
  );
  await advertise(1800);
  const learned = async () => (await shellIn(node2, 'ip -6 route show default proto ra')).includes('via fe80::99 ');
  await until(learned, { describe: 'a default route by advertisement', ...WAIT });
  const routes = await capturedRoutes(t, node2);

  await lab().control.startAgent('node-2');
  const forwards = async () => (await shellIn(node2, 'sysctl -n net.ipv6.conf.all.forwarding')).trim() === '1';
  await until(forwards, { describe: 'IPv6 forwarding', ...WAIT });
  await untilSettled(lab().node('node-2'));
  t.true(await learned(), 'after forwarding was switched on');
  t.deepEqual(
    (await routes()).filter((line) => /Deleted default/.test(line)),
    [],
    'it was never away',
  );
  await shellIn(node2, 'ip -6 route del default');
  await advertise(1800);
  await until(learned, { describe: 'a default route by advertisement while forwarding', ...WAIT });
  await advertise(0);
  await until(async () => !(await learned()), { describe: 'the end of the default route', ...WAIT });
  await shellIn(node2, `ip -6 route add ${fixed}`);
});

test.serial('without a podCIDR nobody gets an address, until there is one', async (t) => {
  const all = { apiVersion: 'v1', kind: 'Node', metadata: { name: 'hog' }, spec: { podCIDRs: ['10.84.0.0/16'] } };
  await lab().control.callApi({ method: 'POST', path: apiPath.nodes, object: all });
  await recreateNode(lab(), 'node-2');
  await refuses(t, /Node node-2 has no podCIDR: .*--allocate-node-cidrs/);
  await lab().control.callApi({ method: 'DELETE', path: apiPath.node('hog') });
  await attachesAgain(t);
});

test.serial('a podCIDR that an older Node has is not used', async (t) => {
  const { cidr } = await sceneOf();
  await recreateNode(lab(), 'node-2', Object.values(cidr));
  await refuses(t, /podCIDR 10\.84\.0\.0\/24 of Node node-2 overlaps 10\.84\.0\.0\/24 of the older Node node-1/);
  const { near, address } = await sceneOf();
  t.true(await pings(near, address.node2.ipv4), 'the older one goes on');
  await recreateNode(lab(), 'node-2');
  await attachesAgain(t);
});

test.serial('where IPv6 is off, IPv4 goes on and the status says so', async (t) => {
  const { node2, near } = await sceneOf();
  const pod = await lab().runPod('off-and-on', 'node-2');
  const [ipv4 = '', ipv6 = ''] = pod.addresses;
  const host = await shellIn(
    node2,
    `ip -o -6 address show dev eth0 scope global | sed 's/.*inet6 \\([^ ]*\\) .*/ip address replace \\1 dev eth0 nodad/'
     ip -6 route show default | sed 's/ pref .*//; s/^/ip -6 route replace /'`,
  );
  await shellIn(node2, 'sysctl -qw net.ipv6.conf.all.disable_ipv6=1');
  await untilStatus('node-2', /Node node-2 has the IPv6 podCIDR \S+ but IPv6 is off on this host.*disable_ipv6/);
  t.true(await pings(near, ipv4));
  await shellIn(node2, `sysctl -qw net.ipv6.conf.all.disable_ipv6=0\n${host}`);
  await until(async () => !/IPv6 is off/.test((await status('node-2')).stdout), { describe: 'IPv6 again', ...WAIT });
  await until(() => pings(near, ipv6), { describe: 'IPv6 to the pod again', ...WAIT });
  await untilSettled(lab().node('node-2'));
});

test.serial('a second agent in the node ends with a clear message', async (t) => {
  const { node2 } = await sceneOf();
  const argv = [
    'agent',
    '--node-name',
    'node-2',
    '--kubeconfig',
    '/run/lab-node/kubeconfig',
    '--run-dir',
    '/run/second',
  ];
  const { exitCode, stderr, stdout } = await runIn(node2, TULLE, ...argv);
  t.is(exitCode, 1);
  t.regex(stderr + stdout, /Tulle agent runs in this network namespace already: stop it first/);
  await untilSettled(lab().node('node-2'));
});

test.serial("a link of somebody else's with the name of the tunnel device is left alone, and waited for", async (t) => {
  const { node2 } = await sceneOf();
  await lab().control.stopAgent('node-2');
  await shellIn(node2, 'ip link del tulle.84; ip link add tulle.84 type bridge');
  await lab().control.startAgent('node-2');
  await untilStatus('node-2', /link tulle\.84: .*(not Tulle's|is not a VXLAN)/i);
  t.regex(await shellIn(node2, 'ip -d link show tulle.84'), /bridge forward_delay/);
  await shellIn(node2, 'ip link del tulle.84');
  await attachesAgain(t);
});

async function setScene(): Promise<Scene> {
  const [near, far] = [await lab().runPod('near', 'node-1'), await lab().runPod('far', 'node-2')];
  const perFamily = <T extends string>(values: readonly T[]) =>
    Object.fromEntries(values.map((value) => [familyOf(value as unknown as Cidr), value])) as Record<Family, T>;
  const [node1, node2] = [lab().node('node-1'), lab().node('node-2')];
  return {
    node1: nodePlace(node1),
    node2: nodePlace(node2),
    near: podPlace(lab(), near),
    far: podPlace(lab(), far),
    address: {
      node1: perFamily(node1.addresses),
      node2: perFamily(node2.addresses),
      near: perFamily(near.addresses),
      far: perFamily(far.addresses),
    },
    cidr: perFamily(node1.podCidrs as readonly Cidr[]),
  };
}

async function createHost(t: ExecutionContext, name: string, ips: Readonly<Record<Family, string>>): Promise<Place> {
  const { supervisorPid } = await lab().control.status();
  return createGuest(t, {
    name,
    beside: supervisorPid,
    bridge: bridgeName(0),
    addresses: families.map(({ family }: FamilyFacts) => `${ips[family]}/${PREFIX[family]}`),
    gateways: [],
  });
}

const ping = (from: Place, to: string, ...options: readonly string[]): Promise<Output> =>
  runIn(from, 'ping', '-n', '-c', '1', ...options, to);

/** The source address of an echo request, seen where it arrives. It need not be answered. */
async function sourceOf(t: ExecutionContext, from: Place, at: Place, to: string): Promise<string | undefined> {
  const seen = await capture(spawnerIn(t, at), 'any', `host ${to} and (icmp or icmp6)`);
  await runIn(from, 'ping', '-n', '-q', '-c', '1', '-W', '1', to);
  const source = () =>
    seen.lines.map((line) => new RegExp(`(\\S+) > ${to}: .*echo request`).exec(line)?.[1]).find(Boolean);
  const found = await until(source, { describe: `an echo request to ${to}`, ...WAIT });
  await seen.stop();
  return found;
}

const nodeInPods = (family: Family, node: string): string =>
  nodeIpOf(
    lab()
      .node(node)
      .podCidrs.find((cidr) => familyOf(cidr as Cidr) === family) as Cidr,
  ) as string;

/**
 * A router on the nodes' wire, by whose lifetimes nodes are advertised to. Its packets come out of a device of the fabric's
 * own, which takes in whole frames over UDP: no raw socket is needed.
 */
async function createRouter(t: ExecutionContext, fabric: Place): Promise<(lifetimeSeconds: number) => Promise<void>> {
  const [vni, port] = [99, 9999];
  await shellIn(
    fabric,
    `ip link add router type vxlan id ${vni} dstport ${port} nolearning
     ip link set router master ${bridgeName(0)} up`,
  );
  t.teardown(() => runIn(fabric, 'ip', 'link', 'delete', 'router'));
  const [mac, source] = [macOf('router'), parseIp('fe80::99') as IpAddress];
  return (lifetimeSeconds) => {
    const payload = advertisementFrame({ vni, mac, source, lifetimeSeconds }).toString('base64');
    return sendDatagram(fabric, { to: '127.0.0.1', port, payload });
  };
}

/** Notices of IPv6 routes from now on. */
async function capturedRoutes(t: ExecutionContext, place: Place): Promise<() => Promise<readonly string[]>> {
  const lines: string[] = [];
  const monitor = spawnerIn(t, place).spawn('ip', '-6', '-o', 'monitor', 'route');
  void (async () => {
    for await (const line of monitor.iterable()) lines.push(String(line));
  })();
  const fence = async () => {
    const before = lines.length;
    await shellIn(
      place,
      'ip -6 route add unreachable 2001:db8:ffff::/64; ip -6 route del unreachable 2001:db8:ffff::/64',
    );
    return lines.slice(before).some((line) => line.includes('2001:db8:ffff::'));
  };
  await until(fence, { describe: 'ip monitor to listen', ...WAIT });
  return async () => {
    await until(fence, { describe: 'ip monitor to have caught up', ...WAIT });
    return lines;
  };
}

const status = (node: string): Promise<Output> => tulle(lab().node(node), 'status');

async function untilStatus(node: string, text: RegExp): Promise<void> {
  let last = '';
  const says = async () => {
    const { stdout, stderr } = await status(node);
    last = stdout + stderr;
    return text.test(last);
  };
  await until(says, { describe: `the status of ${node} to say ${text}`, ...WAIT }).catch((cause: unknown) => {
    throw new Error(`${node} does not say ${text}:\n${last}`, { cause });
  });
}

/** node-2 says why, and ADD is answered with code 11 (try again later) and the same reason. */
async function refuses(t: ExecutionContext, reason: RegExp): Promise<void> {
  await untilStatus('node-2', reason);
  const { code, message, details } = await cni(await createPod(lab().node('node-2')), 'ADD');
  t.is(code, 11, message);
  t.regex(`${message} ${details}`, reason);
}

async function attachesAgain(t: ExecutionContext): Promise<void> {
  const { near } = await sceneOf();
  const pod = await createPod(lab().node('node-2'));
  const added = await until(
    async () => {
      const answer = await cni(pod, 'ADD');
      return answer.code === 0 && answer;
    },
    { describe: 'a pod to be attached', ...WAIT },
  );
  const ips = added.result['ips'] as readonly { readonly address: string }[];
  t.is(ips.length, 2);
  for (const { address } of ips)
    await until(() => pings(near, address.replace(/\/.*/, '')), { describe: `an answer from ${address}`, ...WAIT });
  await untilSettled(lab().node('node-2'));
}
