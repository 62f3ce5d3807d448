/** Pure half of pod links: what is asked of the kernel on either side, and what is read back of the host side. */
import { type Family, type FamilyFacts, families, familyOf, type IpAddress } from '../../model/ip.ts';
import type { PodLink, Sysctl } from '../../model/items.ts';
import { POD_GATEWAY, podTable } from '../../model/kernel-names.ts';
import { macBytes } from '../../model/mac.ts';
import { gatewayOf, podPrefixLength } from '../../model/pod-link.ts';
import { addressPayload } from './address.ts';
import { attribute, nested, plainText, text, u8, u32 } from './attributes.ts';
import { portAlteration, renderPort } from './bridge.ts';
import { closedSysctls, ipv4ConfAlteration, renderIpv4Conf } from './link-conf.ts';
import { type NetlinkRequest, NLM } from './message.ts';
import { neighbourPayload } from './neighbour.ts';
import { type PodRoute, podRoutePayload, podRoutes, sourceRulePayload } from './pod-routes.ts';
import {
  ADDR_GEN_MODE_NONE,
  AF,
  IFA_F_NODAD,
  IFA_F_NOPREFIXROUTE,
  IFF_UP,
  IFLA,
  type LinkFacts,
  linkHeader,
  RTM,
} from './rtnetlink.ts';

/** The index of `lo` in every network namespace (LOOPBACK_IFINDEX, net/flow.h). */
export const LOOPBACK_IFINDEX = 1;

/** IFALIASZ - 1 (linux/if.h): longer aliases are refused. */
const ALIAS_MAX = 255;
/**
 * The alias as the kernel holds it. Names of pods may be longer than it takes. The MTU of the pod's routes stands behind the
 * name, as the only thing of theirs that the host side shows: it is written after them, and an agent that starts reads it.
 */
export function aliasOf({ alias, mtuBytes, routeMtuBytes }: PodLink): string {
  const suffix = routeMtuBytes < mtuBytes ? ` mtu ${routeMtuBytes}` : '';
  return `${alias.slice(0, ALIAS_MAX - suffix.length)}${suffix}`;
}

/** The reverse of aliasOf. Without a number the routes have the MTU of the link. */
export function parseAlias(text: string, mtuBytes: number): Pick<PodLink, 'alias' | 'routeMtuBytes'> {
  const [, alias = text, bytes] = /^(.*) mtu (\d{1,5})$/.exec(text) ?? [];
  return { alias, routeMtuBytes: bytes === undefined ? mtuBytes : Number(bytes) };
}

/**
 * fe80::1 is on the host side of every routed pod: its next hop, and the source of what the host itself sends it about
 * neighbours. A bridge's port has no addresses.
 */
export const HOST_LINK_LOCAL = { ip: POD_GATEWAY.ipv6, prefixLength: 64 } as const;

/** The families of a pod's addresses. */
export const familiesOf = ({ ips }: PodLink): readonly FamilyFacts[] =>
  families.filter(({ family }) => hasFamily(ips, family));
const hasFamily = (ips: readonly IpAddress[], family: Family): boolean => ips.some((ip) => familyOf(ip) === family);
export const hasIpv6 = ({ ips }: PodLink): boolean => hasFamily(ips, 'ipv6');
export const hasHostLinkLocal = (value: PodLink): boolean => hasIpv6(value) && !value.bridge;

/**
 * Room for one queue each way. Left to itself the kernel makes room, and objects, for one a possible CPU, and takes all but
 * the first away again before the link is ever used (drivers/net/veth.c, veth_init_queues, since 5.15).
 */
const ONE_QUEUE = Buffer.concat([u32(IFLA.NUM_TX_QUEUES, 1), u32(IFLA.NUM_RX_QUEUES, 1)]);

/** The pair, its peer at once in the pod's namespace under its final name. Neither end is up. */
export function renderPair(value: PodLink, netnsFd: number): NetlinkRequest {
  const peer = Buffer.concat([
    linkHeader(),
    text(IFLA.IFNAME, value.ifName),
    u32(IFLA.NET_NS_FD, netnsFd),
    attribute(IFLA.ADDRESS, macBytes(value.podMac)),
    u32(IFLA.MTU, value.mtuBytes),
    ONE_QUEUE,
  ]);
  const payload = Buffer.concat([
    linkHeader(),
    text(IFLA.IFNAME, value.name),
    attribute(IFLA.ADDRESS, macBytes(value.hostMac)),
    u32(IFLA.MTU, value.mtuBytes),
    ONE_QUEUE,
    nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'veth'), nested(IFLA.INFO_DATA, attribute(IFLA.VETH_INFO_PEER, peer))),
  ]);
  return { type: RTM.NEWLINK, flags: NLM.CREATE | NLM.EXCL, payload, operation: 'create', object: nameOf(value) };
}

/**
 * The mark of ownership and all settings of the host side, before it comes up. The kernel takes neither an alias nor an
 * AF_SPEC with the creation; of IPv6 it knows only the address mode. `masterIfindex` is that of the bridge, 0 without one.
 */
export function renderHostMarks(
  value: PodLink,
  facts: LinkFacts,
  { ipv6, masterIfindex }: { ipv6: boolean; masterIfindex: number },
): NetlinkRequest {
  const inet6 = ipv6 ? [nested(AF.INET6, u8(IFLA.INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE))] : [];
  return setLink(value, linkHeader({ ifindex: facts.ifindex }), [
    plainText(IFLA.IFALIAS, aliasOf(value)),
    u32(IFLA.MTU, value.mtuBytes),
    // Setting an address flushes the neighbours of the link, even when it is what it was.
    ...(facts.mac === value.hostMac ? [] : [attribute(IFLA.ADDRESS, macBytes(value.hostMac))]),
    ...(facts.masterIfindex === masterIfindex ? [] : [u32(IFLA.MASTER, masterIfindex)]),
    nested(IFLA.AF_SPEC, renderIpv4Conf(), ...inet6),
  ]);
}

/** What the port of a bridge lets through, before it comes up. */
export const renderHostPort = (value: PodLink, ifindex: number): NetlinkRequest => ({
  ...setLink(value, linkHeader({ ifindex }), [renderPort()]),
  type: RTM.NEWLINK,
});

/** Host side up, and that of a routed pod its link-local address, which goes when a link goes down. */
export function renderHostUp(value: PodLink, ifindex: number): readonly NetlinkRequest[] {
  const up = setLink(value, linkHeader({ ifindex, flags: IFF_UP, change: IFF_UP }));
  if (!hasHostLinkLocal(value)) return [up];
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

/** The routes of an interface that cannot be the way out, and the rules that lead to them. `ifindex` is that of the pod's end. */
export function renderOwnTable(value: PodLink, ifindex: number): readonly NetlinkRequest[] {
  const gateways = familiesOf(value).map(({ family }) => gatewayOf(value, family).ip);
  const routes = gateways.flatMap((ip) => podRoutes(ip, value, podTable(ifindex)));
  return [
    ...routes.map((route) => addRequest(RTM.NEWROUTE, podRoutePayload(route, ifindex), value)),
    ...value.ips.map((ip) => addRequest(RTM.NEWRULE, sourceRulePayload(ip, ifindex), value)),
  ];
}

/** Takes such a rule away. `ifindex` is that of an interface which may be gone. */
export const renderRuleRemoval = (value: PodLink, ip: IpAddress, ifindex: number): NetlinkRequest => ({
  ...addRequest(RTM.DELRULE, sourceRulePayload(ip, ifindex), value),
  flags: 0,
});

/** A route that is there already gets its MTU; nothing else of it changes. */
export const renderRouteMtu = (value: PodLink, route: PodRoute, ifindex: number): NetlinkRequest => ({
  ...addRequest(RTM.NEWROUTE, podRoutePayload(route, ifindex), value),
  flags: NLM.REPLACE,
});

/** Everything inside the pod, in the order in which each finds what it needs. `ifindex` is that of the pod's end. */
export function renderPodSetup(value: PodLink, ifindex: number): readonly NetlinkRequest[] {
  const up = (index: number) => setLink(value, linkHeader({ ifindex: index, flags: IFF_UP, change: IFF_UP }));
  const add = (type: number, payload: Buffer) => addRequest(type, payload, value);
  // A bridged pod knows its subnet, but has no route to it: everything goes by the gateway.
  const flags = value.bridge ? IFA_F_NODAD | IFA_F_NOPREFIXROUTE : IFA_F_NODAD;
  return [
    up(LOOPBACK_IFINDEX),
    ...value.ips.map((ip) =>
      add(RTM.NEWADDR, addressPayload({ ip, prefixLength: podPrefixLength(value, ip) }, ifindex, flags)),
    ),
    up(ifindex),
    ...familiesOf(value)
      .map(({ family }) => gatewayOf(value, family))
      .flatMap(({ ip, mac }) => [
        add(RTM.NEWNEIGH, neighbourPayload(ip, mac, ifindex)),
        ...podRoutes(ip, value).map((route) => add(RTM.NEWROUTE, podRoutePayload(route, ifindex))),
      ]),
  ];
}

/** IPv6 of the host side: without a routed IPv6 pod there is none at all. */
export const hostSysctls = (value: PodLink): readonly Sysctl[] => [
  ...closedSysctls(value.name),
  { path: `net/ipv6/conf/${value.name}/disable_ipv6`, value: hasHostLinkLocal(value) ? '0' : '1' },
];

/** Of the pod's side. A namespace may start with IPv6 switched off. */
export const podSysctls = (value: PodLink): readonly Sysctl[] => [
  ...(value.bridge ? ['all', value.ifName].map(noRedirects) : []),
  ...(hasIpv6(value)
    ? [...closedSysctls(value.ifName), { path: `net/ipv6/conf/${value.ifName}/disable_ipv6`, value: '0' }]
    : []),
];

/** Another pod of the bridge could forge a redirect of the gateway. IPv4 obeys when either the link or `all` says so. */
const noRedirects = (link: string): Sysctl => ({ path: `net/ipv4/conf/${link}/accept_redirects`, value: '0' });

/** How a host side differs from what Tulle makes, beyond what a PodLink says. */
export function hostAlteration(facts: LinkFacts): string | undefined {
  if (facts.kind !== 'veth' || !facts.mac) return `is a ${facts.kind}`;
  if (!facts.up) return 'is down';
  return ipv4ConfAlteration(facts) ?? portAlteration(facts.port);
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
