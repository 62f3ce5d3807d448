/** The guard of bridged pods: what its program lets in, and what its drivers promise, on this machine's kernel. */
import { closeSync, openSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { createSourceDriver, type GuardProgram, PodSources } from '../../agent/kernel/bpf/pod-sources.ts';
import { bpf } from '../../agent/kernel/libc.ts';
import { filterDriver } from '../../agent/kernel/netlink/filter.ts';
import { openNetlink } from '../../agent/kernel/netlink/open.ts';
import { bytesOf, type IpAddress } from '../../agent/model/ip.ts';
import type { Filter, Source } from '../../agent/model/items.ts';
import { type MacAddress, macBytes, macOf } from '../../agent/model/mac.ts';
import type { Notice } from '../../agent/reconcile/types.ts';
import { converge, createOf, differences, removeOf } from '../support/converge.ts';
import { createNetns, type Netns } from '../support/netns.ts';
import { until } from '../support/until.ts';

const signal = new AbortController().signal;
const ip = (text: string) => text as IpAddress;
const [ALICE, CAROL] = [macOf('alice'), macOf('carol')];
const SOURCES: readonly Source[] = [
  { ip: ip('10.84.0.2'), mac: ALICE },
  { ip: ip('fd84::2'), mac: ALICE },
  { ip: ip('10.84.0.3'), mac: CAROL },
  { ip: ip('fd84::3'), mac: CAROL },
];

/** What the program answers (linux/pkt_cls.h). */
const [UNSPEC, SHOT] = [-1, 2];
const TYPES = { IPv4: 0x0800, IPv6: 0x86dd, ARP: 0x0806, VLAN: 0x8100, MPLS: 0x8847 } as const;

/** An Ethernet frame up to the end of its IP source address, or of as many bytes as wanted. */
function frameOf(type: keyof typeof TYPES, mac: MacAddress, source?: IpAddress, bytes = 80): Buffer {
  const frame = Buffer.alloc(80);
  frame.set(macBytes(mac), 6);
  frame.writeUInt16BE(TYPES[type], 12);
  if (source) frame.set(bytesOf(source), type === 'IPv4' ? 26 : 22);
  return frame.subarray(0, bytes);
}

const FRAMES: readonly (readonly [what: string, frame: Buffer, verdict: number])[] = [
  ['own address and MAC', frameOf('IPv4', ALICE, ip('10.84.0.2')), UNSPEC],
  ['own address and MAC, IPv6', frameOf('IPv6', ALICE, ip('fd84::2')), UNSPEC],
  ['the shortest packet of IPv4', frameOf('IPv4', ALICE, ip('10.84.0.2'), 34), UNSPEC],
  ['the shortest packet of IPv6', frameOf('IPv6', ALICE, ip('fd84::2'), 54), UNSPEC],
  ["another pod's address", frameOf('IPv4', ALICE, ip('10.84.0.3')), SHOT],
  ["another pod's address, IPv6", frameOf('IPv6', ALICE, ip('fd84::3')), SHOT],
  ["another pod's MAC", frameOf('IPv4', CAROL, ip('10.84.0.2')), SHOT],
  ["another pod's MAC, IPv6", frameOf('IPv6', CAROL, ip('fd84::2')), SHOT],
  ["nobody's address", frameOf('IPv4', ALICE, ip('192.0.2.1')), SHOT],
  ["nobody's MAC", frameOf('IPv4', macOf('nobody'), ip('10.84.0.2')), SHOT],
  ['no address yet', frameOf('IPv4', ALICE, ip('0.0.0.0')), SHOT],
  ['no address yet, IPv6', frameOf('IPv6', ALICE, ip('::')), SHOT],
  ['a link-local address', frameOf('IPv6', ALICE, ip('fe80::2')), SHOT],
  ['an IPv4 address in IPv6', frameOf('IPv6', ALICE, ip('::ffff:10.84.0.2')), SHOT],
  // As the map's own form of an IPv4 address would be.
  ['an IPv4 address at the beginning of one of IPv6', frameOf('IPv6', ALICE, ip('a54:2::')), SHOT],
  ['ARP', frameOf('ARP', ALICE), UNSPEC],
  ['ARP of anybody', frameOf('ARP', macOf('nobody')), UNSPEC],
  ['another VLAN tag', frameOf('VLAN', ALICE), SHOT],
  ['something else', frameOf('MPLS', ALICE), SHOT],
];

test('only what a pod sends with its own address and MAC comes in, and ARP', async (t) => {
  const sources = open(t);
  await createSourceDriver({ sources, adopt: async () => {} }).apply(
    SOURCES.map((source) => createOf('source', source)),
    signal,
  );
  const fd = sources.load();
  t.teardown(() => closeSync(fd));
  for (const [what, frame, verdict] of FRAMES) t.is(verdictOn(fd, frame), verdict, what);
});

test('what is removed does not come in any more, and the rest does', async (t) => {
  const sources = open(t);
  const driver = createSourceDriver({ sources, adopt: async () => {} });
  t.deepEqual([...(await driver.list(signal))], [], 'nothing is made for who has no bridged pods');
  t.is(sources.map, undefined);
  t.is((await converge(driver, SOURCES)).failures.size, 0);
  t.deepEqual(await differences(driver, SOURCES), []);
  const fd = sources.load();
  t.teardown(() => closeSync(fd));
  const left = SOURCES.slice(1);
  t.deepEqual(
    (await converge(driver, left)).changes.map(({ action, key }) => `${action} ${key}`),
    [`remove source 10.84.0.2 ${ALICE}`],
  );
  t.is(verdictOn(fd, frameOf('IPv4', ALICE, ip('10.84.0.2'))), SHOT);
  t.is(verdictOn(fd, frameOf('IPv6', ALICE, ip('fd84::2'))), UNSPEC);
  t.is((await driver.apply([removeOf('source', SOURCES[0] as Source)], signal)).size, 0, 'what is gone is removed');
});

test('keys that no pod can have are taken out of the map', async (t) => {
  const sources = open(t);
  const map = sources.opened();
  map.update({ keys: Buffer.alloc(map.keyBytes, 7), values: Buffer.alloc(map.valueBytes), count: 1 });
  await createSourceDriver({ sources, adopt: async () => {} }).list(signal);
  let left = 0;
  await map.read(({ count }) => {
    left += count;
  }, signal);
  t.is(left, 0);
});

test('a filter is found, replaced in place, and gone with its link', async (t) => {
  const { netns, drivers } = await openNode(t);
  const wanted: Filter = { link: 'tulle0', program: drivers.sources.build };
  t.is((await converge(drivers.filter, [wanted])).failures.size, 0);
  t.deepEqual(await differences(drivers.filter, [wanted]), []);
  const before = await filtersOf(netns);
  t.is(before.length, 1);
  await drivers.filter.apply([createOf('filter', wanted)], signal);
  const after = await filtersOf(netns);
  t.is(after.length, 1, 'written again it is still one');
  t.notDeepEqual(after, before);
  for (const line of ['tc filter del dev tulle0 ingress', 'tc qdisc del dev tulle0 clsact']) {
    await netns.run('sh', '-c', line);
    t.deepEqual(await differences(drivers.filter, [wanted]), ['filter tulle0'], line);
    t.is((await converge(drivers.filter, [wanted])).failures.size, 0);
    t.deepEqual(await differences(drivers.filter, [wanted]), []);
  }
  t.is((await converge(drivers.filter, [])).changes.length, 1);
  t.deepEqual(await filtersOf(netns), []);
  t.is((await drivers.filter.apply([removeOf('filter', wanted)], signal)).size, 0, 'what is gone is removed');
});

test('an agent that starts goes on with the map of the filter; one of another build replaces the program only', async (t) => {
  const { netns, drivers, start } = await openNode(t);
  const wanted: Filter = { link: 'tulle0', program: drivers.sources.build };
  await converge(drivers.source, SOURCES);
  await converge(drivers.filter, [wanted]);
  drivers.sources.close();
  const next = start();
  t.deepEqual(await differences(next.source, SOURCES), [], 'all is there');
  t.deepEqual(await differences(next.filter, [wanted]), []);
  const newer = start({ build: 'another' });
  const updated = { link: 'tulle0', program: 'another' };
  t.deepEqual(await differences(newer.source, SOURCES), []);
  t.deepEqual(
    (await converge(newer.filter, [updated])).changes.map(({ action }) => action),
    ['update'],
  );
  t.deepEqual(await differences(newer.filter, [updated]), []);
  t.is((await filtersOf(netns)).length, 1);
});

test('a filter that asks another map is written again', async (t) => {
  const { drivers, start } = await openNode(t);
  const wanted: Filter = { link: 'tulle0', program: drivers.sources.build };
  await converge(drivers.filter, [wanted]);
  const other = start();
  other.sources.opened();
  t.deepEqual(await differences(other.filter, [wanted]), ['filter tulle0']);
  await converge(other.filter, [wanted]);
  t.deepEqual(await differences(other.filter, [wanted]), []);
  t.deepEqual(await differences(drivers.filter, [wanted]), ['filter tulle0']);
});

test('what somebody does to a filter or to its link is told', async (t) => {
  const { netns, drivers } = await openNode(t);
  const wanted: Filter = { link: 'tulle0', program: drivers.sources.build };
  const told: string[] = [];
  const notice: Notice<'filter'> = {
    found: (key, value) => told.push(`${key} ${value ? value.program : 'gone'}`),
    stale: () => told.push('stale'),
    freed: () => {},
  };
  const stop = new AbortController();
  t.teardown(() => stop.abort());
  drivers.filter.watch?.(notice, stop.signal);
  await converge(drivers.filter, [wanted]);
  const tells = async (line: string, expected: string) => {
    told.length = 0;
    if (line) await netns.run('sh', '-c', line);
    await t.notThrowsAsync(until(() => told.includes(expected), `${expected} after ${line}`));
  };
  await tells('', `filter tulle0 ${wanted.program}`);
  await tells('tc filter del dev tulle0 ingress', 'stale');
  await converge(drivers.filter, [wanted]);
  await tells('tc qdisc del dev tulle0 clsact', 'stale');
  await converge(drivers.filter, [wanted]);
  await tells('ip link delete tulle0', 'filter tulle0 gone');
});

function open(t: ExecutionContext): PodSources {
  const sources = new PodSources();
  t.teardown(() => sources.close());
  return sources;
}

/** BPF_PROG_TEST_RUN: what a program answers to a frame. */
function verdictOn(fd: number, frame: Buffer): number {
  const attribute = Buffer.alloc(80);
  attribute.writeUInt32LE(fd, 0);
  attribute.writeUInt32LE(frame.length, 8);
  bpf(10, attribute, [{ at: 16, to: frame }], { operation: 'run', object: 'the guard' });
  return attribute.readInt32LE(4);
}

/** A namespace with the bridge, and the drivers of agents that start there one after the other. */
async function openNode(t: ExecutionContext) {
  const netns = await createNetns(t);
  await netns.run('ip', 'link', 'add', 'tulle0', 'type', 'bridge');
  await netns.run('ip', 'link', 'set', 'tulle0', 'alias', 'tulle:bridge');
  const netnsFd = openSync(netns.path, 'r');
  const netlink = openNetlink({ netnsFd });
  t.teardown(async () => {
    await netlink.close();
    closeSync(netnsFd);
  });
  const start = ({ build }: { readonly build?: string } = {}) => {
    const sources = open(t);
    const program: GuardProgram = {
      build: build ?? sources.build,
      load: () => sources.load(),
      adopt: (id) => sources.adopt(id),
      isAsking: (id) => sources.isAsking(id),
    };
    const filter = filterDriver({ ...netlink, program });
    return { sources, filter, source: createSourceDriver({ sources, adopt: filter.adopt }) };
  };
  return { netns, drivers: start(), start };
}

async function filtersOf(netns: Netns): Promise<readonly string[]> {
  const { stdout } = await netns.run('tc', 'filter', 'show', 'dev', 'tulle0', 'ingress');
  return stdout.split('\n').filter((line) => line.includes('tulle_source:'));
}
