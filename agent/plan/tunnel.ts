/** What every tunnel over UDP needs beside its device: the node's addresses, the set of its ends, and a port that is for nodes only. */
import type { Node } from '../model/cluster.ts';
import { FAMILIES, type Family, factsOf, type IpAddress } from '../model/ip.ts';
import { type AnyItem, type ChainPart, item, type Key, keyOf, memberOf, type Rule } from '../model/items.ts';
import { BRIDGE_NAME, baseChain, CHAIN_PREFIX, POD_INTERFACES, setName } from '../model/kernel-names.ts';
import type { PeerPlan } from './backend.ts';
import type { PlanSettings, Underlay } from './underlay.ts';

export type Tunnel = NonNullable<Underlay['tunnel']>;

const NODES_MAX_ELEMENTS = 65_536;
const TUNNEL_CHAIN = `${CHAIN_PREFIX}TUNNEL`;
const NODES_CHAIN = `${CHAIN_PREFIX}NODES`;
const ORDER = '10-tunnel';

const nodesSet = (family: Family) =>
  ({ name: setName('nodes', FAMILIES[family]), type: 'hash:ip', family, maxElements: NODES_MAX_ELEMENTS }) as const;

/** The node's own addresses in the pod network on a tunnel's device; with bridged pods they are on the bridge. */
export const nodeAddresses = (link: string, { podNetworks }: Underlay, { podLink }: PlanSettings): readonly AnyItem[] =>
  podNetworks.flatMap(({ cidr, nodeIp }) =>
    nodeIp && podLink !== 'bridge'
      ? [item('address', { link, ip: nodeIp, prefixLength: factsOf(cidr).bits }, [`link ${link}`])]
      : [],
  );

/** The key of such an address, wherever it is. */
export const nodeAddressKey = (link: string, nodeIp: IpAddress, { podLink }: PlanSettings): Key =>
  keyOf('address', { link: podLink === 'bridge' ? BRIDGE_NAME : link, ip: nodeIp, prefixLength: 0 });

/** A peer that no tunnel of this family leads to. */
export const withoutEnd = ({ name }: Node, { family }: Tunnel): PeerPlan => ({
  items: [],
  problems: [`Node ${name} has no ${family} InternalIP for the tunnel: its pods cannot be reached`],
});

/** A tunnel end as a member of the set of nodes. */
export function endItem(end: IpAddress, family: Family): AnyItem {
  const set = nodesSet(family);
  return item('member', memberOf(set.name, end), [keyOf('set', set)]);
}

/** The set with this node's own end, and the rules that guard the port. */
export function tunnelItems({ family, local }: Tunnel, port: number): readonly AnyItem[] {
  const set = item('set', nodesSet(family));
  const parts = portParts(family, local, port).map((part) => item('chain-part', part, [set.key]));
  return [set, endItem(local, family), ...parts];
}

const GUARDS = [
  ['raw', NODES_CHAIN],
  ['raw', TUNNEL_CHAIN],
  ['raw', baseChain('PREROUTING')],
  ['mangle', baseChain('INPUT')],
  ['mangle', TUNNEL_CHAIN],
  ['mangle', baseChain('FORWARD')],
] as const satisfies readonly (readonly [ChainPart['table'], string])[];

/** What must stand before the device is up. */
export const guardKeys = ({ family }: Tunnel): readonly Key[] =>
  GUARDS.map(([table, chain]) => keyOf('chain-part', { family, table, chain, order: ORDER, rules: [] }));

/**
 * Without these rules any unprivileged pod can send one UDP datagram that masquerade turns into a node's and that the peer
 * decapsulates, with an inner source of the sender's choice. Only what a node sends to this tunnel's own end is not tracked:
 * each inner connection would cost an outer conntrack entry. So what is tracked when it comes to INPUT did not pass the raw
 * table, or came through a DNAT of this node, and goes no further; nor does what is sent to another address than the
 * tunnel's own (a second one of the node, a group, a broadcast), which raw cannot tell. On FORWARD stops what a DNAT sends
 * to another node. Each packet of the tunnel pays for each rule, hence their order, and that none is said twice.
 */
function portParts(family: Family, local: IpAddress, port: number): readonly ChainPart[] {
  const toPort = ['-p', 'udp', '--dport', String(port)];
  const nodes = nodesSet(family).name;
  const from = ['-m', 'set', '--match-set', nodes, 'src'];
  const notFrom = ['-m', 'set', '!', '--match-set', nodes, 'src'];
  const to = ['-m', 'set', '--match-set', nodes, 'dst'];
  const toThisNode = ['-m', 'addrtype', '--dst-type', 'LOCAL'];
  const drop = (comment: string, ...args: readonly string[]): Rule => ({ args: [...args, '-j', 'DROP'], comment });
  const dropFromPods = (...args: readonly string[]) =>
    POD_INTERFACES.map((pattern) => drop('a pod is no tunnel end', ...args, '-i', pattern));
  const part = (table: ChainPart['table'], chain: string, ...rules: readonly Rule[]): ChainPart => ({
    family,
    table,
    chain,
    order: ORDER,
    rules,
  });
  return [
    part('raw', NODES_CHAIN, { args: ['-j', 'CT', '--notrack'], comment: 'tunnel packets are not tracked' }),
    part(
      'raw',
      TUNNEL_CHAIN,
      ...dropFromPods(...to),
      ...dropFromPods(...toThisNode),
      { args: ['-d', local, ...from, '-g', NODES_CHAIN], comment: 'from a node to the tunnel end' },
      drop('tunnel packet from a stranger', ...toThisNode, ...notFrom),
      drop('tunnel packet for a node from a stranger', ...to, ...notFrom),
    ),
    part('raw', baseChain('PREROUTING'), { args: [...toPort, '-j', TUNNEL_CHAIN], comment: 'tunnel port' }),
    part('raw', baseChain('OUTPUT'), {
      args: [...toPort, ...to, '-j', 'CT', '--notrack'],
      comment: 'tunnel packets are not tracked',
    }),
    part(
      'mangle',
      baseChain('INPUT'),
      drop('not to the tunnel end', ...toPort, '!', '-d', local),
      drop('not from a node, or by a DNAT', ...toPort, '-m', 'conntrack', '!', '--ctstate', 'UNTRACKED'),
    ),
    part(
      'mangle',
      TUNNEL_CHAIN,
      ...dropFromPods(...to),
      drop('sent to a tunnel port by a DNAT', ...to, '-m', 'conntrack', '--ctstate', 'DNAT'),
    ),
    part('mangle', baseChain('FORWARD'), { args: [...toPort, '-j', TUNNEL_CHAIN], comment: 'tunnel port' }),
    part('filter', baseChain('INPUT'), {
      args: [...toPort, '-d', local, '-j', 'ACCEPT'],
      comment: 'tunnel packets that came this far are from nodes',
    }),
  ];
}
