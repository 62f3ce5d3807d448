/** CHECK against a real pod: each single thing that is missing or altered is said in words, and nothing else. */
import { closeSync, openSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { openNetlink } from '../../agent/kernel/netlink/open.ts';
import { identifyNetns } from '../../agent/kernel/netns/netns.ts';
import { type IpAddress, parseIp } from '../../agent/model/ip.ts';
import type { PodLink } from '../../agent/model/items.ts';
import { macOf } from '../../agent/model/mac.ts';
import { create, update } from '../support/netlink-host.ts';
import { createNetns } from '../support/netns.ts';

const HOST = 'tl0123456789ab';
const hostMac = macOf('host');
const podMac = macOf('pod');

async function openPod(t: ExecutionContext) {
  const [host, pod] = [await createNetns(t, 'host'), await createNetns(t, 'pod')];
  const netnsFd = openSync(host.path, 'r');
  const netlink = openNetlink({ netnsFd });
  t.teardown(async () => {
    await netlink.close();
    closeSync(netnsFd);
  });
  await pod.run('ip', 'link', 'set', 'lo', 'down');
  const value: PodLink = {
    name: HOST,
    alias: 'tulle:pod:default/web',
    hostMac,
    podMac,
    mtuBytes: 1500,
    routeMtuBytes: 1450,
    ifName: 'eth0',
    netns: { path: pod.path, ...identifyNetns(pod.path) },
    ips: ['10.244.0.2', 'fd00::2'].map((text) => parseIp(text) as IpAddress),
  };
  await create(netlink.drivers['pod-link'], value);
  return { host, pod, netlink, value, describe: () => netlink.describePodLink(value) };
}

/** A command, and what CHECK says after it. */
const ALTERATIONS: readonly (readonly ['host' | 'pod', command: string, differences: readonly string[]])[] = [
  ['host', `ip link delete ${HOST}`, [`host: interface ${HOST} is missing`, 'pod: interface eth0 is missing']],
  [
    'host',
    `ip link set ${HOST} alias nobody`,
    [`host: interface ${HOST} is not Tulle's: its alias is "nobody", not "tulle:pod:default/web mtu 1450"`],
  ],
  [
    'host',
    `ip link set ${HOST} alias tulle:pod:default/other`,
    [`host: the alias of ${HOST} is "tulle:pod:default/other", not "tulle:pod:default/web mtu 1450"`],
  ],
  [
    'host',
    `ip link set ${HOST} address 02:00:00:00:00:09`,
    [`host: the hardware address of ${HOST} is 02:00:00:00:00:09, not ${hostMac}`],
  ],
  ['host', `ip link set ${HOST} mtu 1300`, [`host: the MTU of ${HOST} is 1300 bytes, not 1500`]],
  [
    'host',
    `ip link set ${HOST} down`,
    [`host: interface ${HOST} is down`, `host: address fe80::1/64 is missing on ${HOST}`],
  ],
  ['host', `ip address delete fe80::1/64 dev ${HOST}`, [`host: address fe80::1/64 is missing on ${HOST}`]],
  ['host', `sysctl -q net.ipv4.conf.${HOST}.rp_filter=2`, [`host: interface ${HOST} has rp_filter 2`]],
  ['host', `sysctl -q net.ipv4.conf.${HOST}.forwarding=0`, [`host: interface ${HOST} has forwarding 0`]],
  ['host', `sysctl -q net.ipv6.conf.${HOST}.accept_ra=1`, [`host: sysctl net/ipv6/conf/${HOST}/accept_ra is 1, not 0`]],
  [
    'host',
    `sysctl -q net.ipv6.conf.${HOST}.accept_redirects=1`,
    [`host: sysctl net/ipv6/conf/${HOST}/accept_redirects is 1, not 0`],
  ],
  ['pod', 'ip link set lo down', ['pod: interface lo is down']],
  [
    'pod',
    'ip link set eth0 mtu 1300',
    [
      'pod: the MTU of eth0 is 1300 bytes, not 1500',
      // An IPv6 route cannot say more than its link.
      'pod: the MTU of default route of ipv6 via fe80::1 is 1300 bytes, not 1450 bytes',
    ],
  ],
  [
    'pod',
    'ip route change default via 169.254.1.1 dev eth0 onlink',
    ["pod: the MTU of default route of ipv4 via 169.254.1.1 is the link's, not 1450 bytes"],
  ],
  [
    'pod',
    'ip -6 route change default via fe80::1 dev eth0 mtu 1280',
    ['pod: the MTU of default route of ipv6 via fe80::1 is 1280 bytes, not 1450 bytes'],
  ],
  [
    'pod',
    'ip link set eth0 address 02:00:00:00:00:09',
    [
      `pod: the hardware address of eth0 is 02:00:00:00:00:09, not ${podMac}`,
      'pod: the permanent neighbour 169.254.1.1 is missing',
      'pod: the permanent neighbour fe80::1 is missing',
    ],
  ],
  [
    'pod',
    'ip address delete 10.244.0.2/32 dev eth0',
    [
      'pod: address 10.244.0.2/32 is missing on eth0',
      // IPv4 ends on a link with its last address.
      'pod: the permanent neighbour 169.254.1.1 is missing',
      'pod: route to 169.254.1.1 is missing',
      'pod: default route of ipv4 via 169.254.1.1 is missing',
    ],
  ],
  ['pod', 'ip address delete fd00::2/128 dev eth0', ['pod: address fd00::2/128 is missing on eth0']],
  ['pod', 'ip neighbour delete 169.254.1.1 dev eth0', ['pod: the permanent neighbour 169.254.1.1 is missing']],
  ['pod', 'ip neighbour delete fe80::1 dev eth0', ['pod: the permanent neighbour fe80::1 is missing']],
  [
    'pod',
    'ip neighbour replace 169.254.1.1 lladdr 02:00:00:00:00:09 dev eth0',
    [`pod: the neighbour 169.254.1.1 has the address 02:00:00:00:00:09, not ${hostMac}`],
  ],
  [
    'pod',
    'ip neighbour replace fe80::1 lladdr 02:00:00:00:00:09 nud reachable dev eth0',
    ['pod: the permanent neighbour fe80::1 is missing'],
  ],
  ['pod', 'ip route delete 169.254.1.1', ['pod: route to 169.254.1.1 is missing']],
  ['pod', 'ip route delete default', ['pod: default route of ipv4 via 169.254.1.1 is missing']],
  [
    'pod',
    'ip route replace default via 10.9.9.9 dev eth0 onlink',
    ['pod: default route of ipv4 via 169.254.1.1 is missing'],
  ],
  ['pod', 'ip -6 route delete default', ['pod: default route of ipv6 via fe80::1 is missing']],
  ['pod', 'sysctl -q net.ipv6.conf.eth0.accept_ra=2', ['pod: sysctl net/ipv6/conf/eth0/accept_ra is 2, not 0']],
];

for (const [where, command, differences] of ALTERATIONS) {
  test(`describePodLink: ${where}: ${command}`, async (t) => {
    const { host, pod, describe } = await openPod(t);
    t.deepEqual(await describe(), []);
    const [file, ...args] = command.split(' ') as [string];
    await (where === 'host' ? host : pod).run(file, ...args);
    t.deepEqual(await describe(), differences);
  });
}

test('describePodLink: what a pod adds of its own is no difference', async (t) => {
  const { pod, describe } = await openPod(t);
  const additions = [
    'address add 10.99.0.1/24 dev eth0',
    'address add fd99::1/64 dev eth0',
    'route add default via 10.99.0.9 dev eth0 metric 50',
    'route add 10.98.0.0/16 via 169.254.1.1 dev eth0 onlink',
    'neighbour add 10.99.0.9 lladdr 02:00:00:00:00:09 dev eth0',
    'link add veth9 type veth peer name veth8',
  ];
  await pod.feed(additions.join('\n'), 'ip', '-batch', '-');
  t.deepEqual(await describe(), []);
});

test('pod link: another MTU of the routes reaches those that Tulle made, and no other', async (t) => {
  const { pod, netlink, value } = await openPod(t);
  const own = ['default via 169.254.1.9 dev eth0 onlink', 'default via 169.254.1.1 dev eth0 onlink metric 50 mtu 1300'];
  await pod.run('ip', 'route', 'delete', 'default');
  for (const route of own) await pod.run('ip', 'route', 'add', ...route.split(' '));
  const before = (await pod.run('ip', '-4', 'route')).stdout;
  await update(netlink.drivers['pod-link'], { ...value, routeMtuBytes: 1400 }, value);
  t.is((await pod.run('ip', '-4', 'route')).stdout, before);
  t.regex((await pod.run('ip', '-6', 'route', 'show', 'default')).stdout, /^default via fe80::1 .* mtu 1400 /);
});

test('describePodLink: an interface that the pod renamed is missing', async (t) => {
  const { pod, describe } = await openPod(t);
  await pod.feed('link set eth0 down\nlink set eth0 name eth9\nlink set eth9 up', 'ip', '-batch', '-');
  t.deepEqual(await describe(), ['pod: interface eth0 is missing']);
});

test('describePodLink: another namespace at the path is said', async (t) => {
  const { netlink, value } = await openPod(t);
  const other = await createNetns(t, 'other');
  const [difference = '', ...rest] = await netlink.describePodLink({
    ...value,
    netns: { ...value.netns, path: other.path },
  });
  t.regex(difference, /^pod: cannot open network namespace .*ESTALE .*another namespace has taken its place/);
  t.deepEqual(rest, []);
});

test('pod link: IPv4 and IPv6 answer at once', async (t) => {
  const { host, pod, value } = await openPod(t);
  const routes = [
    `route add 10.244.0.2 dev ${HOST}`,
    `neighbour add 10.244.0.2 lladdr ${podMac} dev ${HOST}`,
    `route add fd00::2 dev ${HOST}`,
    `neighbour add fd00::2 lladdr ${podMac} dev ${HOST}`,
    'address add 10.244.0.1/32 dev lo',
    'address add fd00::1/128 dev lo nodad',
  ];
  await host.feed(routes.join('\n'), 'ip', '-batch', '-');
  for (const ip of value.ips) await t.notThrowsAsync(host.run('ping', '-c', '1', '-W', '1', ip), `host to ${ip}`);
  for (const ip of ['10.244.0.1', 'fd00::1'])
    await t.notThrowsAsync(pod.run('ping', '-c', '1', '-W', '1', ip), `pod to ${ip}`);
});

test('pod link: a router advertisement of the pod configures nothing on the host', async (t) => {
  const { host } = await openPod(t);
  const { stdout } = await host.run('sysctl', '-n', `net.ipv6.conf.${HOST}.accept_ra`);
  t.is(stdout, '0');
});

test('pod link: without an IPv6 pod, the host side has no IPv6', async (t) => {
  const { host, netlink, value } = await openPod(t);
  const pod = await createNetns(t, 'pod4');
  const ipv4Only = {
    ...value,
    name: 'tlffffffffffff',
    ips: value.ips.slice(0, 1),
    netns: { path: pod.path, ...identifyNetns(pod.path) },
  };
  await create(netlink.drivers['pod-link'], ipv4Only);
  const { stdout } = await host.run('ip', '-6', 'address', 'show', 'dev', ipv4Only.name);
  t.is(stdout, '');
  t.deepEqual(await netlink.describePodLink(ipv4Only), []);
});
