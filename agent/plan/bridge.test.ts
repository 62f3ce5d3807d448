/** How bridged pods are guarded: by a program where the kernel takes one, otherwise by rules. */
import test from 'ava';
import { cluster, host, ip, node, settings } from '../../test/support/cluster-values.ts';
import type { Host } from '../model/host.ts';
import type { AnyItem } from '../model/items.ts';
import { bridgeMac } from '../model/kernel-names.ts';
import { BRIDGE } from './bridge.ts';
import { NODE_NETWORK } from './node-network.ts';
import { Planner } from './planner.ts';
import { planPod } from './pods.ts';
import { vxlan } from './vxlan.ts';

const a = node('a', { ips: '172.30.0.11 fd30::11', cidrs: '10.84.0.0/24 fd84::/64' });

function keysWith(on: Pick<Host, 'sourceProgram'>) {
  const input = { nodeName: 'a', cluster: cluster(a), host: { ...host(), ...on }, settings, backend: vxlan };
  const { fragments } = new Planner().plan(input);
  const bridge = fragments.get(BRIDGE);
  const spoofing = fragments.get(NODE_NETWORK)?.items.find(({ key }) => key.endsWith(' 05-spoofing'));
  const attachment = {
    containerId: 'c1',
    ifName: 'eth0',
    netns: { path: '/run/netns/x', device: '4', inode: '4026532000' },
    ips: [ip('10.84.0.2'), ip('fd84::2')],
    bridge: { name: 'tulle0', mac: bridgeMac('a'), gateways: [{ ip: ip('10.84.0.1'), prefixLength: 24 }] },
    mtuBytes: 1500,
    routeMtuBytes: 1450,
  };
  const pod = planPod(attachment, on);
  const guards = (each: typeof pod | undefined) =>
    (each?.items ?? []).filter(({ kind }) => ['chain-part', 'filter', 'source'].includes(kind)).map(({ key }) => key);
  const needsOf = (kind: string) => pod.items.filter((each) => each.kind === kind).map(({ needs }) => needs.join(', '));
  return {
    bridge: guards(bridge),
    pod: guards(pod),
    linkNeeds: needsOf('pod-link'),
    readyNeeds: needsOf('member'),
    checked: interfacesIn(spoofing),
  };
}

const interfacesIn = (part: AnyItem | undefined): readonly string[] =>
  part?.kind === 'chain-part' ? part.value.rules.map(({ args: [, pattern = ''] }) => pattern) : [];

test('a program guards the bridge: no rule a pod, and no port is up without it', (t) => {
  const { bridge, pod, linkNeeds, readyNeeds, checked } = keysWith({ sourceProgram: '0123456789ab' });
  t.deepEqual(bridge, ['filter tulle0']);
  t.deepEqual(
    pod.map((key) => key.split(' ').slice(0, 2).join(' ')),
    ['source 10.84.0.2', 'source fd84::2'],
  );
  t.regex(linkNeeds.join(), /link tulle0, filter tulle0/);
  t.notRegex(linkNeeds.join(), /TULLE-BRIDGE/);
  t.is(readyNeeds.length, 2);
  t.deepEqual(checked, ['tl+'], 'no second look at what the program has seen');
  for (const needs of readyNeeds) t.regex(needs, /, source /, 'a pod is ready when it may send');
});

test('without a program rules do the same', (t) => {
  const { bridge, pod, linkNeeds, readyNeeds, checked } = keysWith({});
  t.deepEqual(
    bridge.filter((key) => key.startsWith('chain-part ipv6')),
    ['chain-part ipv6 raw TULLE-BRIDGE 90-rest', 'chain-part ipv6 raw TULLE-PREROUTING 05-bridge'],
  );
  t.deepEqual(
    pod.map((key) => key.replace(/tl[0-9a-f]+/, 'NAME')),
    ['chain-part ipv4 raw TULLE-BRIDGE 50-NAME', 'chain-part ipv6 raw TULLE-BRIDGE 50-NAME'],
  );
  t.regex(linkNeeds.join(), /TULLE-BRIDGE 90-rest/);
  t.deepEqual(checked, ['tl+', 'tulle0']);
  for (const needs of readyNeeds) t.regex(needs, /TULLE-BRIDGE 50-/);
});
