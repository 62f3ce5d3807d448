/** The link type `bridge` and its ports (attribute numbers from linux/if_link.h, IFLA_BR_* and IFLA_BRPORT_*). */
import type { BridgeLink } from '../../model/items.ts';
import { attribute, nested, parseAttributes, text, u8 } from './attributes.ts';
import { closedSysctls, TOWARDS_PODS, writeSysctls } from './link-conf.ts';
import type { LinkType } from './link-type.ts';
import type { NetlinkMessage } from './message.ts';
import { AF, IFLA, type LinkFacts, RTM } from './rtnetlink.ts';

/** No spanning tree, no VLANs, and no snooping: no port is sent what is for a group. */
const OFF = [
  { name: 'stp_state', type: 5, bytes: 4 },
  { name: 'vlan_filtering', type: 7, bytes: 1 },
  { name: 'mcast_snooping', type: 23, bytes: 1 },
] as const;

/** A new bridge has only the last of them on. A kernel without VLANs refuses to be told that there are none. */
const ON_AT_FIRST = 'mcast_snooping';

const switchedOn = ({ data }: LinkFacts) => OFF.filter(({ type }) => data.get(type)?.some((byte) => byte !== 0));
const switchOff = (settings: readonly (typeof OFF)[number][]): readonly Buffer[] =>
  settings.map(({ type, bytes }) => attribute(type, Buffer.alloc(bytes)));

/** Every setting can be changed in place, so a bridge with its ports is never made anew. */
export const bridgeType: LinkType<BridgeLink> = {
  type: 'bridge',
  data: () => switchOff(OFF.filter(({ name }) => name === ON_AT_FIRST)),
  change: (_wanted, _found, facts) => switchOff(switchedOn(facts)),
  readBack(facts) {
    const { name, alias, mac, mtuBytes } = facts;
    if (!mac) return undefined;
    const [on] = switchedOn(facts);
    return { type: 'bridge', name, alias, mac, mtuBytes, ...(on && { altered: `has ${on.name} on` }) };
  },
  same: () => true,
  ipv4: TOWARDS_PODS,
  configure({ name }, { sysctls }) {
    const enabled = { path: `net/ipv6/conf/${name}/disable_ipv6`, value: '0' };
    writeSysctls(sysctls, [...closedSysctls(name), enabled], { needed: false });
  },
  rivalAdvice: () => undefined,
  missingAdvice: 'modprobe bridge, or set podLink to routed',
  nameAdvice: 'remove it, or set podLink to routed',
};

const LOCKED = 39;

/**
 * What a port lets through. Nothing is learned and nothing is flooded: a frame reaches the pod whose forwarding entry it has,
 * or the host, and from an isolated port the host only: no pod reaches another one but through what looks at packets. A locked port takes frames only from the address that its own entry has (since Linux 5.18; before, the kernel
 * does not know the setting and does not report it).
 */
const PORT = [
  { name: 'hairpin', type: 4, value: 1 },
  { name: 'learning', type: 8, value: 0 },
  { name: 'flood', type: 9, value: 0 },
  { name: 'proxy_arp', type: 10, value: 0 },
  { name: 'mcast_flood', type: 27, value: 0 },
  { name: 'bcast_flood', type: 30, value: 0 },
  { name: 'isolated', type: 33, value: 1 },
  { name: 'locked', type: LOCKED, value: 1 },
] as const;

/** IFLA_LINKINFO of a request that sets a port up; the link must be one already. */
export const renderPort = (): Buffer =>
  nested(
    IFLA.LINKINFO,
    text(IFLA.INFO_SLAVE_KIND, 'bridge'),
    nested(IFLA.INFO_SLAVE_DATA, ...PORT.map(({ type, value }) => u8(type, value))),
  );

/** Values by IFLA_BRPORT_*; empty for a link that is no port. */
type PortSettings = ReadonlyMap<number, Buffer>;

/** Whether the kernel says of a port that it is locked. */
export const isLockedPort = (port: PortSettings): boolean => port.get(LOCKED)?.[0] === 1;

/** How a port differs from what renderPort made of it. */
export function portAlteration(port: PortSettings): string | undefined {
  for (const { name, type, value } of PORT) {
    const found = port.get(type)?.[0];
    if (found !== undefined && found !== value) return `has ${name} ${found}`;
  }
  return undefined;
}

/** The settings of a port that the kernel announces because somebody changed one. */
export function readPort({ type, payload }: NetlinkMessage): { ifindex: number; settings: PortSettings } | undefined {
  if (type !== RTM.NEWLINK || payload[0] !== AF.BRIDGE || payload.length < 16) return undefined;
  const port = parseAttributes(payload, 16).get(IFLA.PROTINFO);
  return port && { ifindex: payload.readInt32LE(4), settings: parseAttributes(port) };
}
