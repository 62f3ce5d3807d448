/**
 * Nodes whose kernel is set up as flannel and kube-proxy (iptables mode, no Service) leave it: bridge cni0 seen by
 * iptables, VXLAN device, plain routes or a TUN device, flanneld's chains and kube-proxy's base chains. The daemons
 * themselves do not run; they are in no packet's way, but for the proxy behind the TUN device (tun-proxy.c). Sources:
 * flannel's documentation of its backends and iptables rules, `iptables-save` of a kubeadm cluster.
 */
import { execa } from 'execa';
import {
  addressAt,
  type Cidr,
  FAMILIES,
  type Family,
  type IpAddress,
  parseCidr,
  prefixLengthOf,
} from '../agent/model/ip.ts';
import { createCgroup } from '../lab/cgroup.ts';
import { MTU_BYTES } from '../lab/fabric.ts';
import { inNode, type NodeRef, podCgroup } from '../lab/node.ts';

export type FlannelBackend = 'vxlan' | 'host-gw' | 'udp';

export interface FlannelNode {
  readonly node: NodeRef;
  /** On the segment that all nodes share. */
  readonly address: IpAddress;
  /** From 1, its place in the cluster. */
  readonly number: number;
  readonly family: Family;
  readonly backend: FlannelBackend;
}

const COMMAND_TIMEOUT_MS = 20_000;
const VXLAN_DEVICE = 'flannel.1';
const VXLAN_PORT = 8472;
export const TUN_DEVICE = 'flannel0';
/** Ethernet and VXLAN headers, which IP in UDP does without. */
const BARE_BYTES = 14 + 8;
const MASQUERADE_MARK = '0x4000/0x4000';

const CLUSTER: Readonly<Record<Family, Cidr>> = {
  ipv4: parseCidr('10.84.0.0/16') as Cidr,
  ipv6: parseCidr('fd84::/48') as Cidr,
};

/** 10.84.<number>.0/24, fd84:0:0:<number>::/64. */
export const podCidr = ({ number, family }: Pick<FlannelNode, 'number' | 'family'>): Cidr =>
  parseCidr(family === 'ipv4' ? `10.84.${number}.0/24` : `fd84:0:0:${number.toString(16)}::/64`) as Cidr;

const mtuOf = ({ backend, family }: FlannelNode): number => {
  const { vxlanOverheadBytes } = FAMILIES[family];
  const overhead = { vxlan: vxlanOverheadBytes, 'host-gw': 0, udp: vxlanOverheadBytes - BARE_BYTES };
  return MTU_BYTES - overhead[backend];
};

const vtepMac = ({ number }: FlannelNode): string => `02:00:00:00:84:${number.toString(16).padStart(2, '0')}`;

/** Everything of one node but its pods. */
export async function shapeNode(own: FlannelNode, peers: readonly FlannelNode[]): Promise<void> {
  const { node, family, backend } = own;
  await runIn(node, ['sysctl', '-qw', ...sysctls(family)]);
  const lines = [
    `link add cni0 mtu ${mtuOf(own)} type bridge`,
    'link set cni0 up',
    `addr add ${withLength(podCidr(own), 1)} dev cni0 ${noDad(family)}`,
    ...linesOf[backend](own, peers),
  ];
  await runIn(node, ['ip', '-batch', '-'], lines);
  if (backend === 'vxlan') await runIn(node, ['bridge', '-batch', '-'], peers.map(fdbLine));
  await applyRules(node, family, [...kubeProxyRules(family), ...flannelRules(own)]);
}

/** Also of use for nodes with another network than flannel's. */
export const applyKubeProxy = (node: NodeRef, family: Family): Promise<void> =>
  applyRules(node, family, kubeProxyRules(family));

/** A pod as the bridge plugin makes it: a namespace of that name in the node, and its address, the n-th of the node. */
export async function addBridgedPod(own: FlannelNode, name: string, n: number): Promise<IpAddress> {
  const { node, family } = own;
  const cidr = podCidr(own);
  const mtu = `mtu ${mtuOf(own)}`;
  await addNetns(node, name);
  const outside = [
    `link add veth${name} ${mtu} master cni0 type veth peer name eth0 ${mtu} netns ${name}`,
    `link set veth${name} type bridge_slave hairpin on`,
    `link set veth${name} up`,
  ];
  const inside = [
    'link set lo up',
    'link set eth0 up',
    `addr add ${withLength(cidr, n)} dev eth0 ${noDad(family)}`,
    `route add default via ${addressAt(cidr, 1)}`,
  ];
  await runIn(node, ['ip', '-batch', '-'], outside);
  await runIn(node, ['ip', '-n', name, '-batch', '-'], inside);
  return addressAt(cidr, n);
}

/** Two namespaces of a node joined by a veth pair and nothing else: the least that a path can cost. */
export async function addRawPair(node: NodeRef, family: Family, mtuBytes: number): Promise<IpAddress> {
  const [left, right] = [1, 2].map((n) => withLength(CLUSTER[family], n));
  for (const name of ['left', 'right']) await addNetns(node, name);
  const mtu = `mtu ${mtuBytes}`;
  await runIn(node, [
    'ip',
    '-n',
    'left',
    'link',
    'add',
    'eth0',
    ...mtu.split(' '),
    'type',
    'veth',
    'peer',
    'name',
    'eth0',
    ...mtu.split(' '),
    'netns',
    'right',
  ]);
  for (const [name, address] of [
    ['left', left],
    ['right', right],
  ] as const) {
    await runIn(
      node,
      ['ip', '-n', name, '-batch', '-'],
      [`addr add ${address} dev eth0 ${noDad(family)}`, 'link set eth0 up'],
    );
  }
  return addressAt(CLUSTER[family], 2);
}

async function addNetns(node: NodeRef, name: string): Promise<void> {
  await createCgroup(podCgroup(node, name));
  await runIn(node, ['ip', 'netns', 'add', name]);
}

const sysctls = (family: Family): readonly string[] =>
  family === 'ipv4'
    ? ['net.ipv4.ip_forward=1', 'net.bridge.bridge-nf-call-iptables=1']
    : ['net.ipv6.conf.all.forwarding=1', 'net.bridge.bridge-nf-call-ip6tables=1'];

function vxlanLines(own: FlannelNode, peers: readonly FlannelNode[]): readonly string[] {
  const device = `dev ${VXLAN_DEVICE}`;
  const vtep = (node: FlannelNode) => addressAt(podCidr(node), 0);
  const type = `type vxlan id 1 local ${own.address} dev eth0 dstport ${VXLAN_PORT} nolearning`;
  return [
    `link add ${VXLAN_DEVICE} mtu ${mtuOf(own)} address ${vtepMac(own)} ${type}`,
    `link set ${VXLAN_DEVICE} up`,
    `addr add ${vtep(own)}/${FAMILIES[own.family].bits} ${device} ${noDad(own.family)}`,
    ...peers.map((peer) => `neigh add ${vtep(peer)} lladdr ${vtepMac(peer)} ${device} nud permanent`),
    ...peers.map((peer) => `route add ${podCidr(peer)} via ${vtep(peer)} ${device} onlink`),
  ];
}

/** The device has an address of the whole network, so that what is not of this node goes there. */
function tunLines(own: FlannelNode): readonly string[] {
  const address = `${addressAt(podCidr(own), 0)}/${prefixLengthOf(CLUSTER[own.family])}`;
  return [
    `tuntap add dev ${TUN_DEVICE} mode tun`,
    `link set ${TUN_DEVICE} mtu ${mtuOf(own)} up`,
    `addr add ${address} dev ${TUN_DEVICE} ${noDad(own.family)}`,
  ];
}

const fdbLine = (peer: FlannelNode): string =>
  `fdb add ${vtepMac(peer)} dev ${VXLAN_DEVICE} dst ${peer.address} self permanent`;

const plainRouteLine = (peer: FlannelNode): string => `route add ${podCidr(peer)} via ${peer.address} dev eth0`;

const linesOf: Readonly<
  Record<FlannelBackend, (own: FlannelNode, peers: readonly FlannelNode[]) => readonly string[]>
> = {
  vxlan: vxlanLines,
  'host-gw': (_own, peers) => peers.map(plainRouteLine),
  udp: tunLines,
};

const withLength = (cidr: Cidr, host: number): string => `${addressAt(cidr, host)}/${prefixLengthOf(cidr)}`;

const noDad = (family: Family): string => (family === 'ipv6' ? 'nodad' : '');

/** A rule of one table in iptables-save's form; one without `-A` is a chain. */
type RuleLine = readonly [table: 'filter' | 'nat', line: string];

function kubeProxyRules(family: Family): readonly RuleLine[] {
  const isNew = '-m conntrack --ctstate NEW';
  const loopback = family === 'ipv4' ? '127.0.0.0/8' : '::1/128';
  const chains = (table: RuleLine[0], ...names: readonly string[]) =>
    names.map((name): RuleLine => [table, `:KUBE-${name} - [0:0]`]);
  const filter = (...lines: readonly string[]) => lines.map((line): RuleLine => ['filter', line]);
  const nat = (...lines: readonly string[]) => lines.map((line): RuleLine => ['nat', line]);
  const filterChains = ['EXTERNAL-SERVICES', 'FIREWALL', 'FORWARD', 'NODEPORTS', 'PROXY-FIREWALL', 'SERVICES'];
  return [
    ...chains('filter', ...filterChains),
    ...filter(
      `-A INPUT ${isNew} -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`,
      '-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
      `-A INPUT ${isNew} -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES`,
      '-A INPUT -j KUBE-FIREWALL',
      `-A FORWARD ${isNew} -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`,
      '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
      `-A FORWARD ${isNew} -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
      `-A FORWARD ${isNew} -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES`,
      `-A OUTPUT ${isNew} -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`,
      `-A OUTPUT ${isNew} -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
      '-A OUTPUT -j KUBE-FIREWALL',
      `-A KUBE-FIREWALL ! -s ${loopback} -d ${loopback} -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP`,
      '-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP',
      `-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark ${MASQUERADE_MARK} -j ACCEPT`,
      '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
    ),
    ...chains('nat', 'MARK-MASQ', 'NODEPORTS', 'POSTROUTING', 'SERVICES'),
    ...nat(
      '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
      '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
      '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
      '-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000',
      `-A KUBE-POSTROUTING -m mark ! --mark ${MASQUERADE_MARK} -j RETURN`,
      '-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0',
      '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
      '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
    ),
  ];
}

function flannelRules(node: FlannelNode): readonly RuleLine[] {
  const { family } = node;
  const [own, cluster] = [podCidr(node), CLUSTER[family]];
  const rule = (table: RuleLine[0], line: string, action: string): RuleLine => [
    table,
    `-A ${line} -m comment --comment "flanneld ${table === 'nat' ? 'masq' : 'forward'}" -j ${action}`,
  ];
  return [
    ['filter', ':FLANNEL-FWD - [0:0]'],
    rule('filter', 'FORWARD', 'FLANNEL-FWD'),
    rule('filter', `FLANNEL-FWD -s ${cluster}`, 'ACCEPT'),
    rule('filter', `FLANNEL-FWD -d ${cluster}`, 'ACCEPT'),
    ['nat', ':FLANNEL-POSTRTG - [0:0]'],
    rule('nat', 'POSTROUTING', 'FLANNEL-POSTRTG'),
    rule('nat', `FLANNEL-POSTRTG -m mark --mark ${MASQUERADE_MARK}`, 'RETURN'),
    rule('nat', `FLANNEL-POSTRTG -s ${own} -d ${cluster}`, 'RETURN'),
    rule('nat', `FLANNEL-POSTRTG -s ${cluster} -d ${own}`, 'RETURN'),
    rule('nat', `FLANNEL-POSTRTG ! -s ${cluster} -d ${own}`, 'RETURN'),
    rule('nat', `FLANNEL-POSTRTG -s ${cluster} ! -d ${FAMILIES[family].multicast}`, 'MASQUERADE --random-fully'),
    rule('nat', `FLANNEL-POSTRTG ! -s ${cluster} -d ${cluster}`, 'MASQUERADE --random-fully'),
  ];
}

async function applyRules(node: NodeRef, family: Family, rules: readonly RuleLine[]): Promise<void> {
  const tables = (['filter', 'nat'] as const).flatMap((table) => [
    `*${table}`,
    ...rules.filter(([of, line]) => of === table && line.startsWith(':')).map(([, line]) => line),
    ...rules.filter(([of, line]) => of === table && !line.startsWith(':')).map(([, line]) => line),
    'COMMIT',
  ]);
  await runIn(node, [`${FAMILIES[family].iptables}-restore`, '--noflush', '--wait'], tables);
}

/** Rejects with execa's error when the program fails. */
async function runIn(node: NodeRef, argv: readonly string[], lines: readonly string[] = []): Promise<void> {
  const [file, ...args] = inNode(node, argv);
  await execa(file, args, { input: lines.map((line) => `${line}\n`).join(''), timeout: COMMAND_TIMEOUT_MS });
}
