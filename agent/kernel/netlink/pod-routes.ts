/** The routes inside a pod: how they are asked for, and how they are found again. */
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
import { POD_GATEWAY } from '../../model/kernel-names.ts';
import { KernelError } from '../errors.ts';
import { attribute, nested, parseAttributes, u32, u32Of } from './attributes.ts';
import type { NetlinkClient } from './message.ts';
import {
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
}

/**
 * The gateway's own route is for tools that look for it; fe80::1 is covered by the kernel's route of link-local addresses.
 * The MTU of the other is not locked: a path that takes less still tells so.
 */
export function podRoutes(gateway: IpAddress, { mtuBytes, routeMtuBytes }: PodMtu): readonly PodRoute[] {
  const family = familyOf(gateway);
  const isCovered = gateway === POD_GATEWAY.ipv6;
  const toGateway = { family, destination: gateway, gateway: undefined, mtuBytes: undefined };
  const narrower = routeMtuBytes < mtuBytes ? routeMtuBytes : undefined;
  return [...(isCovered ? [] : [toGateway]), { family, destination: undefined, gateway, mtuBytes: narrower }];
}

export function podRoutePayload({ destination, gateway, family, mtuBytes }: PodRoute, ifindex: number): Buffer {
  const facts = FAMILIES[family];
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
    ...(mtuBytes === undefined ? [] : [nested(RTA.METRICS, u32(RTAX_MTU, mtuBytes))]),
  ]);
}

/** linux/rtnetlink.h. Inside a pod Tulle is who sets the interface up, not the owner of a set of routes. */
const RTPROT_BOOT = 3;
const RTN_UNICAST = 1;

/** The unicast routes of the default metric over a link in one family, those of podRoutes among them, by name. */
export async function readPodRoutes(
  client: NetlinkClient,
  { ifindex, name }: Pick<LinkFacts, 'ifindex' | 'name'>,
  family: Family,
): Promise<ReadonlyMap<string, PodRoute>> {
  const payload = Buffer.concat([
    routeHeader({ family: FAMILIES[family].addressFamily }),
    u32(RTA.TABLE, RT_TABLE_MAIN),
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
    const route = { family, destination, gateway: ipOf(attributes.get(RTA.GATEWAY)), mtuBytes };
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
