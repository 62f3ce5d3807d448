/**
 * Forwarding entries of own VXLAN devices and of pod links that are ports of a bridge. Whatever stands there beside them is
 * drift: nothing learns on these devices.
 */
import { bytesOf, type IpAddress } from '../../model/ip.ts';
import { macBytes } from '../../model/mac.ts';
import type { Change } from '../../reconcile/types.ts';
import { attribute, parseAttributes, u32 } from './attributes.ts';
import { isNodeLink, isPodLink, type Links } from './links.ts';
import { type NetlinkMessage, type NetlinkRequest, NLM } from './message.ts';
import type { Found, IfindexOf, ObjectKind } from './object-driver.ts';
import {
  AF,
  ipOf,
  type LinkFacts,
  macOfBytes,
  NDA,
  NTF_MASTER,
  NTF_SELF,
  NUD_NOARP,
  NUD_PERMANENT,
  neighbourHeader,
  RTM,
} from './rtnetlink.ts';

export const fdbKind: ObjectKind<'fdb'> = {
  kind: 'fdb',
  same: (a, b) => a.link === b.link && a.mac === b.mac && a.destination === b.destination,
  linksOf: ({ link }) => [link],
  render: renderFdb,
  dumps: (links) => [...links.filter(isVxlan).map(dumpOfVxlan), ...links.filter(isBridge).map(dumpOfPorts)],
  readBack: readFdb,
  isGone: ({ type }) => type === RTM.DELNEIGH,
};

const isVxlan = (link: LinkFacts): boolean => isNodeLink(link) && link.kind === 'vxlan';
const isBridge = (link: LinkFacts): boolean => isNodeLink(link) && link.kind === 'bridge';

/**
 * A removal names no destination: it takes the entry with all of its destinations. What bridge(8) calls `static` is an entry
 * that needs no confirmation (NUD_NOARP); a permanent one of a bridge leads to the host itself.
 */
function renderFdb(change: Change<'fdb'>, ifindexOf: IfindexOf): NetlinkRequest {
  const isRemoval = change.action === 'remove';
  const value = isRemoval ? change.from : change.item.value;
  const { destination } = value;
  const state = destination === undefined ? NUD_NOARP : NUD_PERMANENT;
  const payload = Buffer.concat([
    neighbourHeader(AF.BRIDGE, {
      ifindex: ifindexOf(value.link),
      state: isRemoval ? 0 : state,
      flags: destination === undefined ? NTF_MASTER : NTF_SELF,
    }),
    attribute(NDA.LLADDR, macBytes(value.mac)),
    ...(isRemoval || destination === undefined ? [] : [attribute(NDA.DST, bytesOf(destination))]),
  ]);
  return {
    type: isRemoval ? RTM.DELNEIGH : RTM.NEWNEIGH,
    flags: isRemoval ? 0 : NLM.CREATE | NLM.REPLACE,
    payload,
    operation: change.action,
    object: `fdb entry ${value.mac} on ${value.link}`,
  };
}

const dumpOf = ({ name }: LinkFacts, filter: Buffer): NetlinkRequest => ({
  type: RTM.GETNEIGH,
  payload: Buffer.concat([neighbourHeader(AF.BRIDGE), filter]),
  operation: 'list',
  object: `fdb of ${name}`,
});
const dumpOfVxlan = (link: LinkFacts): NetlinkRequest => dumpOf(link, u32(NDA.IFINDEX, link.ifindex));
const dumpOfPorts = (link: LinkFacts): NetlinkRequest => dumpOf(link, u32(NDA.MASTER, link.ifindex));

/** Of an entry that has no tunnel end of its own (a next hop group). */
const NO_DESTINATION = '0.0.0.0' as IpAddress;

function readFdb({ type, payload }: NetlinkMessage, links: Links): Found<'fdb'> | undefined {
  if ((type !== RTM.NEWNEIGH && type !== RTM.DELNEIGH) || payload.length < 12) return undefined;
  if (payload[0] !== AF.BRIDGE) return undefined;
  const link = links.byIndex(payload.readInt32LE(4));
  const attributes = parseAttributes(payload, 12);
  const mac = macOfBytes(attributes.get(NDA.LLADDR));
  const isSelf = (payload.readUInt8(10) & NTF_SELF) !== 0;
  const state = payload.readUInt16LE(8);
  if (!link || !mac) return undefined;
  if (isVxlan(link) && isSelf) {
    const destination = ipOf(attributes.get(NDA.DST));
    if (!destination && isEcho(attributes)) return undefined;
    const altered = alterationOf(state, attributes);
    return { link: link.name, mac, destination: destination ?? NO_DESTINATION, ...(altered && { altered }) };
  }
  if (!isPodLink(link) || isSelf || isOfBridgeItself(state, attributes)) return undefined;
  return { link: link.name, mac, ...(state !== NUD_NOARP && { altered: `has the state ${state}` }) };
}

/**
 * After the device has told of a change, rtnetlink of Linux 6.1 tells of it again, in its own words and without the tunnel end
 * (rtnl_fdb_notify; Linux 6.18 does not). Taken for the entry, it would never be as it should. The device's own words always have ages.
 */
const isEcho = (attributes: ReadonlyMap<number, Buffer>): boolean => !attributes.has(NDA.CACHEINFO);

/** The kernel's own entries for the addresses of the ports, and those that somebody made for a VLAN. */
const isOfBridgeItself = (state: number, attributes: ReadonlyMap<number, Buffer>): boolean =>
  (state & NUD_PERMANENT) !== 0 || attributes.has(NDA.VLAN);

/** The kernel reports a permanent entry as permanent and not resolvable. */
function alterationOf(state: number, attributes: ReadonlyMap<number, Buffer>): string | undefined {
  if ((state & ~NUD_NOARP) !== NUD_PERMANENT) return `has the state ${state}`;
  for (const name of ['PORT', 'VNI', 'IFINDEX', 'SRC_VNI', 'NH_ID'] as const) {
    if (attributes.has(NDA[name])) return `has its own ${name}`;
  }
  return undefined;
}
