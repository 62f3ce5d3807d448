/** What the drivers hear of a real kernel while somebody else changes it, and what they do when they miss something. */
import { execFileSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { HostWatch } from '../../agent/kernel/host.ts';
import { dumpLinks, Links } from '../../agent/kernel/netlink/links.ts';
import { NETLINK_PROTOCOL } from '../../agent/kernel/netlink/message.ts';
import { NetlinkMonitor } from '../../agent/kernel/netlink/monitor.ts';
import { type Netlink, openNetlink } from '../../agent/kernel/netlink/open.ts';
import { NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { identifyNetns } from '../../agent/kernel/netns/netns.ts';
import { type Cidr, type IpAddress, parseCidr, parseIp } from '../../agent/model/ip.ts';
import type { Kind, Objects, PodLink, Route, VxlanLink } from '../../agent/model/items.ts';
import { macOf } from '../../agent/model/mac.ts';
import type { Driver } from '../../agent/reconcile/types.ts';
import { create } from '../support/netlink-host.ts';
import { createNetns, type Netns, waitFor } from '../support/netns.ts';

const ip = (value: string) => parseIp(value) as IpAddress;
const cidr = (value: string) => parseCidr(value) as Cidr;

const vxlan: VxlanLink = {
  type: 'vxlan',
  name: 'tulle.84',
  alias: 'tulle:vxlan',
  mac: macOf('vtep/a'),
  mtuBytes: 1450,
  vni: 84,
  port: 8472,
  local: ip('192.0.2.1'),
  txChecksumOffload: true,
};
const peers = [
  { own: ip('10.244.0.1'), peer: ip('10.244.1.1'), destination: cidr('10.244.1.0/24'), metric: 0, bits: 32 },
  { own: ip('fd00::1'), peer: ip('fd00:1::1'), destination: cidr('fd00:1::/64'), metric: 1024, bits: 128 },
];
const routes = peers.map(({ own, peer, destination, metric }): Route => {
  return { destination, metric, type: 'unicast', link: vxlan.name, gateway: peer, onlink: true, source: own };
});

interface Heard {
  /** What the drivers believe, by key. */
  readonly known: Map<string, unknown>;
  readonly stale: string[];
}

async function openHost(
  t: ExecutionContext,
): Promise<{ host: Netns; netlink: Netlink; heard: Heard; netnsFd: number }> {
  const host = await createNetns(t, 'host');
  const netnsFd = openSync(host.path, 'r');
  const netlink = openNetlink({ netnsFd });
  const end = new AbortController();
  t.teardown(async () => {
    end.abort();
    await netlink.close();
    closeSync(netnsFd);
  });
  const heard: Heard = { known: new Map(), stale: [] };
  for (const driver of Object.values(netlink.drivers)) listen(driver as Driver<Kind>, heard, end.signal);
  return { host, netlink, heard, netnsFd };
}

function listen(driver: Driver<Kind>, { known, stale }: Heard, signal: AbortSignal): void {
  const notice = {
    found: (key: string, value: unknown) => (value === undefined ? known.delete(key) : known.set(key, value)),
    stale: (reason: string) => stale.push(`${driver.kind}: ${reason}`),
    freed: () => undefined,
  };
  driver.watch?.(notice as never, signal);
}

/** A device with a peer of either family: 11 objects. */
async function populate({ drivers }: Netlink): Promise<void> {
  await create(drivers.link, vxlan);
  await create(drivers.fdb, { link: vxlan.name, mac: macOf('vtep/b'), destination: ip('192.0.2.2') });
  for (const { own, peer, bits } of peers) {
    await create(drivers.address, { link: vxlan.name, ip: own, prefixLength: bits });
    await create(drivers.neighbour, { link: vxlan.name, ip: peer, mac: macOf('vtep/b') });
  }
  for (const route of routes) await create(drivers.route, route);
}

const OBJECTS = [
  'address tulle.84 10.244.0.1',
  'address tulle.84 fd00::1',
  `fdb tulle.84 ${macOf('vtep/b')}`,
  'link tulle.84',
  'neighbour tulle.84 10.244.1.1',
  'neighbour tulle.84 fd00:1::1',
  'route 10.244.1.0/24 metric 0',
  'route fd00:1::/64 metric 1024',
];

const knownKeys = ({ known }: Heard): string[] => [...known.keys()].sort();

/** Waits for what is said in the end: a step in between may be said too. */
async function hears(t: ExecutionContext, heard: Heard, keys: readonly string[]): Promise<void> {
  await waitFor(() => knownKeys(heard).join() === [...keys].sort().join(), {
    describe: keys.join(),
    timeoutMs: 5_000,
  }).catch(() => undefined);
  t.deepEqual(knownKeys(heard), [...keys].sort());
}

const without = (...gone: readonly string[]) => OBJECTS.filter((key) => !gone.some((part) => key.includes(part)));

const CHANGES: readonly (readonly [command: string, remaining: readonly string[]])[] = [
  ['ip route delete 10.244.1.0/24', without('route 10.244.1.0/24')],
  ['ip route delete fd00:1::/64', without('route fd00:1::/64')],
  ['ip neighbour delete 10.244.1.1 dev tulle.84', without('neighbour tulle.84 10.244.1.1')],
  ['ip neighbour delete fd00:1::1 dev tulle.84', without('neighbour tulle.84 fd00:1::1')],
  [
    'ip neighbour replace 10.244.1.1 lladdr 02:00:00:00:00:09 nud reachable dev tulle.84',
    without('neighbour tulle.84 10.244.1.1'),
  ],
  [`bridge fdb delete ${macOf('vtep/b')} dev tulle.84 self`, without('fdb')],
  ['ip link set tulle.84 alias nobody', without('link')],
  // IPv4 routes go without a word, and nothing of a route says that its link is down.
  ['ip link set tulle.84 down', without('address tulle.84 fd', 'neighbour', 'route')],
  ['ip link delete tulle.84', []],
  ['ip link set tulle.84 name other', []],
];

for (const [command, remaining] of CHANGES) {
  // A renamed device has to be down first.
  const steps = command.includes('name other') ? ['ip link set tulle.84 down', command] : [command];
  test(`monitor: ${command}`, async (t) => {
    const { host, netlink, heard } = await openHost(t);
    await populate(netlink);
    await hears(t, heard, OBJECTS);
    for (const step of steps) await host.run(...(step.split(' ') as [string]));
    if (command.includes('name other')) {
      await waitFor(() => !heard.known.has('link tulle.84'), { describe: 'the device is gone', timeoutMs: 5_000 });
      t.false(heard.known.has('link tulle.84'));
    } else await hears(t, heard, remaining);
  });
}

test('monitor: a changed object is told with its new value', async (t) => {
  const { host, netlink, heard } = await openHost(t);
  await populate(netlink);
  await hears(t, heard, OBJECTS);
  const isKnown = (key: string, fields: object) => async () => {
    const found = await netlink.drivers.link.list(AbortSignal.timeout(1_000));
    return (
      found.size === 1 &&
      Object.entries(fields).every(
        ([name, value]) => (heard.known.get(key) as Record<string, unknown> | undefined)?.[name] === value,
      )
    );
  };
  await host.run('ip', 'link', 'set', 'tulle.84', 'mtu', '1300');
  await waitFor(isKnown('link tulle.84', { mtuBytes: 1300 }), { describe: 'the MTU' });
  await host
    .run('ethtool', '-K', 'tulle.84', 'tx', 'off')
    .catch(() => netlink.ethtool.writeTxChecksum('tulle.84', false));
  await waitFor(isKnown('link tulle.84', { txChecksumOffload: false }), { describe: 'the offload' });
  await host.run('ip', 'route', 'replace', 'unreachable', '10.244.1.0/24', 'proto', '84');
  await waitFor(isKnown('route 10.244.1.0/24 metric 0', { type: 'unreachable' }), { describe: 'the route' });
  await host.run(
    'bridge',
    'fdb',
    'replace',
    macOf('vtep/b'),
    'dst',
    '192.0.2.7',
    'dev',
    'tulle.84',
    'self',
    'permanent',
  );
  await waitFor(isKnown(`fdb tulle.84 ${macOf('vtep/b')}`, { destination: '192.0.2.7' }), {
    describe: 'the fdb entry',
  });
  t.pass();
});

test('monitor: an fdb entry is told with its tunnel end, however often it is told', async (t) => {
  const { host, netlink, heard } = await openHost(t);
  const told: unknown[] = [];
  const notice = { found: (_: string, value: unknown) => told.push(value), stale: () => {}, freed: () => {} };
  netlink.drivers.fdb.watch?.(notice as never, AbortSignal.timeout(60_000));
  await populate(netlink);
  // What is told of a later change comes after all that is told of the entry.
  await host.run('ip', 'route', 'delete', '10.244.1.0/24');
  await hears(t, heard, without('route 10.244.1.0/24'));
  const written = { link: vxlan.name, mac: macOf('vtep/b'), destination: '192.0.2.2' };
  t.deepEqual(told[0], written);
  t.deepEqual(new Set(told.map((value) => JSON.stringify(value))), new Set([JSON.stringify(written)]));
});

test('monitor: an address that goes makes the routes that depend on it unknown', async (t) => {
  for (const { own, bits } of peers) {
    const { host, netlink, heard } = await openHost(t);
    await populate(netlink);
    await hears(t, heard, OBJECTS);
    await host.run('ip', 'address', 'delete', `${own}/${bits}`, 'dev', vxlan.name);
    const stale = `route: address ${own} was removed`;
    await waitFor(() => heard.stale.includes(stale), { describe: stale, timeoutMs: 5_000 });
    t.deepEqual(heard.stale, [stale]);
  }
});

test('monitor: IPv4 routes over a link of somebody else go with it', async (t) => {
  const { host, netlink, heard } = await openHost(t);
  await host.run('ip', 'link', 'add', 'up0', 'type', 'vxlan', 'id', '9', 'dstport', '4000');
  await host.run('ip', 'link', 'set', 'up0', 'up');
  for (const { destination, metric } of peers) {
    await create(netlink.drivers.route, { destination, metric, type: 'unicast', link: 'up0' });
  }
  await hears(t, heard, ['route 10.244.1.0/24 metric 0', 'route fd00:1::/64 metric 1024']);
  await host.run('ip', 'link', 'set', 'up0', 'down');
  await hears(t, heard, []);
});

test('monitor: settings of a host side that somebody weakens are told', async (t) => {
  const { host, netlink, heard } = await openHost(t);
  const pod = await createNetns(t, 'pod');
  const value: PodLink = {
    name: 'tl0123456789ab',
    alias: 'tulle:pod:default/web',
    hostMac: macOf('host'),
    podMac: macOf('pod'),
    mtuBytes: 1500,
    routeMtuBytes: 1450,
    ifName: 'eth0',
    netns: { path: pod.path, ...identifyNetns(pod.path) },
    ips: [ip('10.244.0.2')],
  };
  await create(netlink.drivers['pod-link'], value);
  const key = `pod-link ${value.name}`;
  const known = () => heard.known.get(key) as Objects['pod-link'];
  await waitFor(() => heard.known.has(key) && netlink.drivers['pod-link'].equal(value, known()), {
    describe: 'the pod link',
  });
  await host.run('sysctl', '-q', `net.ipv4.conf.${value.name}.rp_filter=2`);
  await waitFor(() => !netlink.drivers['pod-link'].equal(value, known()), { describe: 'the change of rp_filter' });
  await pod.run('ip', 'link', 'delete', 'eth0');
  await waitFor(() => !heard.known.has(key), { describe: 'the end of the pod link' });
  t.deepEqual(heard.stale, []);
});

test('monitor: an overrun makes everything unknown', async (t) => {
  const host = await createNetns(t, 'host');
  const netnsFd = openSync(host.path, 'r');
  const client = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd });
  const monitor = new NetlinkMonitor({ links: new Links(client), netnsFd, receiveBufferBytes: 4_096 });
  t.teardown(() => {
    monitor.close();
    client.close();
    closeSync(netnsFd);
  });
  const lost: string[] = [];
  monitor.subscribe({ message: () => {}, lost: (reason) => lost.push(reason) }, AbortSignal.timeout(60_000));
  monitor.check();
  t.deepEqual(lost, [], 'nothing is lost before');
  const batch = Array.from({ length: 2_000 }, (_, n) => `route add blackhole 10.${n >> 8}.${n & 255}.0/24`).join('\n');
  // Synchronous for this process: nothing is read meanwhile.
  execFileSync('ip', ['-n', host.name, '-batch', '-'], { input: batch });
  monitor.check();
  t.regex(lost[0] ?? '', /^the kernel dropped \d+ notifications$/);
});

test('links: a dump that is disturbed is whole all the same', async (t) => {
  const { host, netlink } = await openHost(t);
  const stable = Array.from({ length: 40 }, (_, n) => `link add s${n} type vxlan id ${n + 1} dstport 4000`);
  await host.feed(stable.join('\n'), 'ip', '-batch', '-');
  const churn = Array.from(
    { length: 60 },
    (_, n) => `link add c${n} type vxlan id ${n + 1} dstport 5000\nlink delete c${n}`,
  );
  let done = false;
  const churning = host.feed(churn.join('\n'), 'ip', '-batch', '-').finally(() => {
    done = true;
  });
  let dumps = 0;
  while (!done) {
    const links = await dumpLinks(netlink.client);
    dumps++;
    t.is(links.filter(({ name }) => name.startsWith('s')).length, 40);
  }
  await churning;
  t.true(dumps > 0);
});

test('host: foreign links and addresses are followed, own ones are not part of it', async (t) => {
  const { host, netlink } = await openHost(t);
  const watch = new HostWatch({ ...netlink, randomFully: true, formerSysctl: () => undefined });
  const end = new AbortController();
  t.teardown(() => end.abort());
  await watch.start(end.signal);
  t.deepEqual(
    watch.current.links.map(({ name }) => name),
    ['lo'],
  );
  let changes = 0;
  watch.onChange(() => {
    changes++;
  });
  await populate(netlink);
  await waitFor(() => netlink.links.byName('tulle.84') !== undefined, { describe: 'the own device' });
  await host.run('ip', 'link', 'add', 'up0', 'type', 'vxlan', 'id', '9', 'dstport', '4000');
  await host.run('ip', 'link', 'set', 'up0', 'addrgenmode', 'none');
  await host.run('ip', 'link', 'set', 'up0', 'up');
  await host.run('ip', 'address', 'add', '192.0.2.5/24', 'dev', 'up0');
  await host.run('ip', 'address', 'add', '2001:db8::5/64', 'dev', 'up0', 'nodad');
  const up0 = () => watch.current.links.find(({ name }) => name === 'up0');
  await waitFor(() => up0()?.addresses.length === 2, { describe: 'both addresses' });
  t.deepEqual(up0()?.addresses, [
    { ip: ip('192.0.2.5'), prefixLength: 24 },
    { ip: ip('2001:db8::5'), prefixLength: 64 },
  ]);
  t.is(up0()?.acceptRa, '1');
  t.deepEqual(
    watch.current.links.map(({ name }) => name),
    ['lo', 'up0'],
  );
  const { current } = watch;
  const before = changes;
  await host.run('ip', 'link', 'set', 'tulle.84', 'mtu', '1300');
  await host.run('ip', 'address', 'add', '10.0.0.9/32', 'dev', 'tulle.84');
  await host.run('ip', 'link', 'set', 'up0', 'alias', 'whatever');
  await waitFor(() => netlink.links.byName('up0')?.alias === 'whatever', { describe: 'the last change' });
  await new Promise((resolve) => setImmediate(resolve));
  t.is(watch.current, current, 'what changes nothing keeps its identity');
  t.is(changes, before);
});
