/**
 * Every name, mark, table and protocol number that Tulle owns in the kernel. Names are functions of what they stand
 * for, so that a fresh process recognises what an earlier one made; the kernel's length limits are asserted here.
 */
import { hash as digestOf } from 'node:crypto';
import type { FamilyFacts, IpAddress } from './ip.ts';
import { type MacAddress, macOf } from './mac.ts';

/** rtm_protocol of every route that Tulle writes (linux/rtnetlink.h: values above 4 belong to user space). */
export const ROUTE_PROTOCOL = 84;

/** Inside a pod, of the interface with this index: routes of its own, where another interface has those of the main table. */
export const podTable = (ifindex: number): number => 84_000 + ifindex;
/** FRA_PRIORITY of the rules that lead to such a table: before the main table's. */
export const POD_RULE_PRIORITY = 8_400;

/** IFLA_IFALIAS of every link that Tulle makes starts with this. */
export const ALIAS_PREFIX = 'tulle:';

export const CHAIN_PREFIX = 'TULLE-';
export const SET_PREFIX = 'tulle-';
/** First word of the comment of every rule that Tulle writes, followed by the chained hash. */
export const COMMENT_PREFIX = 'tulle:';

/** IFNAMSIZ - 1 (linux/if.h). */
const LINK_NAME_MAX = 15;
/** IPSET_MAXNAMELEN - 1 (linux/netfilter/ipset/ip_set.h). */
const SET_NAME_MAX = 31;
/** XT_EXTENSION_MAXNAMELEN - 1 (linux/netfilter/x_tables.h). */
const CHAIN_NAME_MAX = 28;

export const vxlanLinkName = (vni: number): string => limited(`tulle.${vni}`, LINK_NAME_MAX);

/** The device of the backend `tun`. */
export const TUN_LINK_NAME = 'tulle-tun';

/** Every host side of a pod link, and nothing else of Tulle's, has a name of this shape. */
export const POD_LINK_NAME = /^tl[0-9a-f]{12}$/;

/** The bridge of bridged pods. */
export const BRIDGE_NAME = 'tulle0';
/** MAC of the bridge: bridged pods hold it as their gateway's, so a device that is made again must have it again. */
export const bridgeMac = (nodeName: string): MacAddress => macOf(`bridge/${nodeName}`);

/** The interfaces, as iptables patterns, by which packets of this node's pods come in. */
export const POD_INTERFACES = ['tl+', BRIDGE_NAME] as const;

/** Host side of the veth of one attachment. */
export const podLinkName = (containerId: string, ifName: string): string =>
  limited(`tl${hash(`${containerId}/${ifName}`, 12)}`, LINK_NAME_MAX);

/** IFALIASZ - 1 (linux/if.h). A pod's namespace and name may have 63 + 253 characters. */
const ALIAS_MAX = 255;

/** IFLA_IFALIAS of a pod link: `tulle:pod:<namespace>/<name>`, the end of a longer one replaced by its hash. */
export function podLinkAlias(attachmentName: string): string {
  const alias = `${ALIAS_PREFIX}pod:${attachmentName}`;
  return alias.length <= ALIAS_MAX ? alias : `${alias.slice(0, ALIAS_MAX - 17)}~${hash(alias, 16)}`;
}

/** MAC of the VTEP of a node, computed alike by the node itself and by its peers. */
export const vtepMac = (nodeName: string): MacAddress => macOf(`vtep/${nodeName}`);
export const podLinkMac = (containerId: string, ifName: string, end: 'host' | 'pod'): MacAddress =>
  macOf(`pod-link/${containerId}/${ifName}/${end}`);

/**
 * The sets of Tulle, one a family: nodes (tunnel ends), ready pods of this node, destinations never masqueraded; of Services
 * all places (ports of addresses), those that are refused or dropped, those with source ranges, and all cluster addresses.
 */
export type SetPurpose =
  | 'nodes'
  | 'ready'
  | 'direct'
  | 'svc-places'
  | 'svc-refused'
  | 'svc-dropped'
  | 'svc-guarded'
  | 'svc-cluster';
export const setName = (purpose: SetPurpose, { digit }: FamilyFacts): string =>
  limited(`${SET_PREFIX}${purpose}-${digit}`, SET_NAME_MAX);

/** The own chain that the built-in chain of the same table jumps to, as its first rule. */
export const baseChain = (builtin: string): string => limited(`${CHAIN_PREFIX}${builtin}`, CHAIN_NAME_MAX);

/** What a packet to one port of a Service meets: one chain for each way to choose among its backends. */
export const serviceChain = (identity: string): string =>
  limited(`${CHAIN_PREFIX}SVC-${hash(identity, 16)}`, CHAIN_NAME_MAX);

/**
 * The bit of a packet's mark that says: the connection that it begins is to a Service; masqueraded if it was translated, judged
 * if not. Only this bit is ever read or written (kube-proxy has 0x4000 and 0x8000, Calico and Tailscale bits from 0x10000 on,
 * Cilium 0xf00).
 */
export const MASQUERADE_MARK = 0x2000;

/** Of maps and programs, in the kernel and below the directory of pins. A program's is cut off after 15 characters. */
export const BPF_PREFIX = 'tulle_';

/** Lower-case hexadecimal digits of SHA-256. */
export const hash = (text: string, digits: number): string => digestOf('sha256', text, 'hex').slice(0, digits);

function limited(name: string, max: number): string {
  if (name.length > max) throw new RangeError(`kernel name ${name} has more than ${max} characters`);
  return name;
}

/** The next hop of every routed pod: link-local, with a permanent neighbour entry in the pod, on no link of the host's. */
export const POD_GATEWAY = { ipv4: '169.254.1.1' as IpAddress, ipv6: 'fe80::1' as IpAddress } as const;
