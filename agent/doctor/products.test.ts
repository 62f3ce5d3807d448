import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { removeFiles, renderRemoval } from './leftover-removal.ts';
import { chainsOf } from './leftovers.ts';
import { PRODUCTS, type Product } from './products.ts';

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
  flannel: ['flannel.1', 'flannel0', 'flannel-v6.1', 'flannel-wg', 'cni0'],
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
  'tulle-tun',
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

test('a directory goes with all that is in it, but not with what is mounted there', (t) => {
  const top = mkdtempSync(join(tmpdir(), 'tulle-test-leftovers-'));
  t.teardown(() => rmSync(top, { recursive: true, force: true }));
  const [path, inside] = [join(top, 'cilium'), join(top, 'cilium/state/file')];
  mkdirSync(join(path, 'state'), { recursive: true });
  writeFileSync(inside, '');
  const mount = (point: string) => `36 25 0:31 / ${point} rw,relatime shared:9 - cgroup2 none rw\n`;
  for (const point of [`${path}/cgroupv2`, path, `${path}/with\\040blank`]) {
    const { message = '' } = t.throws(() => removeFiles(path, mount('/') + mount(point))) ?? {};
    t.true(message.includes(`mounted at ${point.replace('\\040', ' ')};`), message);
    t.true(existsSync(inside));
  }
  removeFiles(path, mount('/') + mount(`${path}-of-another`));
  t.false(existsSync(path));
});

test('a rule that only speaks of a product stays', (t) => {
  const jump = '-A INPUT -m comment --comment "kubernetes health" -j KUBE-NODEPORTS';
  const builtin = [
    '-A INPUT -m comment --comment "must be before -j KUBE-NODEPORTS below" -j ACCEPT',
    String.raw`-A INPUT -j LOG --log-prefix "say \" -j KUBE-NODEPORTS "`,
    jump,
  ];
  const tables = [{ table: 'filter', chains: new Map([['KUBE-NODEPORTS', '-']]), builtin }];
  const scan = { backend: 'nft', family: 'ipv4', tables, ownRules: 0, foreignRules: 3, remarks: [] } as const;
  const proxy = PRODUCTS.find(({ name }) => name === 'kube-proxy') as Product;
  t.deepEqual(
    chainsOf(proxy, scan).map(({ names, rules }) => ({ names, rules })),
    [{ names: ['KUBE-NODEPORTS'], rules: [jump] }],
  );
});
