import test from 'ava';
import fc from 'fast-check';
import { cidr, cluster, host, ip, node, settings } from '../../test/support/cluster-values.ts';
import type { Cluster, Node } from '../model/cluster.ts';
import type { Fragment } from '../model/fragment.ts';
import type { Host } from '../model/host.ts';
import { type AnyItem, keyOf } from '../model/items.ts';
import { vtepMac } from '../model/kernel-names.ts';
import { findLosses, type Losses } from './claims.ts';
import { hostGw } from './host-gw.ts';
import { Planner } from './planner.ts';
import type { PlanSettings } from './underlay.ts';
import { vxlan } from './vxlan.ts';

const plan = (nodes: Cluster, on: Host = host(), with_: PlanSettings = settings) =>
  new Planner().plan({ nodeName: 'a', cluster: nodes, host: on, settings: with_, backend: vxlan });

/** One line an item, without the parts that a test does not look at. */
const line = ({ kind, key, value }: AnyItem): string => {
  const { rules, ...rest } = value as { rules?: readonly { args: readonly string[] }[] };
  return rules
    ? [key, ...rules.map(({ args }) => `  ${args.join(' ')}`)].join('\n')
    : `${kind} ${JSON.stringify(rest)}`;
};
const lines = (fragment: Fragment | undefined, ...kinds: readonly string[]) =>
  (fragment?.items ?? [])
    .filter(({ kind }) => kinds.includes(kind))
    .map(line)
    .sort()
    .join('\n');

const a = node('a', { ips: '172.30.0.11 fd30::11', cidrs: '10.84.0.0/24 fd84::/64' });
const b = node('b', { ips: '172.30.0.12 fd30::12', cidrs: '10.84.1.0/24 fd84:0:0:1::/64', creationMs: 1 });

test('a peer is one forwarding entry, and a neighbour and a route a family', (t) => {
  const { fragments } = plan(cluster(a, b));
  t.is(
    lines(fragments.get('node b'), 'fdb', 'neighbour', 'route', 'member'),
    [
      'fdb {"link":"tulle.84","mac":"MAC","destination":"172.30.0.12"}',
      'member {"set":"tulle-direct-4","entry":"10.84.1.0/24"}',
      'member {"set":"tulle-direct-6","entry":"fd84:0:0:1::/64"}',
      'member {"set":"tulle-nodes-4","entry":"172.30.0.12/32"}',
      'neighbour {"link":"tulle.84","ip":"10.84.1.1","mac":"MAC"}',
      'neighbour {"link":"tulle.84","ip":"fd84:0:0:1::1","mac":"MAC"}',
      'route {"destination":"10.84.1.0/24","metric":0,"type":"unicast","link":"tulle.84","gateway":"10.84.1.1","onlink":true,"source":"10.84.0.1"}',
      'route {"destination":"fd84:0:0:1::/64","metric":1024,"type":"unicast","link":"tulle.84","gateway":"fd84:0:0:1::1","onlink":true,"source":"fd84::1"}',
    ]
      .join('\n')
      .replaceAll('MAC', vtepMac('b')),
  );
});

test('the tunnel is rendered for the first family that all nodes have', (t) => {
  const onlyIpv6 = node('c', { ips: 'fd30::13', cidrs: '10.84.2.0/24', creationMs: 2 });
  t.is(plan(cluster(a, b)).underlay.tunnel?.family, 'ipv4');
  t.is(plan(cluster(a, b, onlyIpv6)).underlay.tunnel?.family, 'ipv6');
  t.is(plan(cluster(a, b, onlyIpv6)).underlay.mtuBytes, 1430);
  t.is(plan(cluster(a, b), host(), { ...settings, tunnelFamily: 'ipv6' }).underlay.tunnel?.local, ip('fd30::11'));
  // A node that has no address yet decides nothing, and is reported.
  const unaddressed = plan(cluster(a, b, node('d', { cidrs: '10.84.3.0/24' })));
  t.is(unaddressed.underlay.tunnel?.family, 'ipv4');
  t.regex(unaddressed.fragments.get('node d')?.problems.join() ?? '', /no ipv4 InternalIP/);
});

test('the annotation tulle.dev/underlay-ip takes the place of the InternalIP of its family', (t) => {
  const annotated = node('b', { ips: '172.30.0.12', cidrs: '10.84.1.0/24', underlay: '192.0.2.7' });
  t.regex(lines(plan(cluster(a, annotated)).fragments.get('node b'), 'fdb'), /"destination":"192.0.2.7"/);
});

test('the gate, masquerade and the tunnel port are rules over sets', (t) => {
  const only4 = node('a', { ips: '172.30.0.11', cidrs: '10.84.0.0/24' });
  const { fragments } = plan(cluster(only4));
  t.is(
    [
      lines(fragments.get('node-network'), 'chain-part', 'route', 'set'),
      lines(fragments.get('backend vxlan'), 'chain-part', 'set'),
    ].join('\n'),
    `chain-part ipv4 filter TULLE-FORWARD 50-pods
  -i tl+ -j ACCEPT
  -i tulle0 -j ACCEPT
  -o tl+ -j ACCEPT
  -o tulle0 -j ACCEPT
chain-part ipv4 mangle TULLE-FORWARD 90-gate
  -m conntrack --ctstate ESTABLISHED -j RETURN
  -i tl+ -o tl+ -m set --match-set tulle-ready-4 src -m set --match-set tulle-ready-4 dst -j RETURN
  -i tulle0 -o tulle0 -m set --match-set tulle-ready-4 src -m set --match-set tulle-ready-4 dst -j RETURN
  -i tl+ -m set ! --match-set tulle-ready-4 src -j DROP
  -i tulle0 -m set ! --match-set tulle-ready-4 src -j DROP
  -o tl+ -m set ! --match-set tulle-ready-4 dst -j DROP
  -o tulle0 -m set ! --match-set tulle-ready-4 dst -j DROP
  -s 10.84.0.0/24 ! -i tl+ -m set ! --match-set tulle-ready-4 src -j DROP
  -d 10.84.0.0/24 ! -o tl+ -m set ! --match-set tulle-ready-4 dst -j DROP
chain-part ipv4 nat TULLE-POSTROUTING 50-masquerade
  -s 10.84.0.0/24 -m set ! --match-set tulle-direct-4 dst -m set ! --match-set tulle-ready-4 dst -j MASQUERADE --random-fully
  ! -s 10.84.0.0/24 -m set --match-set tulle-ready-4 src -m set ! --match-set tulle-ready-4 dst -m set --match-set tulle-direct-4 dst -j SNAT --to-source 10.84.0.1 --random-fully
  ! -s 10.84.0.0/24 -m set --match-set tulle-ready-4 src -m set ! --match-set tulle-ready-4 dst -j MASQUERADE --random-fully
route {"destination":"10.84.0.0/24","metric":4000000000,"type":"unreachable"}
set {"name":"tulle-direct-4","type":"hash:net","family":"ipv4","maxElements":65536}
set {"name":"tulle-ready-4","type":"hash:ip","family":"ipv4","maxElements":65536}
chain-part ipv4 filter TULLE-INPUT 10-tunnel
  -p udp --dport 8472 -d 172.30.0.11 -j ACCEPT
chain-part ipv4 mangle TULLE-FORWARD 10-tunnel
  -p udp --dport 8472 -j TULLE-TUNNEL
chain-part ipv4 mangle TULLE-INPUT 10-tunnel
  -p udp --dport 8472 ! -d 172.30.0.11 -j DROP
  -p udp --dport 8472 -m conntrack ! --ctstate UNTRACKED -j DROP
chain-part ipv4 mangle TULLE-TUNNEL 10-tunnel
  -m set --match-set tulle-nodes-4 dst -i tl+ -j DROP
  -m set --match-set tulle-nodes-4 dst -i tulle0 -j DROP
  -m set --match-set tulle-nodes-4 dst -m conntrack --ctstate DNAT -j DROP
chain-part ipv4 raw TULLE-NODES 10-tunnel
  -j CT --notrack
chain-part ipv4 raw TULLE-OUTPUT 10-tunnel
  -p udp --dport 8472 -m set --match-set tulle-nodes-4 dst -j CT --notrack
chain-part ipv4 raw TULLE-PREROUTING 10-tunnel
  -p udp --dport 8472 -j TULLE-TUNNEL
chain-part ipv4 raw TULLE-TUNNEL 10-tunnel
  -m set --match-set tulle-nodes-4 dst -i tl+ -j DROP
  -m set --match-set tulle-nodes-4 dst -i tulle0 -j DROP
  -m addrtype --dst-type LOCAL -i tl+ -j DROP
  -m addrtype --dst-type LOCAL -i tulle0 -j DROP
  -d 172.30.0.11 -m set --match-set tulle-nodes-4 src -g TULLE-NODES
  -m addrtype --dst-type LOCAL -m set ! --match-set tulle-nodes-4 src -j DROP
  -m set --match-set tulle-nodes-4 dst -m set ! --match-set tulle-nodes-4 src -j DROP
set {"name":"tulle-nodes-4","type":"hash:ip","family":"ipv4","maxElements":65536}`,
  );
});

test('backend host-gw is a plain route to each peer on the segment, and says who is not on it', (t) => {
  const hostGwPlan = (nodes: Cluster) =>
    new Planner().plan({ nodeName: 'a', cluster: nodes, host: host(), settings, backend: hostGw });
  const far = node('far', { ips: '172.31.0.13', cidrs: '10.84.3.0/24', creationMs: 3 });
  const { underlay, fragments } = hostGwPlan(cluster(a, b, far));
  t.is(underlay.mtuBytes, 1500);
  t.is(underlay.tunnel, undefined);
  t.deepEqual(fragments.get('backend host-gw')?.items, []);
  t.is(
    lines(fragments.get('node b'), 'route', 'fdb', 'member'),
    `member {"set":"tulle-direct-4","entry":"10.84.1.0/24"}
member {"set":"tulle-direct-4","entry":"172.30.0.12/32"}
member {"set":"tulle-direct-6","entry":"fd30::12/128"}
member {"set":"tulle-direct-6","entry":"fd84:0:0:1::/64"}
route {"destination":"10.84.1.0/24","metric":0,"type":"unicast","link":"eth0","gateway":"172.30.0.12"}
route {"destination":"fd84:0:0:1::/64","metric":1024,"type":"unicast","link":"eth0","gateway":"fd30::12"}`,
  );
  t.is(lines(fragments.get('node far'), 'route'), '');
  t.regex(
    fragments.get('node far')?.problems.join() ?? '',
    /far \(172.31.0.13\) is not on 172.30.0.0\/24: .* use backend vxlan/,
  );
});

test('vxlan with direct routing: plain routes on the segment, the tunnel for the rest, one MTU', (t) => {
  const far = node('far', { ips: '172.31.0.13 fd31::13', cidrs: '10.84.3.0/24', creationMs: 3 });
  const { underlay, fragments } = plan(cluster(a, b, far), host(), { ...settings, 'vxlan.directRouting': true });
  t.like(underlay, { mtuBytes: 1450, linkMtuBytes: 1500 });
  t.notRegex(lines(fragments.get('node b'), 'route', 'fdb', 'neighbour'), /tulle\.84/);
  t.regex(lines(fragments.get('node b'), 'route'), /"link":"eth0","gateway":"172.30.0.12"/);
  t.regex(lines(fragments.get('node b'), 'member'), /tulle-nodes-4","entry":"172.30.0.12\/32"/);
  t.regex(lines(fragments.get('node far'), 'route'), /"link":"tulle.84","gateway":"10.84.3.1"/);
});

test('IPv6 forwarding waits for accept_ra 2 on links that live by router advertisements', (t) => {
  const { fragments } = plan(cluster(a), host({ acceptRa: '1' }));
  const forwarding = fragments
    .get('node-network')
    ?.items.find(({ key }) => key === 'sysctl net/ipv6/conf/all/forwarding');
  t.deepEqual(forwarding?.needs, ['sysctl net/ipv6/conf/eth0/accept_ra']);
  // A host that forwards already has decided about its advertisements.
  t.notRegex(
    lines(plan(cluster(a), host({ acceptRa: '1', ipv6Forwarding: true })).fragments.get('node-network'), 'sysctl'),
    /accept_ra/,
  );
});

test('what cannot be planned is a problem with its remedy, and the rest is planned', (t) => {
  const problems = (nodes: Cluster, on = host(), with_ = settings) =>
    plan(nodes, on, with_).underlay.problems.join('\n');
  t.regex(problems(cluster()), /no Node named a/);
  t.regex(problems({ ...cluster(), synced: false }), /not answered yet/);
  t.regex(problems(cluster(node('a', { ips: '172.30.0.11' }))), /Node a has no podCIDR: .*--allocate-node-cidrs/);
  t.regex(problems(cluster(a), host({ ipv6: false })), /fd84::\/64 but IPv6 is off .*disable_ipv6/);
  t.deepEqual(
    plan(cluster(a), host({ ipv6: false })).underlay.podNetworks.map(({ family }) => family),
    ['ipv4'],
  );
  t.regex(problems(cluster(a), host({ mtuBytes: 1300 })), /MTU of 1250 bytes is too small for ipv6 \(at least 1280\)/);
  t.regex(problems(cluster(a), host({ ips: '192.0.2.1' })), /no link of this host has the node's address 172.30.0.11/);
  t.regex(problems(cluster(node('a', { cidrs: '10.84.0.0/24' }))), /no InternalIP of family ipv4/);
  t.is(problems(cluster(a, b)), '');
});

test('overlapping podCIDRs: the older Node keeps its own on every node alike, also when it is this one that loses', (t) => {
  const older = node('older', { ips: '172.30.0.12', cidrs: '10.84.0.0/20', creationMs: 1 });
  const younger = node('a', { ips: '172.30.0.11', cidrs: '10.84.1.0/24', creationMs: 2 });
  const { underlay, fragments } = plan(cluster(older, younger));
  t.deepEqual(underlay.podNetworks, []);
  t.regex(underlay.problems.join(), /podCIDR 10.84.1.0\/24 of Node a overlaps 10.84.0.0\/20 of the older Node older/);
  t.deepEqual(fragments.get('backend vxlan')?.items, []);
  const seenByThird = new Planner().plan({
    nodeName: 'third',
    cluster: cluster(older, younger, node('third', { ips: '172.30.0.13', cidrs: '10.99.0.0/24' })),
    host: host(),
    settings,
    backend: vxlan,
  });
  t.is(lines(seenByThird.fragments.get('node a'), 'route'), '');
  t.regex(lines(seenByThird.fragments.get('node older'), 'route'), /10.84.0.0\/20/);
});

test("a podCIDR that would take the host's own traffic away is refused, of a peer as of this node", (t) => {
  const wide = node('b', { ips: '172.30.0.12', cidrs: '0.0.0.0/0', creationMs: 1 });
  const covering = node('c', { ips: '172.30.0.13', cidrs: '172.16.0.0/12', creationMs: 2 });
  const { fragments } = plan(cluster(a, wide, covering));
  t.is(lines(fragments.get('node b'), 'route') + lines(fragments.get('node c'), 'route'), '');
  t.regex(
    fragments.get('node b')?.problems.join() ?? '',
    /0\.0\.0\.0\/0 of Node b is refused: expected a prefix of \/8/,
  );
  t.regex(fragments.get('node c')?.problems.join() ?? '', /covers the node address 172\.30\.0\.11/);
  const own = plan(cluster(node('a', { ips: '172.30.0.11', cidrs: '172.30.0.0/24' })));
  t.deepEqual(own.underlay.podNetworks, []);
  t.regex(own.underlay.problems.join(), /covers the node address 172\.30\.0\.11/);
});

test('no podCIDR may cover the address of any node, and every node decides so', (t) => {
  const covers = node('b', { ips: '172.30.0.12', cidrs: '10.2.0.0/24', creationMs: 1 });
  const covered = node('c', { ips: '10.2.0.1', cidrs: '10.84.2.0/24', creationMs: 2 });
  for (const nodeName of ['a', 'c']) {
    const { fragments } = new Planner().plan({
      nodeName,
      cluster: cluster(a, covers, covered),
      host: host(),
      settings,
      backend: vxlan,
    });
    t.regex(fragments.get('node b')?.problems.join() ?? '', /covers the node address 10\.2\.0\.1/, nodeName);
    t.is(lines(fragments.get('node b'), 'route'), '', nodeName);
  }
});

test('a Node that is away or has lost its podCIDR keeps the network of running pods, also over a restart', (t) => {
  const planner = new Planner();
  const input = { nodeName: 'a', host: host(), settings, backend: vxlan };
  const before = planner.plan({ ...input, cluster: cluster(a, b) });
  for (const nodes of [cluster(b), cluster(node('a', { ips: '172.30.0.11' }), b)]) {
    for (const each of [planner, new Planner(before.underlay)]) {
      const after = each.plan({ ...input, cluster: nodes });
      t.true(after.underlay.suspended);
      t.true(after.underlay.problems.length > 0);
      t.deepEqual(after.fragments.get('backend vxlan'), before.fragments.get('backend vxlan'));
      t.deepEqual(after.fragments.get('node-network')?.items, before.fragments.get('node-network')?.items);
      t.deepEqual(after.fragments.get('node b'), before.fragments.get('node b'));
    }
  }
  t.is(planner.plan({ ...input, cluster: cluster(a, b) }).underlay.suspended, undefined);
});

test('an MTU that no link tells, or that would take IPv6 away, is not followed', (t) => {
  const planner = new Planner();
  const mtuOn = (on: Host) =>
    planner.plan({ nodeName: 'a', cluster: cluster(a), host: on, settings, backend: vxlan }).underlay;
  const mtus = { mtuBytes: 1350, linkMtuBytes: 1400 };
  t.like(mtuOn(host({ mtuBytes: 1400 })), mtus);
  t.like(mtuOn(host({ mtuBytes: 1400, ips: '192.0.2.1' })), mtus);
  t.like(mtuOn(host({ mtuBytes: 1300 })), mtus);
  t.regex(mtuOn(host({ mtuBytes: 1300 })).problems.join(), /too small for ipv6/);
  t.like(mtuOn(host({ mtuBytes: 9000 })), { mtuBytes: 8950, linkMtuBytes: 9000 });
});

test('one Node that changes is planned alone: every other fragment keeps its identity', (t) => {
  const planner = new Planner();
  const peers = Array.from({ length: 50 }, (_, i) =>
    node(`n${i}`, { ips: `172.30.1.${i}`, cidrs: `10.90.${i}.0/24`, creationMs: i }),
  );
  const input = { nodeName: 'a', host: host(), settings, backend: vxlan };
  const first = planner.plan({ ...input, cluster: cluster(a, ...peers) });
  const moved = node('n7', { ips: '172.30.2.7', cidrs: '10.90.7.0/24', creationMs: 7 });
  const second = planner.plan({
    ...input,
    cluster: cluster(a, ...peers.map((peer) => (peer.name === 'n7' ? moved : peer))),
  });
  const changed = [...second.fragments].filter(
    ([id, fragment]) => fragment !== first.fragments.get(id) && id.startsWith('node n'),
  );
  t.deepEqual(
    changed.map(([id]) => id),
    ['node n7'],
  );
});

test('whatever changes one after the other, a planner that remembers plans as a fresh one', (t) => {
  // Every podCIDR covers some of the addresses, and some touch each other.
  const ips = fc.constantFrom('10.1.1.5', '10.2.0.9', '172.30.0.3', '172.30.0.4', 'fd00:1::5', 'fd30::3');
  const cidrs = fc.constantFrom(
    '10.1.0.0/16',
    '10.1.1.0/24',
    '10.2.0.0/24',
    '10.3.0.0/24',
    'fd00:1::/64',
    'fd00:2::/64',
  );
  const change = fc.record({
    name: fc.constantFrom('n1', 'n2', 'n3'),
    ips: fc.option(fc.uniqueArray(ips, { maxLength: 2 }), { freq: 2 }),
    cidrs: fc.option(fc.uniqueArray(cidrs, { maxLength: 2 }), { freq: 2 }),
  });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 12 }), (changes) => {
      const input = { nodeName: 'a', host: host(), settings, backend: vxlan };
      const planner = new Planner();
      const words = new Map(['n1', 'n2', 'n3'].map((name) => [name, { ips: '', cidrs: '' }]));
      let nodes = cluster(a);
      for (const { name, ...fields } of changes) {
        const before = words.get(name) ?? { ips: '', cidrs: '' };
        const after = {
          ips: fields.ips?.join(' ') ?? before.ips,
          cidrs: fields.cidrs?.join(' ') ?? before.cidrs,
        };
        words.set(name, after);
        const others = [...nodes.nodes.values()].filter((each) => each.name !== name);
        nodes = cluster(...others, node(name, after));
        const [remembered, fresh] = [planner, new Planner()].map((one) => one.plan({ ...input, cluster: nodes }));
        const inOrder = (losses: Losses = new Map()) => [...losses].sort();
        t.deepEqual(
          { ...remembered, losses: inOrder(remembered?.losses) },
          { ...fresh, losses: inOrder(fresh?.losses) },
        );
      }
    }),
  );
});

test('findLosses agrees with comparing every pair', (t) => {
  const cidrs = fc.constantFrom(
    '10.0.0.0/8',
    '10.1.0.0/16',
    '10.1.1.0/24',
    '10.1.2.0/24',
    '10.2.0.0/16',
    'fd00::/16',
    'fd00:1::/32',
    'fd01::/32',
  );
  const nodes = fc.array(
    fc.record({ cidrs: fc.uniqueArray(cidrs, { maxLength: 1, minLength: 1 }), creationMs: fc.nat(3) }),
    { maxLength: 8 },
  );
  fc.assert(
    fc.property(nodes, (specs) => {
      const all = specs.map(({ cidrs: [own], creationMs }, i) =>
        node(`n${i}`, { cidrs: own as string, creationMs, uid: String(i) }),
      );
      t.deepEqual([...findLosses(all).keys()].sort(), naiveLosers(all));
    }),
  );
});

function naiveLosers(nodes: readonly Node[]): readonly string[] {
  const older = [...nodes].sort((x, y) => x.creationMs - y.creationMs || (x.uid < y.uid ? -1 : 1));
  const winners: Node[] = [];
  const losers: string[] = [];
  for (const each of older) {
    const [own] = each.podCidrs;
    const beaten = winners.some(({ podCidrs: [other] }) => own && other && rangesTouch(own, other));
    if (beaten) losers.push(each.name);
    else winners.push(each);
  }
  return losers.sort();
}

/** Straight from the text: two CIDRs overlap when the shorter prefix of both is equal. */
function rangesTouch(x: string, y: string): boolean {
  if (x.includes(':') !== y.includes(':')) return false;
  const length = Math.min(Number(x.split('/')[1]), Number(y.split('/')[1]));
  return cidr(`${x.split('/')[0]}/${length}`) === cidr(`${y.split('/')[0]}/${length}`);
}

test('a fragment holds no key twice', (t) => {
  for (const fragment of plan(cluster(a, b)).fragments.values()) {
    const keys = fragment.items.map(({ kind, value }) => keyOf(kind, value as never));
    t.is(new Set(keys).size, keys.length, fragment.id);
  }
});
