/**
 * The bridge of bridged pods: one shared fragment, in effect while the setting or an attached pod asks for it.
 *
 * Goals: pods with an ordinary address, subnet and gateway of their pod CIDR; nobody can take another's address; the gate
 * and later policy see all traffic. A bridge that floods, answers for pods, or forwards frames between them, cannot have the
 * second. So ports are isolated, and pods resolve nobody: all they send goes to the gateway, whose
 * neighbour entry is permanent, and the node routes it on, also to a pod of the same bridge. The node in turn has a route, a
 * permanent neighbour and a forwarding entry for each pod, asks for none and learns none. What comes in must carry the
 * address and the MAC of one pod, and ports let no other MAC in. A program at the bridge sees to that, by a map of what pods
 * may send with; where the kernel takes no program, rules do.
 */
import type { Fragment } from '../model/fragment.ts';
import type { Host } from '../model/host.ts';
import { type Family, families, familyOf, hostCidr, type IpAddress, prefixLengthOf } from '../model/ip.ts';
import { type AnyItem, type ChainPart, item, type Key, keyOf, type PodBridge, type PodLink } from '../model/items.ts';
import { ALIAS_PREFIX, BRIDGE_NAME, baseChain, bridgeMac, CHAIN_PREFIX } from '../model/kernel-names.ts';
import type { Underlay } from './underlay.ts';

export const BRIDGE = 'bridge';

/** The bridge as pods that are attached now see it. */
export const podBridge = ({ nodeName, podNetworks }: Underlay): PodBridge => ({
  name: BRIDGE_NAME,
  mac: bridgeMac(nodeName),
  gateways: podNetworks.flatMap(({ cidr, nodeIp }) =>
    nodeIp ? [{ ip: nodeIp, prefixLength: prefixLengthOf(cidr) }] : [],
  ),
});

/** The device stays also while the node has no pod CIDR: pods that have addresses keep their bridge. */
export function planBridge(underlay: Underlay, host: Host): Fragment {
  const { name, mac, gateways } = podBridge(underlay);
  const used = families.filter(({ family }) => family === 'ipv4' || host.ipv6);
  const { sourceProgram } = host;
  const parts = sourceProgram === undefined ? used.flatMap(({ family }) => guardParts(family)) : [];
  const guards = parts.map((part) => item('chain-part', part));
  const link = item(
    'link',
    { type: 'bridge', name, alias: `${ALIAS_PREFIX}bridge`, mac, mtuBytes: underlay.linkMtuBytes },
    guards.map(({ key }) => key),
  );
  const filters =
    sourceProgram === undefined ? [] : [item('filter', { link: name, program: sourceProgram }, [link.key])];
  const addresses = gateways.map((gateway) => item('address', { link: name, ...gateway }, [link.key]));
  return {
    id: BRIDGE,
    cause: 'pod link bridge',
    rank: '',
    items: [...guards, link, ...filters, ...addresses],
    requires: [],
    shared: true,
    problems: [],
  };
}

const SOURCES_CHAIN = `${CHAIN_PREFIX}BRIDGE`;

const sourcesPart = (family: Family, order: string) => ({ family, table: 'raw', chain: SOURCES_CHAIN, order }) as const;

/** In the raw table, before anything is tracked or done for a packet: only what a pod's own part lets return goes on. */
const guardParts = (family: Family): readonly ChainPart[] => [
  {
    ...sourcesPart(family, '90-rest'),
    rules: [{ args: ['-j', 'DROP'], comment: 'not the address of the pod that sends it' }],
  },
  {
    family,
    table: 'raw',
    chain: baseChain('PREROUTING'),
    order: '05-bridge',
    rules: [{ args: ['-i', BRIDGE_NAME, '-j', SOURCES_CHAIN], comment: 'from bridged pods' }],
  },
];

/** What decides how bridged pods are guarded. */
export type GuardFacts = Pick<Host, 'sourceProgram'>;

/** What a bridged pod needs before its port is up. */
export const bridgeKeys = (family: Family, { sourceProgram }: GuardFacts): readonly Key[] => [
  `link ${BRIDGE_NAME}`,
  ...(sourceProgram === undefined
    ? guardParts(family).map((part) => keyOf('chain-part', part))
    : [`filter ${BRIDGE_NAME}` as const]),
];

/** By which the host knows what one bridged pod sends with an address. */
export const sourceItem = (link: PodLink, ip: IpAddress, { sourceProgram }: GuardFacts): AnyItem =>
  sourceProgram === undefined ? item('chain-part', sourcePart(link, ip)) : item('source', { ip, mac: link.podMac });

const sourcePart = ({ name, podMac }: PodLink, ip: IpAddress): ChainPart => ({
  ...sourcesPart(familyOf(ip), `50-${name}`),
  rules: [
    {
      args: ['-s', hostCidr(ip), '-m', 'mac', '--mac-source', podMac, '-j', 'RETURN'],
      comment: 'a pod with its own address',
    },
  ],
});
