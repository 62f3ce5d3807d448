/**
 * The routes inside a pod: how they are asked for, and how they are found again. An interface whose routes the main table
 * cannot hold, because the pod has another one with the same, has them in a table of its own, for what its addresses send:
 * whatever comes to them is answered by the same way, and the first interface stays the way out.
 */
import {
  bytesOf,
  FAMILIES,
  type Family,
  factsOf,
  familyOf,
  hostCidr,
  type IpAddress,
  networkOf,
} from '../../model/ip.ts';
import { DEFAULT_METRIC, type PodMtu } from '../../model/items.ts';
import { POD_GATEWAY, POD_RULE_PRIORITY, podTable } from '../../model/kernel-names.ts';
import { KernelError } from '../errors.ts';
import { attribute, nested, parseAttributes, u32, u32Of } from './attributes.ts';
import type { NetlinkClient } from './message.ts';
import {
  FRA,
  ipOf,
  type LinkFacts,
  parseRouteHeader,
  RT_SCOPE,
  RT_TABLE_MAIN,
  RTA,
  RTAX_MTU,
  RTM,
  RTNH_F_ONLINK,
  routeHeader,
} from './rtnetlink.ts';

export interface PodRoute {
  /** Undefined: the default route. */
  readonly destination: IpAddress | undefined;
  readonly gateway: IpAddress | undefined;
  readonly family: Family;
  /** RTAX_MTU. Undefined: the link's MTU holds. */
  readonly mtuBytes: number | undefined;
  readonly table: number;
}

/**
 * The gateway's own route is for tools that look for it; fe80::1 is covered by the kernel's route of link-local addresses.
 * The MTU of the other is not locked: a path that takes less still tells so.
 */
export function podRoutes(
  gateway: IpAddress,
  { mtuBytes, routeMtuBytes }: PodMtu,
  table = RT_TABLE_MAIN,
): readonly PodRoute[] {
  const family = familyOf(gateway);
  const isCovered = gateway === POD_GATEWAY.ipv6;
  const toGateway = { family, destination: gateway, gateway: undefined, mtuBytes: undefined, table };
  const narrower = routeMtuBytes < mtuBytes ? routeMtuBytes : undefined;
  return [...(isCovered ? [] : [toGateway]), { family, destination: undefined, gateway, mtuBytes: narrower, table }];
}

export function podRoutePayload(route: PodRoute, ifindex: number): Buffer {
  const { destination, gateway, family, mtuBytes, table } = route;
  const facts = FAMILIES[family];
  const header = routeHeader({
    family: facts.addressFamily,
    prefixLength: destination ? facts.bits : 0,
    table: table === RT_TABLE_MAIN ? table : RT_TABLE_UNSPEC,
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
    ...(table === RT_TABLE_MAIN ? [] : [u32(RTA.TABLE, table)]),
    ...(mtuBytes === undefined ? [] : [nested(RTA.METRICS, u32(RTAX_MTU, mtuBytes))]),
  ]);
}

/** linux/rtnetlink.h. Inside a pod Tulle is who sets the interface up, not the owner of a set of routes. */
const RTPROT_BOOT = 3;
const RTN_UNICAST = 1;
/** For a table whose number no byte holds. */
const RT_TABLE_UNSPEC = 0;

/** What this address sends finds its way by the table of its interface. */
export function sourceRulePayload(ip: IpAddress, ifindex: number): Buffer {
  const { addressFamily, bits } = factsOf(ip);
  const header = Buffer.from([addressFamily, 0, bits, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
  return Buffer.concat([
    header,
    attribute(FRA.SRC, bytesOf(ip)),
    u32(FRA.PRIORITY, POD_RULE_PRIORITY),
    u32(FRA.TABLE, podTable(ifindex)),
  ]);
}

/** linux/fib_rules.h */
const FR_ACT_TO_TBL = 1;

/** Whose packets go by the table of which interface. */
interface SourceRule {
  readonly ip: IpAddress;
  readonly ifindex: number;
}

/** The addresses of a family with such a rule. */
export async function readRuleSources(
  client: NetlinkClient,
  ifindex: number,
  family: Family,
): Promise<ReadonlySet<IpAddress>> {
  const rules = await readSourceRules(client, family);
  return new Set(rules.filter((rule) => rule.ifindex === ifindex).map(({ ip }) => ip));
}

/**
 * Such rules of interfaces that are gone. The kernel takes the routes of an interface away with it, but no rule; and once
 * it is gone, nothing on the host tells which pod it was in.
 */
export async function readStaleRules(
  client: NetlinkClient,
  live: ReadonlySet<number>,
  family: Family,
): Promise<readonly SourceRule[]> {
  return (await readSourceRules(client, family)).filter(({ ifindex }) => !live.has(ifindex));
}

async function readSourceRules(client: NetlinkClient, family: Family): Promise<readonly SourceRule[]> {
  const payload = routeHeader({ family: FAMILIES[family].addressFamily, table: RT_TABLE_UNSPEC });
  const rules = await client.dump({ type: RTM.GETRULE, payload, operation: 'list', object: 'rules' });
  return rules.flatMap(({ payload: rule }) => {
    const attributes = parseAttributes(rule, 12);
    const ip = ipOf(attributes.get(FRA.SRC));
    const ifindex = (u32Of(attributes.get(FRA.TABLE)) ?? 0) - podTable(0);
    const isOurs = ifindex > 0 && u32Of(attributes.get(FRA.PRIORITY)) === POD_RULE_PRIORITY;
    return ip && isOurs ? [{ ip, ifindex }] : [];
  });
}

/**
 * The unicast routes of the default metric over a link in one family, those of podRoutes among them, by name: those of the
 * main table, and what only the link's own table has.
 */
export async function readPodRoutes(
  client: NetlinkClient,
  link: Pick<LinkFacts, 'ifindex' | 'name'>,
  family: Family,
): Promise<ReadonlyMap<string, PodRoute>> {
  const main = await readTable(client, link, family, RT_TABLE_MAIN);
  return new Map([...(await readTable(client, link, family, podTable(link.ifindex))), ...main]);
}

async function readTable(
  client: NetlinkClient,
  { ifindex, name }: Pick<LinkFacts, 'ifindex' | 'name'>,
  family: Family,
  table: number,
): Promise<ReadonlyMap<string, PodRoute>> {
  const payload = Buffer.concat([
    routeHeader({ family: FAMILIES[family].addressFamily }),
    u32(RTA.TABLE, table),
    u32(RTA.OIF, ifindex),
  ]);
  const found = new Map<string, PodRoute>();
  for (const message of await dumpRoutes(client, payload, name)) {
    const header = parseRouteHeader(message.payload);
    const attributes = parseAttributes(message.payload, 12);
    if (header.type !== RTN_UNICAST || u32Of(attributes.get(RTA.OIF)) !== ifindex) continue;
    const destination = ipOf(attributes.get(RTA.DST));
    if (destination && header.prefixLength !== factsOf(destination).bits) continue;
    if ((u32Of(attributes.get(RTA.PRIORITY)) ?? DEFAULT_METRIC[family]) !== DEFAULT_METRIC[family]) continue;
    const metrics = attributes.get(RTA.METRICS);
    const mtuBytes = metrics && u32Of(parseAttributes(metrics).get(RTAX_MTU));
    const route = { family, destination, gateway: ipOf(attributes.get(RTA.GATEWAY)), mtuBytes, table };
    found.set(podRouteName(route), route);
  }
  return found;
}

async function dumpRoutes(client: NetlinkClient, payload: Buffer, name: string) {
  try {
    return await client.dump({ type: RTM.GETROUTE, payload, operation: 'list', object: `routes over ${name}` });
  } catch (error) {
    // Without any route ever, the table does not exist.
    if (error instanceof KernelError && error.code === 'ENOENT') return [];
    throw error;
  }
}

/** The route without its MTU, in words. */
export const podRouteName = ({ destination, gateway, family }: PodRoute): string =>
  `${destination ? `route to ${destination}` : `default route of ${family}`}${gateway ? ` via ${gateway}` : ''}`;
