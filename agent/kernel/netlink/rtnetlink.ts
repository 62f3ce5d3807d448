/** Message types, headers and attribute numbers of rtnetlink(7) that Tulle uses, each with the kernel header it comes from. */
import { FAMILIES, type Family, type IpAddress, ipFromBytes } from '../../model/ip.ts';
import { type MacAddress, macFromBytes } from '../../model/mac.ts';
import { parseAttributes, textOf, u32Of } from './attributes.ts';
import type { NetlinkMessage } from './message.ts';

/** linux/rtnetlink.h */
export const RTM = {
  NEWLINK: 16,
  DELLINK: 17,
  GETLINK: 18,
  SETLINK: 19,
  NEWADDR: 20,
  DELADDR: 21,
  GETADDR: 22,
  NEWROUTE: 24,
  DELROUTE: 25,
  GETROUTE: 26,
  NEWNEIGH: 28,
  DELNEIGH: 29,
  GETNEIGH: 30,
  NEWRULE: 32,
  DELRULE: 33,
  GETRULE: 34,
  NEWQDISC: 36,
  DELQDISC: 37,
  NEWTFILTER: 44,
  DELTFILTER: 45,
  GETTFILTER: 46,
  NEWNETCONF: 80,
} as const;

/** Multicast groups (linux/rtnetlink.h, RTNLGRP_*). */
export const GROUPS = {
  LINK: 1,
  NEIGH: 3,
  TC: 4,
  IPV4_IFADDR: 5,
  IPV4_ROUTE: 7,
  IPV6_IFADDR: 9,
  IPV6_ROUTE: 11,
  IPV4_NETCONF: 24,
  IPV6_NETCONF: 25,
} as const;

/** linux/socket.h */
export const AF = { UNSPEC: 0, INET: 2, BRIDGE: 7, INET6: 10 } as const;

/** linux/if.h */
export const IFF_UP = 0x1;
export const IFF_LOOPBACK = 0x8;

/** linux/if_link.h */
export const IFLA = {
  ADDRESS: 1,
  IFNAME: 3,
  MTU: 4,
  LINK: 5,
  MASTER: 10,
  PROTINFO: 12,
  LINKINFO: 18,
  IFALIAS: 20,
  AF_SPEC: 26,
  GROUP: 27,
  NET_NS_FD: 28,
  EXT_MASK: 29,
  NUM_TX_QUEUES: 31,
  NUM_RX_QUEUES: 32,
  LINK_NETNSID: 37,
  INFO_KIND: 1,
  INFO_DATA: 2,
  INFO_SLAVE_KIND: 4,
  INFO_SLAVE_DATA: 5,
  INET_CONF: 1,
  INET6_ADDR_GEN_MODE: 8,
  VETH_INFO_PEER: 1,
} as const;
/** Leaves the counters out of link dumps (linux/rtnetlink.h). */
export const RTEXT_FILTER_SKIP_STATS = 1 << 3;
/** The kernel makes no link-local address by itself (linux/if_link.h). */
export const ADDR_GEN_MODE_NONE = 1;

/** linux/if_addr.h */
export const IFA = { ADDRESS: 1, LOCAL: 2, FLAGS: 8 } as const;
export const IFA_F_NODAD = 0x02;
export const IFA_F_NOPREFIXROUTE = 0x200;

/** linux/neighbour.h */
export const NDA = {
  DST: 1,
  LLADDR: 2,
  CACHEINFO: 3,
  VLAN: 5,
  PORT: 6,
  VNI: 7,
  IFINDEX: 8,
  MASTER: 9,
  SRC_VNI: 11,
  NH_ID: 13,
} as const;
export const NUD_PERMANENT = 0x80;
export const NUD_NOARP = 0x40;
export const NTF_SELF = 0x02;
export const NTF_MASTER = 0x04;
export const NTF_PROXY = 0x08;

/** linux/rtnetlink.h */
export const RTA = {
  DST: 1,
  OIF: 4,
  GATEWAY: 5,
  PRIORITY: 6,
  PREFSRC: 7,
  METRICS: 8,
  MULTIPATH: 9,
  TABLE: 15,
  VIA: 18,
  ENCAP: 22,
  NH_ID: 30,
} as const;
/** Within RTA_METRICS. */
export const RTAX_MTU = 2;
export const RT_TABLE_MAIN = 254;
/** linux/fib_rules.h */
export const FRA = { SRC: 2, PRIORITY: 6, TABLE: 15 } as const;
export const RT_SCOPE = { UNIVERSE: 0, LINK: 253 } as const;
export const RTNH_F_ONLINK = 4;
/** Of an IPv6 route: a cache entry, not a route of the table. */
export const RTM_F_CLONED = 0x200;

const padded = (bytes: readonly number[]): Buffer => Buffer.from(bytes);

/** struct ifinfomsg: the header of link messages. `change` is the mask of the flags to set. */
export function linkHeader({ ifindex = 0, flags = 0, change = 0 } = {}): Buffer {
  const header = Buffer.allocUnsafe(16);
  header.writeUInt32LE(0, 0);
  header.writeInt32LE(ifindex, 4);
  header.writeUInt32LE(flags, 8);
  header.writeUInt32LE(change, 12);
  return header;
}

/** struct ifaddrmsg. */
export function addressHeader(family: number, { prefixLength = 0, flags = 0, scope = 0, ifindex = 0 } = {}): Buffer {
  const header = padded([family, prefixLength, flags & 0xff, scope, 0, 0, 0, 0]);
  header.writeUInt32LE(ifindex, 4);
  return header;
}

/** struct ndmsg. */
export function neighbourHeader(family: number, { ifindex = 0, state = 0, flags = 0 } = {}): Buffer {
  const header = padded([family, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, 0]);
  header.writeInt32LE(ifindex, 4);
  header.writeUInt16LE(state, 8);
  return header;
}

export interface RouteHeader {
  readonly family: number;
  readonly prefixLength: number;
  readonly tos: number;
  readonly table: number;
  readonly protocol: number;
  readonly scope: number;
  readonly type: number;
  readonly flags: number;
}

/** struct rtmsg. */
export function routeHeader(fields: Partial<RouteHeader> & Pick<RouteHeader, 'family'>): Buffer {
  const {
    family,
    prefixLength = 0,
    tos = 0,
    table = RT_TABLE_MAIN,
    protocol = 0,
    scope = 0,
    type = 0,
    flags = 0,
  } = fields;
  const header = padded([family, prefixLength, 0, tos, table, protocol, scope, type, 0, 0, 0, 0]);
  header.writeUInt32LE(flags, 8);
  return header;
}

export function parseRouteHeader(payload: Buffer): RouteHeader {
  const byte = (at: number) => payload.readUInt8(at);
  return {
    family: byte(0),
    prefixLength: byte(1),
    tos: byte(3),
    table: byte(4),
    protocol: byte(5),
    scope: byte(6),
    type: byte(7),
    flags: payload.readUInt32LE(8),
  };
}

/** The family of an AF_* number; undefined for those that are neither IPv4 nor IPv6. */
export function familyOfAf(addressFamily: number): Family | undefined {
  if (addressFamily === FAMILIES.ipv4.addressFamily) return 'ipv4';
  return addressFamily === FAMILIES.ipv6.addressFamily ? 'ipv6' : undefined;
}

/** A 4- or 16-byte address attribute; undefined for a missing or other one. */
export const ipOf = (payload: Buffer | undefined): IpAddress | undefined =>
  payload && (payload.length === 4 || payload.length === 16) ? ipFromBytes(payload) : undefined;

export const macOfBytes = (payload: Buffer | undefined): MacAddress | undefined =>
  payload?.length === 6 ? macFromBytes(payload) : undefined;

/** What a link message says, as far as Tulle looks at it. */
export interface LinkFacts {
  readonly ifindex: number;
  readonly name: string;
  readonly up: boolean;
  readonly loopback: boolean;
  readonly mtuBytes: number;
  readonly mac: MacAddress | undefined;
  /** IFLA_IFALIAS; '' when there is none. */
  readonly alias: string;
  /** IFLA_INFO_KIND: `vxlan`, `veth`; '' for hardware. */
  readonly kind: string;
  /** IFLA_INFO_DATA by type. */
  readonly data: ReadonlyMap<number, Buffer>;
  /** IFLA_MASTER: index of the bridge that the link is a port of; 0 for none. */
  readonly masterIfindex: number;
  /** IFLA_INFO_SLAVE_DATA by type; of a bridge's port IFLA_BRPORT_*. */
  readonly port: ReadonlyMap<number, Buffer>;
  readonly group: number;
  /** IFLA_LINK: of a veth, the index of the other end in its own namespace. */
  readonly peerIfindex: number;
  /** IPV4_DEVCONF_* values of the link, as an array of u32 in host order, number 1 first. */
  readonly ipv4Conf: Buffer | undefined;
  /** Whether IPv6 knows the link; not where the kernel has none, or the MTU is too small for it. */
  readonly inet6: boolean;
}

/** By message: each of the monitor's listeners reads those of every notification. */
const linkFacts = new WeakMap<Pick<NetlinkMessage, 'type' | 'payload'>, LinkFacts>();

/** Facts of an RTM_NEWLINK or RTM_DELLINK; undefined for other messages, a bridge port's message (AF_BRIDGE) included. */
export function readLinkFacts(message: Pick<NetlinkMessage, 'type' | 'payload'>): LinkFacts | undefined {
  const known = linkFacts.get(message);
  if (known) return known;
  const facts = parseLinkFacts(message);
  if (facts) linkFacts.set(message, facts);
  return facts;
}

function parseLinkFacts({ type, payload }: Pick<NetlinkMessage, 'type' | 'payload'>): LinkFacts | undefined {
  if ((type !== RTM.NEWLINK && type !== RTM.DELLINK) || payload.length < 16 || payload[0] !== AF.UNSPEC)
    return undefined;
  const attributes = parseAttributes(payload, 16);
  const info = attributes.get(IFLA.LINKINFO);
  const infoAttributes = info && parseAttributes(info);
  const data = infoAttributes?.get(IFLA.INFO_DATA);
  const port = infoAttributes?.get(IFLA.INFO_SLAVE_DATA);
  const flags = payload.readUInt32LE(8);
  const afSpec = attributes.get(IFLA.AF_SPEC);
  const byFamily = afSpec && parseAttributes(afSpec);
  const inet = byFamily?.get(AF.INET);
  return {
    ifindex: payload.readInt32LE(4),
    name: textOf(attributes.get(IFLA.IFNAME)) ?? '',
    up: (flags & IFF_UP) !== 0,
    loopback: (flags & IFF_LOOPBACK) !== 0,
    mtuBytes: u32Of(attributes.get(IFLA.MTU)) ?? 0,
    mac: macOfBytes(attributes.get(IFLA.ADDRESS)),
    alias: textOf(attributes.get(IFLA.IFALIAS)) ?? '',
    kind: textOf(infoAttributes?.get(IFLA.INFO_KIND)) ?? '',
    data: data ? parseAttributes(data) : new Map(),
    masterIfindex: u32Of(attributes.get(IFLA.MASTER)) ?? 0,
    port: port ? parseAttributes(port) : new Map(),
    group: u32Of(attributes.get(IFLA.GROUP)) ?? 0,
    peerIfindex: u32Of(attributes.get(IFLA.LINK)) ?? 0,
    ipv4Conf: inet && parseAttributes(inet).get(IFLA.INET_CONF),
    inet6: byFamily?.has(AF.INET6) ?? false,
  };
}
