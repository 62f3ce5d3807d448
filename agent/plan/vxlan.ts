/**
 * Backend `vxlan` (RFC 7348): one device, and for each peer one forwarding entry, one permanent neighbour a family and
 * one route a pod CIDR. Nothing is learned and nothing is asked for: the kernel never resolves an address of a peer.
 */
import type { Host } from '../model/host.ts';
import { factsOf, familyOf } from '../model/ip.ts';
import { type AnyItem, type ChainPart, defaultMetric, item, keyOf, type Link, type Rule } from '../model/items.ts';
import {
  ALIAS_PREFIX,
  baseChain,
  CHAIN_PREFIX,
  POD_LINK_PATTERN,
  vtepMac,
  vxlanLinkName,
} from '../model/kernel-names.ts';
import type { Backend, Peer } from './backend.ts';
import { nodesSet } from './node-network.ts';
import { nodeIpOf, type PlanSettings, type Underlay } from './underlay.ts';

export const vxlan: Backend = { name: 'vxlan', device, peer };

type Tunnel = NonNullable<Underlay['tunnel']>;

function device(underlay: Underlay, host: Host, settings: PlanSettings): readonly AnyItem[] {
  const { tunnel } = underlay;
  if (!tunnel) return [];
  const link = item('link', vxlanLink(underlay, tunnel, host, settings), portRuleKeys(tunnel));
  const addresses = underlay.podNetworks.flatMap(({ cidr, nodeIp }) =>
    nodeIp
      ? [item('address', { link: link.value.name, ip: nodeIp, prefixLength: factsOf(cidr).bits }, [link.key])]
      : [],
  );
  const set = keyOf('set', nodesSet(tunnel.family));
  const parts = portParts(tunnel, settings['vxlan.port']).map((part) => item('chain-part', part, [set]));
  return [link, ...addresses, ...parts];
}

function peer({ node, end, podCidrs }: Peer, underlay: Underlay, settings: PlanSettings): readonly AnyItem[] {
  const link = vxlanLinkName(settings['vxlan.vni']);
  const linkKey = `link ${link}` as const;
  const mac = vtepMac(node.name);
  const fdb = item('fdb', { link, mac, destination: end }, [linkKey]);
  const perCidr = podCidrs.flatMap((destination) => {
    const own = underlay.podNetworks.find(({ family }) => family === familyOf(destination));
    const gateway = nodeIpOf(destination);
    if (!own?.nodeIp || !gateway) return [];
    const neighbour = item('neighbour', { link, ip: gateway, mac }, [linkKey, fdb.key]);
    const source = keyOf('address', { link, ip: own.nodeIp, prefixLength: 0 });
    const route = item(
      'route',
      {
        destination,
        metric: defaultMetric(destination),
        type: 'unicast',
        link,
        gateway,
        onlink: true,
        source: own.nodeIp,
      },
      [neighbour.key, source],
    );
    return [neighbour, route];
  });
  return [fdb, ...perCidr];
}

/** NAT corrupts the checksum of tunnel packets that are left to the device before Linux 5.7 (commit ea64d8d6c675). */
const natBreaksChecksums = ({ kernel }: Host): boolean => kernel.major < 5 || (kernel.major === 5 && kernel.minor < 7);

function vxlanLink(underlay: Underlay, { local }: Tunnel, host: Host, settings: PlanSettings): Link {
  const offload = settings['vxlan.txChecksumOffload'];
  const vni = settings['vxlan.vni'];
  return {
    type: 'vxlan',
    name: vxlanLinkName(vni),
    alias: `${ALIAS_PREFIX}vxlan`,
    mac: vtepMac(underlay.nodeName),
    mtuBytes: underlay.mtuBytes,
    vni,
    port: settings['vxlan.port'],
    local,
    txChecksumOffload: offload === 'auto' ? !natBreaksChecksums(host) : offload === 'on',
  };
}

const TUNNEL_CHAIN = `${CHAIN_PREFIX}TUNNEL`;

/**
 * The tunnel port is for nodes only. Without this any unprivileged pod can send one UDP datagram that masquerade turns
 * into a node's and that the peer decapsulates, with an inner source of the sender's choice. What is accepted is not
 * tracked: each inner connection would cost an outer conntrack entry. The raw table stops most of it early; what cannot
 * be recognised there as meant for this node (groups, broadcasts, IPv6 anycast, a DNAT to the port) is stopped on INPUT.
 */
function portParts({ family }: Tunnel, port: number): readonly ChainPart[] {
  const toPort = ['-p', 'udp', '--dport', String(port)];
  const nodes = nodesSet(family).name;
  const from = ['-m', 'set', '--match-set', nodes, 'src'];
  const notFrom = ['-m', 'set', '!', '--match-set', nodes, 'src'];
  const to = ['-m', 'set', '--match-set', nodes, 'dst'];
  const toThisNode = ['-m', 'addrtype', '--dst-type', 'LOCAL'];
  const fromPod = ['-i', POD_LINK_PATTERN];
  const drop = (comment: string, ...args: readonly string[]): Rule => ({ args: [...args, '-j', 'DROP'], comment });
  const part = (table: ChainPart['table'], chain: string, ...rules: readonly Rule[]): ChainPart => ({
    family,
    table,
    chain,
    order: '10-tunnel',
    rules,
  });
  return [
    part(
      'raw',
      TUNNEL_CHAIN,
      drop('a pod is no tunnel end', ...fromPod, ...to),
      drop('a pod is no tunnel end', ...fromPod, ...toThisNode),
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
      drop('a pod is no tunnel end', ...toPort, ...fromPod),
      drop('tunnel packet from a stranger', ...toPort, ...notFrom),
    ),
    part('filter', baseChain('INPUT'), {
      args: [...toPort, ...from, '-j', 'ACCEPT'],
      comment: 'tunnel packets of nodes',
    }),
  ];
}

const GUARDS = [
  ['raw', TUNNEL_CHAIN],
  ['raw', baseChain('PREROUTING')],
  ['mangle', baseChain('INPUT')],
] as const satisfies readonly (readonly [ChainPart['table'], string])[];

/** The device is not up before its port is guarded. */
const portRuleKeys = ({ family }: Tunnel) =>
  GUARDS.map(([table, chain]) => keyOf('chain-part', { family, table, chain, order: '10-tunnel', rules: [] }));
