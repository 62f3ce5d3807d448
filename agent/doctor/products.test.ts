import test from 'ava';
import { renderRemoval } from './leftover-removal.ts';
import { PRODUCTS } from './products.ts';

/** Names as the sources and documents of each product give them. */
const CHAINS: Readonly<Record<string, readonly string[]>> = {
  flannel: ['FLANNEL-FWD', 'FLANNEL-POSTRTG'],
  'kube-proxy': [
    ...[
      'KUBE-SERVICES',
      'KUBE-EXTERNAL-SERVICES',
      'KUBE-NODEPORTS',
      'KUBE-POSTROUTING',
      'KUBE-FORWARD',
      'KUBE-MARK-MASQ',
    ],
    ...['KUBE-PROXY-CANARY', 'KUBE-PROXY-FIREWALL', 'KUBE-SVC-ABCDEFGHIJKLMNOP', 'KUBE-SEP-ABCDEFGHIJKLMNOP'],
    ...['KUBE-NODE-PORT', 'KUBE-LOAD-BALANCER', 'KUBE-IPVS-FILTER', 'KUBE-EXT-ABCDEFGHIJKLMNOP', 'KUBE-SVL-A'],
  ],
  calico: ['cali-FORWARD', 'cali-fw-cali0123456789a'],
  cilium: ['CILIUM_FORWARD', 'OLD_CILIUM_POST_nat'],
  weave: ['WEAVE', 'WEAVE-NPC', 'WEAVE-CANARY'],
  'kube-router': ['KUBE-ROUTER-INPUT', 'KUBE-POD-FW-ABCDEFGHIJKLMNOP', 'KUBE-NWPLCY-DEFAULT'],
};
const LINKS: Readonly<Record<string, readonly string[]>> = {
  flannel: ['flannel.1', 'flannel-v6.1', 'flannel-wg', 'cni0'],
  'kube-proxy': ['kube-ipvs0'],
  calico: ['vxlan.calico', 'vxlan-v6.calico', 'wireguard.cali'],
  cilium: ['cilium_host', 'cilium_net', 'cilium_vxlan'],
  weave: ['weave', 'datapath', 'vxlan-6784', 'vethwe-bridge'],
  'kube-router': ['kube-bridge', 'kube-dummy-if'],
};
/** Of the kubelet, of Tulle, of Docker, of hosts. */
const NOBODYS = [
  ...['KUBE-KUBELET-CANARY', 'KUBE-IPTABLES-HINT', 'KUBE-FIREWALL', 'KUBE-MARK-DROP', 'TULLE-FORWARD', 'TULLE-TUNNEL'],
  ...['DOCKER', 'DOCKER-USER', 'ufw-before-input', 'INPUT', 'FORWARD', 'CNI-HOSTPORT-DNAT', 'INPUT_direct'],
];
const NOBODYS_LINKS = [
  'lo',
  'eth0',
  'tulle.84',
  'tulle0',
  'tl0123456789ab',
  'docker0',
  'br-0123456789ab',
  'cni-podman0',
  'veth0',
  'wg0',
];

const owners = (kind: 'chains' | 'links', name: string) =>
  PRODUCTS.filter((product) => product[kind]?.test(name)).map((product) => product.name);

test('products: each chain and device has one owner, and what is of others has none', (t) => {
  for (const { name } of PRODUCTS) {
    t.true(name in CHAINS && name in LINKS, name);
    for (const chain of CHAINS[name] ?? []) t.deepEqual(owners('chains', chain), [name], chain);
    for (const link of LINKS[name] ?? []) t.deepEqual(owners('links', link), [name], link);
  }
  for (const name of NOBODYS) t.deepEqual(owners('chains', name), [], name);
  for (const name of NOBODYS_LINKS) t.deepEqual(owners('links', name), [], name);
});

test('renderRemoval: chains are emptied before any is deleted, and rules of built-in chains go as they were saved', (t) => {
  const text = renderRemoval({
    backend: 'nft',
    family: 'ipv4',
    table: 'nat',
    names: ['KUBE-SERVICES', 'KUBE-SVC-A'],
    rules: ['-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'],
  });
  t.deepEqual(text.trimEnd().split('\n'), [
    '*nat',
    ':KUBE-SERVICES - [0:0]',
    ':KUBE-SVC-A - [0:0]',
    '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-X KUBE-SERVICES',
    '-X KUBE-SVC-A',
    'COMMIT',
  ]);
});
