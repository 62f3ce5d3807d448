/** The settings of a family that the kernel announces when they change (RTM_NEWNETCONF, linux/netconf.h). */
import { FAMILIES, type Family } from '../../model/ip.ts';
import type { Sysctl } from '../../model/items.ts';
import { parseAttributes, u32Of } from './attributes.ts';
import type { NetlinkMessage } from './message.ts';
import { familyOfAf, RTM } from './rtnetlink.ts';

export const NETCONFA = { IFINDEX: 1, FORWARDING: 2, RP_FILTER: 3 } as const;
/** NETCONFA_IFINDEX_ALL, as unsigned: the settings named `all`. */
const IFINDEX_ALL = 0xffffffff;

export interface Netconf {
  readonly family: Family;
  /** Of a link, or unsigned -1 and -2 for `all` and `default`. */
  readonly ifindex: number;
  /** Values by NETCONFA_*; a message carries only some. */
  readonly settings: ReadonlyMap<number, number>;
}

export function readNetconf({ type, payload }: NetlinkMessage): Netconf | undefined {
  const family = familyOfAf(payload[0] ?? 0);
  if (type !== RTM.NEWNETCONF || !family) return undefined;
  const settings = new Map<number, number>();
  for (const [name, value] of parseAttributes(payload, 4)) {
    const number = u32Of(value);
    if (number !== undefined) settings.set(name, number);
  }
  return { family, ifindex: settings.get(NETCONFA.IFINDEX) ?? 0, settings };
}

/** The sysctls that say whether the host forwards packets, if a message is about them. */
export function readForwarding(message: NetlinkMessage): readonly Sysctl[] {
  const netconf = readNetconf(message);
  const forwarding = netconf?.settings.get(NETCONFA.FORWARDING);
  if (!netconf || netconf.ifindex !== IFINDEX_ALL || forwarding === undefined) return [];
  const value = String(forwarding);
  const path = `net/${FAMILIES[netconf.family].sysctl}/conf/all/forwarding`;
  // Two names of one setting.
  return netconf.family === 'ipv4'
    ? [
        { path, value },
        { path: 'net/ipv4/ip_forward', value },
      ]
    : [{ path, value }];
}
