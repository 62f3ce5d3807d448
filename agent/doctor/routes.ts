/** Routes of others, as far as the doctor asks for them. */

import { parseAttributes, u32Of } from '../kernel/netlink/attributes.ts';
import type { NetlinkClient } from '../kernel/netlink/message.ts';
import { ipOf, parseRouteHeader, RT_TABLE_MAIN, RTA, RTM, routeHeader } from '../kernel/netlink/rtnetlink.ts';
import { FAMILIES, type Family } from '../model/ip.ts';

/** Learned from router advertisements (linux/rtnetlink.h). */
export const RTPROT_RA = 9;

export interface ForeignRoute {
  readonly ifindex: number | undefined;
  /** For people. */
  readonly text: string;
}

/** The routes of the main table with one protocol number; the kernel filters. Throws KernelError. */
export async function dumpRoutes(
  client: NetlinkClient,
  family: Family,
  protocol: number,
): Promise<readonly ForeignRoute[]> {
  const { addressFamily } = FAMILIES[family];
  const messages = await client.dump({
    type: RTM.GETROUTE,
    payload: routeHeader({ family: addressFamily, table: RT_TABLE_MAIN, protocol }),
    operation: 'list',
    object: `routes of protocol ${protocol}`,
  });
  return messages.map(({ payload }) => {
    const { prefixLength } = parseRouteHeader(payload);
    const attributes = parseAttributes(payload, 12);
    const [destination, gateway] = [ipOf(attributes.get(RTA.DST)), ipOf(attributes.get(RTA.GATEWAY))];
    const ifindex = u32Of(attributes.get(RTA.OIF));
    const to = destination ? `${destination}/${prefixLength}` : 'default';
    return { ifindex, text: `route ${to}${gateway ? ` via ${gateway}` : ''} protocol ${protocol}` };
  });
}
