/** Links of a fake network namespace: what fake-netlink.ts knows of vxlan, veth, bridge and tun, and how a link is written in a message. */
import {
  attribute,
  nested,
  parseAttributes,
  text,
  textOf,
  u8,
  u16Be,
  u32,
  u32Of,
} from '../../agent/kernel/netlink/attributes.ts';
import type { NetlinkMessage } from '../../agent/kernel/netlink/message.ts';
import { AF, IFF_UP, IFLA, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { type MacAddress, macBytes, macFromBytes, macOf } from '../../agent/model/mac.ts';

export const VXLAN = { ID: 1, LOCAL: 4, LEARNING: 7, PORT: 15, LOCAL6: 17 } as const;
const IPV4_CONF_COUNT = 33;

const number = (bytes: 1 | 4, value: number): Buffer => {
  const buffer = Buffer.alloc(bytes);
  buffer[0] = value;
  return buffer;
};
/** IFLA_BR_*: stp_state, vlan_filtering, mcast_snooping. */
const NEW_BRIDGE: readonly (readonly [number, Buffer])[] = [
  [5, number(4, 0)],
  [7, number(1, 0)],
  [23, number(1, 1)],
];
/** IFLA_TUN_*: owner, type, packet information, virtio-net header, persistent, several queues. */
const NEW_TUN: readonly (readonly [number, Buffer])[] = [
  [1, number(4, 0)],
  [3, number(1, 1)],
  [4, number(1, 0)],
  [5, number(1, 1)],
  [6, number(1, 1)],
  [7, number(1, 0)],
];
/** IFLA_BRPORT_*: hairpin, learning, flood, proxy_arp, mcast_flood, bcast_flood, isolated, locked. */
const NEW_PORT: readonly (readonly [number, number])[] = [
  [4, 0],
  [8, 1],
  [9, 1],
  [10, 0],
  [27, 1],
  [30, 1],
  [33, 0],
  [39, 0],
];

const NEW_DATA: Readonly<Record<string, readonly (readonly [number, Buffer])[]>> = { bridge: NEW_BRIDGE, tun: NEW_TUN };

export interface FakeLink {
  readonly ifindex: number;
  name: string;
  kind: string;
  up: boolean;
  mac: MacAddress;
  mtuBytes: number;
  alias: string;
  group: number;
  /** IFLA_INFO_DATA of a vxlan, a bridge or a TUN device. */
  readonly data: Map<number, Buffer>;
  /** Index of the bridge that it is a port of. */
  masterIfindex: number;
  /** IFLA_INFO_SLAVE_DATA of a port. */
  readonly port: Map<number, Buffer>;
  /** IPV4_DEVCONF_* by number. */
  readonly ipv4Conf: Map<number, number>;
  txChecksum: boolean;
  /** Index of the other end of a veth, in its own namespace. */
  peerIfindex: number;
}

/** The attributes of a link request that describe a new link. */
export interface LinkRequest {
  readonly attributes: ReadonlyMap<number, Buffer>;
  readonly name: string | undefined;
  readonly kind: string;
  readonly data: ReadonlyMap<number, Buffer>;
  readonly port: ReadonlyMap<number, Buffer>;
  readonly up: boolean;
}

export function parseLinkRequest(payload: Buffer): LinkRequest {
  const attributes = parseAttributes(payload, 16);
  const info = parseAttributes(attributes.get(IFLA.LINKINFO) ?? Buffer.alloc(0));
  return {
    attributes,
    name: textOf(attributes.get(IFLA.IFNAME)),
    kind: textOf(info.get(IFLA.INFO_KIND)) ?? '',
    data: parseAttributes(info.get(IFLA.INFO_DATA) ?? Buffer.alloc(0)),
    port: parseAttributes(info.get(IFLA.INFO_SLAVE_DATA) ?? Buffer.alloc(0)),
    up: (payload.readUInt32LE(8) & IFF_UP) !== 0,
  };
}

/** As the kernel, neither an alias nor an AF_SPEC is taken with the creation. */
export function newLink(ifindex: number, { attributes, name, kind, data, up }: LinkRequest): FakeLink {
  const mac = attributes.get(IFLA.ADDRESS);
  return {
    ifindex,
    name: name ?? `${kind}${ifindex}`,
    kind,
    up,
    mac: mac ? macFromBytes(mac) : macOf(`fake/${ifindex}`),
    mtuBytes: u32Of(attributes.get(IFLA.MTU)) ?? 1500,
    alias: '',
    group: u32Of(attributes.get(IFLA.GROUP)) ?? 0,
    data: new Map([...(NEW_DATA[kind] ?? []), ...(kind === 'veth' ? [] : data)]),
    masterIfindex: 0,
    port: new Map(),
    ipv4Conf: new Map(),
    txChecksum: true,
    peerIfindex: 0,
  };
}

/** Makes a link a port of a bridge as a new port is, or of none. */
export function enslave(link: FakeLink, masterIfindex: number): void {
  link.masterIfindex = masterIfindex;
  link.port.clear();
  if (masterIfindex !== 0) for (const [type, value] of NEW_PORT) link.port.set(type, number(1, value));
}

export function linkMessage(link: FakeLink): NetlinkMessage {
  const conf = Buffer.alloc(4 * IPV4_CONF_COUNT);
  for (const [number, value] of link.ipv4Conf) conf.writeUInt32LE(value, 4 * (number - 1));
  const data = [...link.data].map(([type, value]) => attribute(type, value));
  const port = [...link.port].map(([type, value]) => attribute(type, value));
  const slave = [text(IFLA.INFO_SLAVE_KIND, 'bridge'), nested(IFLA.INFO_SLAVE_DATA, ...port)];
  const info = [text(IFLA.INFO_KIND, link.kind), nested(IFLA.INFO_DATA, ...data), ...(port.length > 0 ? slave : [])];
  const payload = Buffer.concat([
    linkHeader({ ifindex: link.ifindex, flags: link.up ? IFF_UP : 0 }),
    text(IFLA.IFNAME, link.name),
    u32(IFLA.MTU, link.mtuBytes),
    u32(IFLA.GROUP, link.group),
    ...(link.kind === 'tun' ? [] : [attribute(IFLA.ADDRESS, macBytes(link.mac))]),
    ...(link.alias ? [text(IFLA.IFALIAS, link.alias)] : []),
    ...(link.peerIfindex ? [u32(IFLA.LINK, link.peerIfindex)] : []),
    ...(link.masterIfindex ? [u32(IFLA.MASTER, link.masterIfindex)] : []),
    ...(link.kind ? [nested(IFLA.LINKINFO, ...info)] : []),
    nested(IFLA.AF_SPEC, nested(AF.INET, attribute(IFLA.INET_CONF, conf))),
  ]);
  return { type: RTM.NEWLINK, flags: 0, port: 0, payload };
}

/** What a vxlan device is known by: no two of a namespace have the same. */
export const tunnelOf = (data: ReadonlyMap<number, Buffer>): string =>
  `${u32Of(data.get(VXLAN.ID))}/${data.get(VXLAN.PORT)?.readUInt16BE(0)}`;

/** Attributes of a vxlan for tests that make one which is not Tulle's. */
export const vxlanData = (vni: number, port: number): Buffer =>
  nested(IFLA.INFO_DATA, u32(VXLAN.ID, vni), u16Be(VXLAN.PORT, port), u8(VXLAN.LEARNING, 1));
