/** CHECK notices every single thing that is missing or altered, and nothing else. One row, one disturbance. */
import test, { type ExecutionContext } from 'ava';
import { inNode } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { type CniAnswer, cni, createPod, differences, readPod, type TestPod } from '../support/cni-calls.ts';
import { output, run, shIn, shInNetns, TIMEOUT_MS, useLab } from '../support/lab.ts';

const lab = useLab({ nodes: 1 }, attach);
const node = () => lab().node('node-1');

/** Names in a row's shell lines: the pod's addresses, the host's side of its link and both hardware addresses. */
interface Names {
  readonly A4: string;
  readonly A6: string;
  readonly LINK: string;
  readonly HOSTMAC: string;
  readonly PODMAC: string;
}

interface Attached {
  readonly pod: TestPod;
  readonly added: CniAnswer;
  readonly names: Names;
}

let attached: Attached;

async function attach(): Promise<void> {
  const pod = await createPod(node());
  const added = await cni(pod, 'ADD');
  if (added.code !== 0) throw new Error(added.stdout);
  const { interfaces, ips } = added.result as {
    interfaces: readonly { name: string; mac: string }[];
    ips: readonly { address: string }[];
  };
  const address = (digit: string) => ips.find((ip) => ip.address.includes(digit))?.address.split('/')[0] as string;
  const [host, end] = interfaces as [{ name: string; mac: string }, { mac: string }];
  attached = {
    pod,
    added,
    names: { A4: address('.'), A6: address(':'), LINK: host.name, HOSTMAC: host.mac, PODMAC: end.mac },
  };
}

const named = (text: string): string =>
  text.replace(/\b(A4|A6|LINK|HOSTMAC|PODMAC)\b/g, (name) => attached.names[name as keyof Names]);
const inPod = (line: string): readonly string[] => shInNetns(node(), attached.pod.netns, named(line));
const inHost = (line: string): readonly string[] => shIn(node(), named(line));
const check = () => cni(attached.pod, 'CHECK', { config: { prevResult: attached.added.result } });

async function isConnected(t: ExecutionContext, title: string): Promise<void> {
  for (const address of [attached.names.A4, attached.names.A6]) {
    const { exitCode } = await run(inNode(node(), ['ping', '-n', '-c', '1', '-W', '5', address]));
    t.is(exitCode, 0, `${title}: ${address}`);
  }
}

interface PodRow {
  readonly title: string;
  readonly disturb: string;
  /** The details of the answer, whole. */
  readonly details: string;
  readonly restore: string;
}

const GATEWAYS =
  'ip neighbour replace 169.254.1.1 lladdr HOSTMAC dev eth0 nud permanent; ip -6 neighbour replace fe80::1 lladdr HOSTMAC dev eth0 nud permanent';
const WHOLE_POD = `ip link set eth0 up; ip -6 address replace A6/128 dev eth0 nodad; ${GATEWAYS};
  ip route replace 169.254.1.1 dev eth0; ip route replace default via 169.254.1.1 dev eth0 onlink mtu 1450;
  ip -6 route replace default via fe80::1 dev eth0 onlink mtu 1450`;

const POD_ROWS: readonly PodRow[] = [
  {
    title: 'its IPv4 address',
    // The last address of an interface would take all routes along.
    disturb: 'ip address add 192.0.2.9/32 dev eth0; ip address del A4/32 dev eth0',
    details: 'pod: address A4/32 is missing on eth0',
    restore: 'ip address add A4/32 dev eth0; ip address del 192.0.2.9/32 dev eth0',
  },
  {
    title: 'the length of its IPv4 address',
    disturb: 'ip address add A4/31 dev eth0; ip address del A4/32 dev eth0',
    details: 'pod: address A4/32 is missing on eth0',
    restore: 'ip address add A4/32 dev eth0; ip address del A4/31 dev eth0',
  },
  {
    title: 'its IPv6 address',
    disturb: 'ip -6 address del A6/128 dev eth0',
    details: 'pod: address A6/128 is missing on eth0',
    restore: 'ip -6 address add A6/128 dev eth0 nodad',
  },
  {
    title: 'its IPv4 default route',
    disturb: 'ip route del default',
    details: 'pod: default route of ipv4 via 169.254.1.1 is missing',
    restore: 'ip route add default via 169.254.1.1 dev eth0 onlink mtu 1450',
  },
  {
    title: 'the next hop of its IPv4 default route',
    disturb: 'ip route replace default via 169.254.1.9 dev eth0 onlink',
    details: 'pod: default route of ipv4 via 169.254.1.1 is missing',
    restore: 'ip route replace default via 169.254.1.1 dev eth0 onlink mtu 1450',
  },
  {
    title: 'its IPv6 default route',
    disturb: 'ip -6 route del default',
    details: 'pod: default route of ipv6 via fe80::1 is missing',
    restore: 'ip -6 route add default via fe80::1 dev eth0 onlink mtu 1450',
  },
  {
    title: 'an IPv6 default route that refuses',
    disturb: 'ip -6 route del default; ip -6 route add unreachable default',
    details: 'pod: default route of ipv6 via fe80::1 is missing',
    restore: 'ip -6 route del unreachable default; ip -6 route add default via fe80::1 dev eth0 onlink mtu 1450',
  },
  {
    title: 'its route to the gateway',
    disturb: 'ip route del 169.254.1.1',
    details: 'pod: route to 169.254.1.1 is missing',
    restore: 'ip route add 169.254.1.1 dev eth0',
  },
  {
    title: 'its IPv4 gateway as a neighbour',
    disturb: 'ip neighbour del 169.254.1.1 dev eth0',
    details: 'pod: the permanent neighbour 169.254.1.1 is missing',
    restore: GATEWAYS,
  },
  {
    title: 'the hardware address of its IPv4 gateway',
    disturb: 'ip neighbour replace 169.254.1.1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent',
    details: 'pod: the neighbour 169.254.1.1 has the address 02:00:00:00:00:09, not HOSTMAC',
    restore: GATEWAYS,
  },
  {
    title: 'the permanence of its IPv4 gateway',
    disturb: 'ip neighbour replace 169.254.1.1 lladdr HOSTMAC dev eth0 nud stale',
    details: 'pod: the permanent neighbour 169.254.1.1 is missing',
    restore: GATEWAYS,
  },
  {
    title: 'its IPv6 gateway as a neighbour',
    disturb: 'ip -6 neighbour del fe80::1 dev eth0',
    details: 'pod: the permanent neighbour fe80::1 is missing',
    restore: GATEWAYS,
  },
  {
    title: 'the hardware address of its IPv6 gateway',
    disturb: 'ip -6 neighbour replace fe80::1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent',
    details: 'pod: the neighbour fe80::1 has the address 02:00:00:00:00:09, not HOSTMAC',
    restore: GATEWAYS,
  },
  {
    title: 'the MTU of its interface',
    disturb: 'ip link set eth0 mtu 1460',
    details: 'pod: the MTU of eth0 is 1460 bytes, not 1500',
    restore: 'ip link set eth0 mtu 1500',
  },
  {
    title: 'the MTU of its IPv4 default route',
    disturb: 'ip route change default via 169.254.1.1 dev eth0 onlink',
    details: "pod: the MTU of default route of ipv4 via 169.254.1.1 is the link's, not 1450 bytes",
    restore: 'ip route change default via 169.254.1.1 dev eth0 onlink mtu 1450',
  },
  {
    title: 'the MTU of its IPv6 default route',
    disturb: 'ip -6 route change default via fe80::1 dev eth0 onlink mtu 1400',
    details: 'pod: the MTU of default route of ipv6 via fe80::1 is 1400 bytes, not 1450 bytes',
    restore: 'ip -6 route change default via fe80::1 dev eth0 onlink mtu 1450',
  },
  {
    title: 'its refusal of router advertisements',
    disturb: 'echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra',
    details: 'pod: sysctl net/ipv6/conf/eth0/accept_ra is 1, not 0',
    restore: 'echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra',
  },
  {
    title: 'its loopback interface',
    disturb: 'ip link set lo down',
    details: 'pod: interface lo is down',
    restore: 'ip link set lo up',
  },
];

for (const { title, disturb, details, restore } of POD_ROWS) {
  test.serial(`in the pod: ${title}`, async (t) => {
    await output(inPod(disturb));
    const { code, details: found } = await check();
    t.is(code, 100);
    t.is(found, named(details));
    await output(inPod(restore));
    t.is((await check()).details, '', 'after the repair');
  });
}

/** These take other things along: only their own sentence is asked for. */
const WHOLE_ROWS: readonly PodRow[] = [
  {
    title: 'its interface down',
    disturb: 'ip link set eth0 down',
    details: 'pod: interface eth0 is down',
    restore: '',
  },
  {
    title: 'the hardware address of its interface',
    disturb: 'ip link set eth0 address 02:00:00:00:00:09',
    details: 'pod: the hardware address of eth0 is 02:00:00:00:00:09, not PODMAC',
    restore: 'ip link set eth0 address PODMAC; ',
  },
  {
    title: 'the name of its interface',
    disturb: 'ip link set eth0 down; ip link set eth0 name eth9',
    details: 'pod: interface eth0 is missing',
    restore: 'ip link set eth9 name eth0; ',
  },
];

for (const { title, disturb, details, restore } of WHOLE_ROWS) {
  test.serial(`in the pod, with all that hangs on it: ${title}`, async (t) => {
    await output(inPod(disturb));
    const { code, details: found } = await check();
    t.is(code, 100);
    t.true(found.split('; ').includes(named(details)), found);
    await output(inPod(`${restore}${WHOLE_POD}`));
    t.is((await check()).details, '', 'after the repair');
    await isConnected(t, title);
  });
}

interface HostRow {
  readonly title: string;
  readonly disturb: string;
  /** In the details, if the agent has not repaired it before it was asked. */
  readonly details: RegExp;
  /** Succeeds when the thing is as it should be. */
  readonly probe: string;
  /** For what the agent does not repair by itself in the time of a test. */
  readonly restore?: string;
  /** Nobody can have repaired it before CHECK looked: the agent hears nothing of it. */
  readonly unheard?: true;
}

const HOST_ROWS: readonly HostRow[] = [
  {
    title: 'the IPv4 route',
    disturb: 'ip route del A4 dev LINK',
    details: /^route A4\/32 metric 0 is missing/,
    probe: 'ip route show A4 | grep "dev LINK proto 84"',
  },
  {
    title: 'the IPv6 route',
    disturb: 'ip -6 route del A6 dev LINK',
    details: /^route A6\/128 metric 1024 is missing/,
    probe: 'ip -6 route show A6 | grep "dev LINK proto 84"',
  },
  {
    title: 'the link of the IPv4 route',
    disturb: 'ip route replace A4 dev lo proto 84',
    details: /^route A4\/32 metric 0 is altered/,
    probe: 'ip route show A4 | grep "dev LINK proto 84"',
  },
  {
    title: 'the IPv4 neighbour',
    disturb: 'ip neighbour del A4 dev LINK',
    details: /^neighbour LINK A4 is missing/,
    probe: 'ip neighbour show A4 dev LINK nud permanent | grep PODMAC',
  },
  {
    title: 'the IPv6 neighbour',
    disturb: 'ip -6 neighbour del A6 dev LINK',
    details: /^neighbour LINK A6 is missing/,
    probe: 'ip -6 neighbour show A6 dev LINK nud permanent | grep PODMAC',
  },
  {
    title: 'the hardware address of the IPv4 neighbour',
    disturb: 'ip neighbour replace A4 lladdr 02:00:00:00:00:09 dev LINK nud permanent',
    details: /^neighbour LINK A4 is altered/,
    probe: 'ip neighbour show A4 dev LINK nud permanent | grep PODMAC',
  },
  {
    title: 'the link down',
    disturb: 'ip link set LINK down',
    details: /host: interface LINK is down/,
    probe: 'ip link show LINK up | grep state.UP',
  },
  {
    title: 'the MTU of the link',
    disturb: 'ip link set LINK mtu 1400',
    details: /host: the MTU of LINK is 1400 bytes, not 1500/,
    probe: 'ip link show LINK | grep "mtu 1500"',
  },
  {
    title: 'the hardware address of the link',
    disturb: 'ip link set LINK address 02:00:00:00:00:09',
    details: /host: the hardware address of LINK is 02:00:00:00:00:09, not HOSTMAC/,
    probe: 'ip link show LINK | grep HOSTMAC',
  },
  {
    title: 'the link-local address of the link',
    disturb: 'ip -6 address del fe80::1/64 dev LINK',
    details: /host: address fe80::1\/64 is missing on LINK/,
    probe: 'ip -6 address show dev LINK | grep fe80::1/64',
    restore: 'ip -6 address replace fe80::1/64 dev LINK nodad',
  },
  {
    title: 'the strict reverse path of the link',
    disturb: 'echo 0 >/proc/sys/net/ipv4/conf/LINK/rp_filter',
    details: /host: interface LINK has rp_filter 0/,
    probe: 'grep 1 /proc/sys/net/ipv4/conf/LINK/rp_filter',
  },
  {
    title: 'its place in the IPv4 set of the gate',
    disturb: 'ipset del tulle-ready-4 A4',
    details: /^member tulle-ready-4 A4\/32 is missing$/,
    probe: 'ipset test tulle-ready-4 A4',
    restore: 'ipset add tulle-ready-4 A4',
    unheard: true,
  },
  {
    title: 'its place in the IPv6 set of the gate',
    disturb: 'ipset del tulle-ready-6 A6',
    details: /^member tulle-ready-6 A6\/128 is missing$/,
    probe: 'ipset test tulle-ready-6 A6',
    restore: 'ipset add tulle-ready-6 A6',
    unheard: true,
  },
  {
    title: 'a rule of the IPv4 gate',
    disturb:
      'iptables-save -t mangle >/run/mangle; iptables -t mangle -S TULLE-FORWARD >/run/gate; iptables -t mangle -D TULLE-FORWARD 2',
    details: /^chain-part ipv4 mangle TULLE-FORWARD 90-gate is altered$/,
    probe: 'iptables -t mangle -S TULLE-FORWARD | cmp - /run/gate',
    restore: 'iptables-restore </run/mangle',
    unheard: true,
  },
  {
    title: 'a rule of the IPv6 gate',
    disturb:
      'ip6tables-save -t mangle >/run/mangle; ip6tables -t mangle -S TULLE-FORWARD >/run/gate; ip6tables -t mangle -D TULLE-FORWARD 1',
    details: /^chain-part ipv6 mangle TULLE-FORWARD 90-gate is altered$/,
    probe: 'ip6tables -t mangle -S TULLE-FORWARD | cmp - /run/gate',
    restore: 'ip6tables-restore </run/mangle',
    unheard: true,
  },
];

for (const { title, disturb, details, probe, restore, unheard } of HOST_ROWS) {
  test.serial(`in the node: ${title}`, async (t) => {
    await output(inHost(disturb));
    const answer = await check();
    if (answer.code === 0) await t.notThrowsAsync(output(inHost(probe)), 'CHECK is content');
    else t.regex(answer.details, new RegExp(named(details.source)));
    if (unheard) t.is(answer.code, 100);
    if (restore !== undefined) await output(inHost(restore));
    t.log(answer.code === 0 ? 'was repaired before CHECK looked' : answer.details);
    const isWhole = async () => (await check()).code === 0 && (await run(inHost(probe))).exitCode === 0;
    await until(isWhole, { describe: `${title} to be as before`, deadlineMs: TIMEOUT_MS, intervalMs: 20 });
    await isConnected(t, title);
  });
}

test.serial('what the pod adds for itself is no fault, and no concern of the agent', async (t) => {
  await output(
    inPod(`ip address add 192.0.2.9/24 dev eth0; ip -6 address add 2001:db8::9/64 dev eth0 nodad
      ip route add 198.51.100.0/24 via 169.254.1.1 dev eth0 onlink; ip -6 route add 2001:db8:1::/48 via fe80::1 dev eth0
      ip route add default via 169.254.1.1 dev eth0 onlink metric 50; ip route add unreachable 203.0.113.0/24
      ip route add default dev lo table 100; ip rule add from 192.0.2.9 table 100
      ip neighbour add 192.0.2.1 lladdr 02:00:00:00:00:07 dev eth0 nud permanent
      ip link add name extra type bridge; ip link set extra up; ip address add 10.99.0.1/24 dev extra
      echo 1 >/proc/sys/net/ipv4/ip_forward`),
  );
  const own = await readPod(attached.pod);
  const { code, stdout } = await check();
  t.deepEqual([code, stdout], [0, '']);
  await isConnected(t, 'with things of its own');
  t.deepEqual(differences(own, await readPod(attached.pod)), []);
});

test.serial('a result that is not what ADD answered, and a container that never was', async (t) => {
  const { pod, added, names } = attached;
  const ips = (added.result['ips'] as readonly { readonly address: string }[]).filter(
    ({ address }) => !address.includes(names.A4),
  );
  const partial = await cni(pod, 'CHECK', { config: { prevResult: { ...added.result, ips } } });
  t.is(partial.code, 100);
  t.regex(partial.details, new RegExp(`prevResult has no ${names.A4}`));
  const none = await cni(pod, 'CHECK');
  t.is(none.code, 7);
  t.regex(none.message, /prevResult/);
  const unknown = { env: { CNI_CONTAINERID: 'unknown' }, config: { prevResult: added.result } };
  t.is((await cni(pod, 'CHECK', unknown)).code, 3);
  t.is((await cni({ ...pod, ifName: 'eth1' }, 'CHECK', { config: { prevResult: added.result } })).code, 3);
});
