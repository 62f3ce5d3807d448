import test from 'ava';
import { cluster, host, node, settings } from '../../test/support/cluster-values.ts';
import { DATA_HEADER, SEAL_BYTES } from '../kernel/tun/wire.ts';
import type { Cluster } from '../model/cluster.ts';
import { FAMILIES, families } from '../model/ip.ts';
import type { AnyItem } from '../model/items.ts';
import { type Plan, Planner } from './planner.ts';
import { tun } from './tun.ts';
import type { PlanSettings } from './underlay.ts';

const sealed: PlanSettings = { ...settings, 'tun.encryption': 'aes-gcm', 'tun.secretFile': '/etc/tulle/secret' };

const plan = (nodes: Cluster, with_: PlanSettings = settings) =>
  new Planner().plan({ nodeName: 'a', cluster: nodes, host: host(), settings: with_, backend: tun });

const a = node('a', { ips: '172.30.0.11 fd30::11', cidrs: '10.84.0.0/24 fd84::/64' });
const b = node('b', { ips: '172.30.0.12 fd30::12', cidrs: '10.84.1.0/24 fd84:0:0:1::/64', creationMs: 1 });

const itemsOf = ({ fragments }: Plan, id: string, ...kinds: readonly string[]): readonly AnyItem[] =>
  (fragments.get(id)?.items ?? []).filter(({ kind }) => kinds.includes(kind));
const lines = (...given: Parameters<typeof itemsOf>): string =>
  itemsOf(...given)
    .map(({ kind, value }) => `${kind} ${JSON.stringify(value)}`)
    .join('\n');

test('a node is a device, its addresses, and the path between the device and a socket', (t) => {
  t.is(
    lines(plan(cluster(a, b)), 'backend tun', 'link', 'address', 'tun-path'),
    `link {"type":"tun","name":"tulle-tun","alias":"tulle:tun","mtuBytes":1460}
address {"link":"tulle-tun","ip":"10.84.0.1","prefixLength":32}
address {"link":"tulle-tun","ip":"fd84::1","prefixLength":128}
tun-path {"link":"tulle-tun","local":"172.30.0.11","port":8285,"carriage":"segments","encryption":"none"}`,
  );
});

test('a peer is an entry of the path and a route a pod CIDR, in this order', (t) => {
  const planned = plan(cluster(a, b));
  t.is(
    lines(planned, 'node b', 'tun-peer', 'route'),
    `tun-peer {"node":"b","end":"172.30.0.12","podCidrs":["10.84.1.0/24","fd84:0:0:1::/64"]}
route {"destination":"10.84.1.0/24","metric":0,"type":"unicast","link":"tulle-tun","source":"10.84.0.1"}
route {"destination":"fd84:0:0:1::/64","metric":1024,"type":"unicast","link":"tulle-tun","source":"fd84::1"}`,
  );
  const [entry, ...routes] = itemsOf(planned, 'node b', 'tun-peer', 'route');
  t.deepEqual(entry?.needs, ['tun-path tulle-tun']);
  for (const route of routes) t.true(route.needs.includes('tun-peer b'));
});

test('the socket is not open before its port is guarded', (t) => {
  const [path] = itemsOf(plan(cluster(a, b)), 'backend tun', 'tun-path');
  t.true(path?.needs.includes('chain-part ipv4 raw TULLE-PREROUTING 10-tunnel'));
  t.true(path?.needs.includes('link tulle-tun'));
  const rules = lines(plan(cluster(a, b)), 'backend tun', 'chain-part');
  t.regex(rules, /"--dport","8285"/);
  t.notRegex(rules, /8472/);
});

test('encryption names its secret and costs room in each packet, over either family', (t) => {
  const planned = plan(cluster(a, b), sealed);
  t.like(itemsOf(planned, 'backend tun', 'tun-path')[0]?.value, {
    encryption: 'aes-gcm',
    secretFile: '/etc/tulle/secret',
  });
  t.is(planned.underlay.mtuBytes, 1432);
  t.is(plan(cluster(a, b), { ...settings, tunnelFamily: 'ipv6' }).underlay.mtuBytes, 1440);
  t.is(plan(cluster(a, b), { ...sealed, tunnelFamily: 'ipv6' }).underlay.mtuBytes, 1412);
});

test('the room that a packet leaves is what the wire format needs', (t) => {
  for (const { family } of families) {
    const plain = FAMILIES[family].headerBytes + 8 + DATA_HEADER.bytes;
    t.is(tun.overheadBytes?.(family, settings), plain);
    t.is(tun.overheadBytes?.(family, sealed), plain + SEAL_BYTES);
  }
});

test('with bridged pods the own addresses are those of the bridge', (t) => {
  const planned = plan(cluster(a, b), { ...settings, podLink: 'bridge' });
  t.is(lines(planned, 'backend tun', 'address'), '');
  for (const route of itemsOf(planned, 'node b', 'route'))
    t.true(
      route.needs.some((key) => key.startsWith('address tulle0 ')),
      'the route waits for them',
    );
});

test('a peer without an address of the family of the tunnel is told of, and is no peer', (t) => {
  const { fragments } = plan(cluster(a, b, node('c', { cidrs: '10.84.2.0/24' })));
  t.regex(fragments.get('node c')?.problems.join() ?? '', /Node c has no ipv4 InternalIP for the tunnel/);
  t.deepEqual(
    fragments.get('node c')?.items.filter(({ kind }) => kind === 'tun-peer'),
    [],
  );
});

test('a peer whose pods are of a family that this node has none of is carried without a route', (t) => {
  const only4 = node('a', { ips: '172.30.0.11', cidrs: '10.84.0.0/24' });
  t.is(
    lines(plan(cluster(only4, b)), 'node b', 'tun-peer', 'route'),
    `tun-peer {"node":"b","end":"172.30.0.12","podCidrs":["10.84.1.0/24"]}
route {"destination":"10.84.1.0/24","metric":0,"type":"unicast","link":"tulle-tun","source":"10.84.0.1"}`,
  );
});
