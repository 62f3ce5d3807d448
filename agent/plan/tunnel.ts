/** What every tunnel over UDP needs beside its device: the set of its ends, and a port that is for nodes only. */
import { FAMILIES, type Family, type IpAddress } from '../model/ip.ts';
import { type AnyItem, type ChainPart, item, type Key, keyOf, memberOf, type Rule } from '../model/items.ts';
import { baseChain, CHAIN_PREFIX, POD_INTERFACES, setName } from '../model/kernel-names.ts';
import type { Underlay } from './underlay.ts';

type Tunnel = NonNullable<Underlay['tunnel']>;

const NODES_MAX_ELEMENTS = 65_536;
const TUNNEL_CHAIN = `${CHAIN_PREFIX}TUNNEL`;
const ORDER = '10-tunnel';

const nodesSet = (family: Family) =>
  ({ name: setName('nodes', FAMILIES[family]), type: 'hash:ip', family, maxElements: NODES_MAX_ELEMENTS }) as const;

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
  ['raw', TUNNEL_CHAIN],
  ['raw', baseChain('PREROUTING')],
  ['mangle', baseChain('INPUT')],
  ['mangle', baseChain('FORWARD')],
] as const satisfies readonly (readonly [ChainPart['table'], string])[];

/** What must stand before the device is up. */
export const guardKeys = ({ family }: Tunnel): readonly Key[] =>
  GUARDS.map(([table, chain]) => keyOf('chain-part', { family, table, chain, order: ORDER, rules: [] }));

/**
 * Without these rules any unprivileged pod can send one UDP datagram that masquerade turns into a node's and that the peer
 * decapsulates, with an inner source of the sender's choice. What is accepted is not tracked: each inner connection would
 * cost an outer conntrack entry. The raw table stops most of it early. What cannot be recognised there is stopped later:
 * on INPUT what comes to another address than the tunnel's own (a second one of the node, a group, a broadcast) and what a
 * DNAT of this node sent here, which is tracked as no tunnel packet is; on FORWARD what a DNAT sends to another node.
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
    part(
      'raw',
      TUNNEL_CHAIN,
      ...dropFromPods(...to),
      ...dropFromPods(...toThisNode),
      drop('tunnel packet from a stranger', ...toThisNode, ...notFrom),
      drop('tunnel packet for a node from a stranger', ...to, ...notFrom),
      { args: [...toThisNode, '-j', 'CT', '--notrack'], comment: 'tunnel packets are not tracked' },
    ),
    part('raw', baseChain('PREROUTING'), { args: [...toPort, '-j', TUNNEL_CHAIN], comment: 'tunnel port' }),
    part('raw', baseChain('OUTPUT'), {
      args: [...toPort, ...to, '-j', 'CT', '--notrack'],
      comment: 'tunnel packets are not tracked',
    }),
    part(
      'mangle',
      baseChain('INPUT'),
      ...dropFromPods(...toPort),
      drop('tunnel packet from a stranger', ...toPort, ...notFrom),
      drop('not to the tunnel end', ...toPort, '!', '-d', local),
      drop('sent to the tunnel port by a DNAT', ...toPort, '-m', 'conntrack', '!', '--ctstate', 'UNTRACKED'),
    ),
    part(
      'mangle',
      baseChain('FORWARD'),
      ...dropFromPods(...toPort, ...to),
      drop('sent to a tunnel port by a DNAT', ...toPort, ...to, '-m', 'conntrack', '--ctstate', 'DNAT'),
    ),
    part('filter', baseChain('INPUT'), {
      args: [...toPort, ...from, '-j', 'ACCEPT'],
      comment: 'tunnel packets of nodes',
    }),
  ];
}
