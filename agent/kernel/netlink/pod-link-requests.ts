/** Pure half of pod links: what is asked of the kernel on either side, and what is read back of the host side. */
import {
  bytesOf,
  type Family,
  type FamilyFacts,
  factsOf,
  families,
  familyOf,
  hostCidr,
  type IpAddress,
  networkOf,
} from '../../model/ip.ts';
import type { PodLink, Sysctl } from '../../model/items.ts';
import { POD_GATEWAY } from '../../model/kernel-names.ts';
import { macBytes } from '../../model/mac.ts';
import { addressPayload } from './address.ts';
import { attribute, nested, plainText, text, u8, u32 } from './attributes.ts';
import { type NetlinkRequest, NLM } from './message.ts';
import { neighbourPayload } from './neighbour.ts';
import { NETCONFA, type Netconf } from './netconf.ts';
import {
  ADDR_GEN_MODE_NONE,
  AF,
  IFA_F_NODAD,
  IFF_UP,
  IFLA,
  type LinkFacts,
  linkHeader,
  RT_SCOPE,
  RTA,
  RTM,
  RTNH_F_ONLINK,
  routeHeader,
} from './rtnetlink.ts';

/** The index of `lo` in every network namespace (LOOPBACK_IFINDEX, net/flow.h). */
export const LOOPBACK_IFINDEX = 1;

/** IFALIASZ - 1 (linux/if.h): longer aliases are refused. */
const ALIAS_MAX = 255;
/** The alias as the kernel holds it. Names of pods may be longer than it takes. */
export const aliasOf = ({ alias }: PodLink): string => alias.slice(0, ALIAS_MAX);

/** IPV4_DEVCONF_* (linux/ip.h) and NETCONFA_* of the same setting, with the value the host side has. */
const HOST_IPV4_CONF = [
  { name: 'forwarding', conf: 1, netconf: NETCONFA.FORWARDING, value: 1 },
  { name: 'accept_redirects', conf: 4, netconf: undefined, value: 0 },
  { name: 'send_redirects', conf: 6, netconf: undefined, value: 0 },
  // Strict reverse path: a pod cannot send with an address that is not routed to it.
  { name: 'rp_filter', conf: 8, netconf: NETCONFA.RP_FILTER, value: 1 },
] as const;

/** fe80::1 is on every host side: the pods' next hop, and the source of what the host itself sends them about neighbours. */
const HOST_LINK_LOCAL = { ip: POD_GATEWAY.ipv6, prefixLength: 64 } as const;

/** The families of a pod's addresses. */
export const familiesOf = ({ ips }: PodLink): readonly FamilyFacts[] =>
  families.filter(({ family }) => hasFamily(ips, family));
const hasFamily = (ips: readonly IpAddress[], family: Family): boolean => ips.some((ip) => familyOf(ip) === family);
export const hasIpv6 = ({ ips }: PodLink): boolean => hasFamily(ips, 'ipv6');

/** The pair, its peer at once in the pod's namespace under its final name. Neither end is up. */
export function renderPair(value: PodLink, netnsFd: number): NetlinkRequest {
  const peer = Buffer.concat([
    linkHeader(),
    text(IFLA.IFNAME, value.ifName),
    u32(IFLA.NET_NS_FD, netnsFd),
    attribute(IFLA.ADDRESS, macBytes(value.podMac)),
    u32(IFLA.MTU, value.mtuBytes),
  ]);
  const payload = Buffer.concat([
    linkHeader(),
    text(IFLA.IFNAME, value.name),
    attribute(IFLA.ADDRESS, macBytes(value.hostMac)),
    u32(IFLA.MTU, value.mtuBytes),
    nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'veth'), nested(IFLA.INFO_DATA, attribute(IFLA.VETH_INFO_PEER, peer))),
  ]);
  return { type: RTM.NEWLINK, flags: NLM.CREATE | NLM.EXCL, payload, operation: 'create', object: nameOf(value) };
}

/**
 * The mark of ownership and all settings of the host side, before it comes up. The kernel takes neither an alias nor an
 * AF_SPEC with the creation. IPv4 settings go this way because /proc/sys may be read-only; IPv6 knows only the address mode.
 */
export function renderHostMarks(value: PodLink, facts: LinkFacts, { ipv6 }: { ipv6: boolean }): NetlinkRequest {
  const settings = HOST_IPV4_CONF.map((setting) => u32(setting.conf, setting.value));
  const conf = nested(AF.INET, nested(IFLA.INET_CONF, ...settings));
  const inet6 = ipv6 ? [nested(AF.INET6, u8(IFLA.INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE))] : [];
  return setLink(value, linkHeader({ ifindex: facts.ifindex }), [
    plainText(IFLA.IFALIAS, aliasOf(value)),
    u32(IFLA.MTU, value.mtuBytes),
    // Setting an address flushes the neighbours of the link, even when it is what it was.
    ...(facts.mac === value.hostMac ? [] : [attribute(IFLA.ADDRESS, macBytes(value.hostMac))]),
    nested(IFLA.AF_SPEC, conf, ...inet6),
  ]);
}

/** Host side up, and its link-local address, which goes when a link goes down. */
export function renderHostUp(value: PodLink, ifindex: number): readonly NetlinkRequest[] {
  const up = setLink(value, linkHeader({ ifindex, flags: IFF_UP, change: IFF_UP }));
  if (!hasIpv6(value)) return [up];
  return [
    up,
    {
      ...addRequest(RTM.NEWADDR, addressPayload(HOST_LINK_LOCAL, ifindex, IFA_F_NODAD), value),
      flags: NLM.CREATE | NLM.REPLACE,
    },
  ];
}

export const renderLinkDown = (value: Pick<PodLink, 'name'>, ifindex: number): NetlinkRequest =>
  setLink(value, linkHeader({ ifindex, change: IFF_UP }));

export const renderMtu = (value: PodLink, ifindex: number): NetlinkRequest =>
  setLink(value, linkHeader({ ifindex }), [u32(IFLA.MTU, value.mtuBytes)]);

/** Everything inside the pod, in the order in which each finds what it needs. `ifindex` is that of the pod's end. */
export function renderPodSetup(value: PodLink, ifindex: number): readonly NetlinkRequest[] {
  const up = (index: number) => setLink(value, linkHeader({ ifindex: index, flags: IFF_UP, change: IFF_UP }));
  const add = (type: number, payload: Buffer) => addRequest(type, payload, value);
  return [
    up(LOOPBACK_IFINDEX),
    ...value.ips.map((ip) =>
      add(RTM.NEWADDR, addressPayload({ ip, prefixLength: factsOf(ip).bits }, ifindex, IFA_F_NODAD)),
    ),
    up(ifindex),
    ...familiesOf(value).flatMap(({ family }) => [
      add(RTM.NEWNEIGH, neighbourPayload(POD_GATEWAY[family], value.hostMac, ifindex)),
      ...podRoutes(family).map((route) => add(RTM.NEWROUTE, podRoutePayload(route, ifindex))),
    ]),
  ];
}

/** A route inside a pod. */
export interface PodRoute {
  /** Undefined: the default route. */
  readonly destination: IpAddress | undefined;
  readonly gateway: IpAddress | undefined;
  readonly family: Family;
}

/** The gateway's own route is for tools that look for it; fe80::1 is covered by the kernel's route of link-local addresses. */
export function podRoutes(family: Family): readonly PodRoute[] {
  const gateway = POD_GATEWAY[family];
  const toGateway: PodRoute[] = family === 'ipv4' ? [{ family, destination: gateway, gateway: undefined }] : [];
  return [...toGateway, { family, destination: undefined, gateway }];
}

function podRoutePayload({ destination, gateway, family }: PodRoute, ifindex: number): Buffer {
  const facts = factsOf(POD_GATEWAY[family]);
  const header = routeHeader({
    family: facts.addressFamily,
    prefixLength: destination ? facts.bits : 0,
    protocol: RTPROT_BOOT,
    scope: gateway || family === 'ipv6' ? RT_SCOPE.UNIVERSE : RT_SCOPE.LINK,
    type: RTN_UNICAST,
    flags: gateway ? RTNH_F_ONLINK : 0,
  });
  return Buffer.concat([
    header,
    ...(destination ? [attribute(RTA.DST, bytesOf(networkOf(hostCidr(destination))))] : []),
    ...(gateway ? [attribute(RTA.GATEWAY, bytesOf(gateway))] : []),
    u32(RTA.OIF, ifindex),
  ]);
}

/** linux/rtnetlink.h. Inside a pod Tulle is who sets the interface up, not the owner of a set of routes. */
const RTPROT_BOOT = 3;
export const RTN_UNICAST = 1;

/** IPv6 of the host side: what a pod says must not configure the host, and without an IPv6 pod there is none at all. */
export const hostSysctls = (value: PodLink): readonly Sysctl[] => [
  ...closedSysctls(value.name),
  { path: `net/ipv6/conf/${value.name}/disable_ipv6`, value: hasIpv6(value) ? '0' : '1' },
];

/** IPv6 of the pod's side. A namespace may start with IPv6 switched off. */
export const podSysctls = (value: PodLink): readonly Sysctl[] =>
  hasIpv6(value)
    ? [...closedSysctls(value.ifName), { path: `net/ipv6/conf/${value.ifName}/disable_ipv6`, value: '0' }]
    : [];

const closedSysctls = (link: string): readonly Sysctl[] => [
  { path: `net/ipv6/conf/${link}/accept_ra`, value: '0' },
  { path: `net/ipv6/conf/${link}/accept_redirects`, value: '0' },
];

/** How a host side differs from what Tulle makes, beyond what a PodLink says. */
export function hostAlteration({ up, kind, mac, ipv4Conf }: LinkFacts): string | undefined {
  if (kind !== 'veth' || !mac) return `is a ${kind}`;
  if (!up) return 'is down';
  for (const { name, conf, value } of HOST_IPV4_CONF) {
    const at = 4 * (conf - 1);
    const found = ipv4Conf && at + 4 <= ipv4Conf.length ? ipv4Conf.readUInt32LE(at) : value;
    if (found !== value) return `has ${name} ${found}`;
  }
  return undefined;
}

/** How a setting that the kernel announces differs from what Tulle gave a host side. */
export function confAlteration({ settings }: Netconf): string | undefined {
  for (const { name, netconf, value } of HOST_IPV4_CONF) {
    const found = netconf && settings.get(netconf);
    if (found !== undefined && found !== value) return `has ${name} ${found}`;
  }
  return undefined;
}

const nameOf = ({ name }: Pick<PodLink, 'name'>): string => `pod link ${name}`;

const setLink = (value: Pick<PodLink, 'name'>, header: Buffer, attributes: readonly Buffer[] = []): NetlinkRequest => ({
  type: RTM.SETLINK,
  payload: Buffer.concat([header, ...attributes]),
  operation: 'configure',
  object: nameOf(value),
});

const addRequest = (type: number, payload: Buffer, value: PodLink): NetlinkRequest => ({
  type,
  flags: NLM.CREATE | NLM.EXCL,
  payload,
  operation: 'configure',
  object: nameOf(value),
});
