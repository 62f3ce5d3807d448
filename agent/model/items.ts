/**
 * The smallest things that are replaced as a whole in the kernel. A new kind needs a row in Objects, in APPLY_ORDER and
 * in ARCHITECTURE.md's ownership table, and one driver.
 */
import { type Cidr, type Family, factsOf, familyOf, type IpAddress } from './ip.ts';
import type { MacAddress } from './mac.ts';
import { type BackendSet, type Frontend, frontendId, type Protocol } from './services.ts';

/** One file below /proc/sys, as written and read (trimmed). */
export interface Sysctl {
  /** Path with slashes, relative to /proc/sys: `net/ipv4/ip_forward`. */
  readonly path: string;
  readonly value: string;
}

/** A device of the node's own. A backend that needs another type adds it to this union. */
export type Link = VxlanLink | BridgeLink | TunLink;

export interface VxlanLink {
  readonly type: 'vxlan';
  readonly name: string;
  /** IFLA_IFALIAS; starts with `tulle:`. */
  readonly alias: string;
  readonly mac: MacAddress;
  readonly mtuBytes: number;
  readonly vni: number;
  /** UDP destination port. */
  readonly port: number;
  /** Source address of the outer packets. */
  readonly local: IpAddress;
  /** False switches the device's transmit checksum offload off (kernels whose NAT breaks it). */
  readonly txChecksumOffload: boolean;
}

/** Joins the host sides of bridged pods. It neither learns nor floods: what its ports may do is said by the pod links. */
export interface BridgeLink {
  readonly type: 'bridge';
  readonly name: string;
  /** IFLA_IFALIAS; starts with `tulle:`. */
  readonly alias: string;
  readonly mac: MacAddress;
  readonly mtuBytes: number;
}

/**
 * A persistent TUN device: packets of the node enter and leave user space here. It has no MAC address, and no carrier while
 * nobody has it open; its addresses and routes stay.
 */
export interface TunLink {
  readonly type: 'tun';
  readonly name: string;
  /** IFLA_IFALIAS; starts with `tulle:`. */
  readonly alias: string;
  readonly mac?: undefined;
  readonly mtuBytes: number;
}

/**
 * How large packets of a pod may be. Its link takes whatever the underlay carries: answers to the node's own address are as
 * large. What the pod sends may have to fit into a tunnel, which its default routes say.
 */
export interface PodMtu {
  /** Of both ends of the pair. */
  readonly mtuBytes: number;
  /** RTAX_MTU of the default routes inside the pod; at most mtuBytes, and not written when it is the same. */
  readonly routeMtuBytes: number;
}

/** Both ends of one pod's veth pair. Inside the pod it is written at creation, and again only to follow the MTU. */
export interface PodLink extends PodMtu {
  /** Host side; see podLinkName. */
  readonly name: string;
  /** `tulle:pod:<namespace>/<name>`, or `tulle:pod:<container id>` for a plain container. */
  readonly alias: string;
  readonly hostMac: MacAddress;
  readonly podMac: MacAddress;
  /** Interface name inside the pod. */
  readonly ifName: string;
  /** Path of the pod's network namespace, and its identity (st_dev, st_ino) as decimal text. */
  readonly netns: { readonly path: string; readonly device: string; readonly inode: string };
  /** The pod's addresses, in the order of the result. */
  readonly ips: readonly IpAddress[];
  /** Present: the host side is a port of this bridge. Absent: the pod is routed. */
  readonly bridge?: PodBridge;
}

/** The bridge as its pods see it. */
export interface PodBridge {
  readonly name: string;
  readonly mac: MacAddress;
  /** The node's own address in each family of the pod network, with the prefix length of the pod CIDR. */
  readonly gateways: readonly { readonly ip: IpAddress; readonly prefixLength: number }[];
}

export interface Address {
  readonly link: string;
  readonly ip: IpAddress;
  readonly prefixLength: number;
}

/** A route of the main table with protocol ROUTE_PROTOCOL. */
export interface Route {
  readonly destination: Cidr;
  /** RTA_PRIORITY; part of the identity. IPv6 has no 0: its default is 1024. */
  readonly metric: number;
  readonly type: 'unicast' | 'unreachable' | 'blackhole';
  /** Absent for unreachable and blackhole. */
  readonly link?: string;
  readonly gateway?: IpAddress;
  /** RTNH_F_ONLINK: the gateway is reached on `link` whatever the routes say. */
  readonly onlink?: boolean;
  /** RTA_PREFSRC. */
  readonly source?: IpAddress;
}

/** What one bridged pod may send with. */
export interface Source {
  readonly ip: IpAddress;
  readonly mac: MacAddress;
}

/** At the ingress of an own bridge: a program that lets nothing in but what pods send with their sources. */
export interface Filter {
  readonly link: string;
  /** Build of the program. */
  readonly program: string;
}

/** A permanent neighbour entry on an own link. */
export interface Neighbour {
  readonly link: string;
  readonly ip: IpAddress;
  readonly mac: MacAddress;
}

/** A lasting forwarding entry: frames to `mac` leave by this VXLAN link to a tunnel end, or by this port of a bridge. */
export interface Fdb {
  readonly link: string;
  readonly mac: MacAddress;
  /** Tunnel end; absent on a bridge's port. */
  readonly destination?: IpAddress;
}

/** How a large packet travels: as datagrams that fit the path each, or in one that IP fragments. */
export const TUN_CARRIAGES = ['segments', 'whole'] as const;
export type TunCarriage = (typeof TUN_CARRIAGES)[number];

/** How datagrams of the tunnel are sealed; see docs/tun.md. */
export const TUN_ENCRYPTIONS = ['none', 'aes-gcm', 'chacha20-poly1305'] as const;
export type TunEncryption = (typeof TUN_ENCRYPTIONS)[number];

/** What carries packets between a TUN device and a UDP socket: threads of this process. */
export interface TunPathItem {
  /** The TUN device. */
  readonly link: string;
  /** Own address of the tunnel; the socket is bound to it. */
  readonly local: IpAddress;
  /** UDP port of the socket, and of all peers. */
  readonly port: number;
  readonly carriage: TunCarriage;
  readonly encryption: TunEncryption;
  /** File of the secret that all nodes share; there with encryption. */
  readonly secretFile?: string;
}

/** Another node as a TUN path knows it: what is for its pods goes to its end, and only from there it comes with their addresses. */
export interface TunPeerItem {
  /** Name of the Node. */
  readonly node: string;
  /** Tunnel end. */
  readonly end: IpAddress;
  readonly podCidrs: readonly Cidr[];
}

/** Header of an ip set. */
export interface IpSet {
  readonly name: string;
  readonly type: 'hash:ip' | 'hash:net' | 'hash:ip,port';
  readonly family: Family;
  readonly maxElements: number;
}

/**
 * One member of a set; `hash:ip` and `hash:ip,port` sets hold /32 and /128 only. A /0 is written as two halves by the driver.
 */
export interface Member {
  readonly set: string;
  readonly entry: Cidr;
  /** In `hash:ip,port` sets, and only there. */
  readonly port?: MemberPort;
}

export interface MemberPort {
  readonly protocol: Protocol;
  /** 1 to 65535. */
  readonly number: number;
}

export type Table = 'raw' | 'mangle' | 'nat' | 'filter';

/** iptables arguments after `-A CHAIN`, one token each, without comment. Tokens hold only [A-Za-z0-9._:/,!+[]-]. */
export interface Rule {
  readonly args: readonly string[];
  /** Why the rule exists, for people. Other characters than [A-Za-z0-9./:_-] are replaced when rendered. */
  readonly comment: string;
}

/**
 * Part of an own chain. A chain holds the rules of all its parts, sorted by `order`, and is rewritten whole when one
 * changes. A chain named `TULLE-<BUILTIN>` is jumped to from that built-in chain, as its first rule.
 */
export interface ChainPart {
  readonly family: Family;
  readonly table: Table;
  readonly chain: string;
  readonly order: string;
  readonly rules: readonly Rule[];
}

/** Where programs of Tulle run: at calls of sockets, by the names that bpftool gives the attach types. */
export const SOCKET_HOOKS = [
  'connect4',
  'connect6',
  'sendmsg4',
  'sendmsg6',
  'recvmsg4',
  'recvmsg6',
  'getpeername4',
  'getpeername6',
] as const;
export type SocketHook = (typeof SOCKET_HOOKS)[number];

/** A program at the root of the node's cgroups. */
export interface Attachment {
  readonly hook: SocketHook;
  /** Of which object with which maps it is: what the kernel runs must be what this agent has (BpfStore.build). */
  readonly build: string;
}

export interface Objects {
  sysctl: Sysctl;
  link: Link;
  address: Address;
  source: Source;
  filter: Filter;
  set: IpSet;
  member: Member;
  'chain-part': ChainPart;
  'pod-link': PodLink;
  fdb: Fdb;
  'tun-path': TunPathItem;
  'tun-peer': TunPeerItem;
  neighbour: Neighbour;
  route: Route;
  'backend-set': BackendSet;
  frontend: Frontend;
  attachment: Attachment;
}

export type Kind = keyof Objects;
/** `<kind> <identity>`, readable in logs and in `tulle diff`. */
export type Key<K extends Kind = Kind> = K extends Kind ? `${K} ${string}` : never;

/** Creates and updates run in this order within a lane; removals in the reverse, after them. */
export const APPLY_ORDER: readonly Kind[] = [
  'sysctl',
  'link',
  'address',
  'source',
  'filter',
  'set',
  'member',
  'chain-part',
  'pod-link',
  'fdb',
  'tun-path',
  'tun-peer',
  'neighbour',
  'route',
  'backend-set',
  'frontend',
  'attachment',
];

const identity: { readonly [K in Kind]: (value: Objects[K]) => string } = {
  sysctl: ({ path }) => path,
  link: ({ name }) => name,
  address: ({ link, ip }) => `${link} ${ip}`,
  source: ({ ip, mac }) => `${ip} ${mac}`,
  filter: ({ link }) => link,
  set: ({ name }) => name,
  member: ({ set, entry, port }) =>
    port === undefined ? `${set} ${entry}` : `${set} ${entry},${port.protocol}:${port.number}`,
  'chain-part': ({ family, table, chain, order }) => `${family} ${table} ${chain} ${order}`,
  'pod-link': ({ name }) => name,
  fdb: ({ link, mac }) => `${link} ${mac}`,
  'tun-path': ({ link }) => link,
  'tun-peer': ({ node }) => node,
  neighbour: ({ link, ip }) => `${link} ${ip}`,
  route: ({ destination, metric }) => `${destination} metric ${metric}`,
  'backend-set': ({ id }) => id,
  frontend: frontendId,
  attachment: ({ hook }) => hook,
};

export const keyOf = <K extends Kind>(kind: K, value: Objects[K]): Key<K> =>
  `${kind} ${identity[kind](value)}` as Key<K>;

/** Asked several times of each of hundreds of thousands of keys: gives the kind's own string instead of cutting one out. */
export function kindOf<K extends Kind>(key: Key<K>): K {
  const length = key.indexOf(' ');
  for (const kind of KINDS_BY_LENGTH[length] ?? []) if (key.startsWith(kind)) return kind as K;
  return key.slice(0, length) as K;
}

const KINDS_BY_LENGTH: readonly (readonly Kind[])[] = Array.from(
  { length: Math.max(...APPLY_ORDER.map((kind) => kind.length)) + 1 },
  (_, length) => APPLY_ORDER.filter((kind) => kind.length === length),
);

export interface Item<K extends Kind = Kind> {
  readonly kind: K;
  readonly key: Key<K>;
  readonly value: Objects[K];
  /** Not written before all of these are in the kernel. */
  readonly needs: readonly Key[];
}
/** Any item, discriminated by kind. */
export type AnyItem = { [K in Kind]: Item<K> }[Kind];

/** The one constructor of items, so that key and value cannot disagree. */
export function item<K extends Kind>(kind: K, value: Objects[K], needs: readonly Key[] = []): Item<K> {
  return Object.freeze({ kind, key: keyOf(kind, value), value: Object.freeze(value) as Objects[K], needs });
}

/** The route metric that the kernel reports for a route written without one. */
export const defaultMetric = (destination: Cidr): number => DEFAULT_METRIC[familyOf(destination)];
export const DEFAULT_METRIC = { ipv4: 0, ipv6: 1024 } as const;

/** A single address as the set member that stands for it. */
export const memberOf = (set: string, ip: IpAddress): Member => ({ set, entry: `${ip}/${factsOf(ip).bits}` as Cidr });
