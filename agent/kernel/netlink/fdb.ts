/** Forwarding entries of own VXLAN devices. Whatever stands there beside them is drift: nothing learns on these devices. */
import { bytesOf, type IpAddress } from '../../model/ip.ts';
import { macBytes } from '../../model/mac.ts';
import type { Change } from '../../reconcile/types.ts';
import { attribute, parseAttributes, u32 } from './attributes.ts';
import { isNodeLink, type Links } from './links.ts';
import { type NetlinkMessage, type NetlinkRequest, NLM } from './message.ts';
import type { Found, IfindexOf, ObjectKind } from './object-driver.ts';
import {
  AF,
  ipOf,
  type LinkFacts,
  macOfBytes,
  NDA,
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
  dumps: (links) => links.filter(isVxlan).map(dumpOf),
  readBack: readFdb,
  isGone: ({ type }) => type === RTM.DELNEIGH,
};

const isVxlan = (link: LinkFacts): boolean => isNodeLink(link) && link.kind === 'vxlan';

/** A removal names no destination: it takes the entry with all of its destinations. */
function renderFdb(change: Change<'fdb'>, ifindexOf: IfindexOf): NetlinkRequest {
  const isRemoval = change.action === 'remove';
  const value = isRemoval ? change.from : change.item.value;
  const payload = Buffer.concat([
    neighbourHeader(AF.BRIDGE, {
      ifindex: ifindexOf(value.link),
      state: isRemoval ? 0 : NUD_PERMANENT,
      flags: NTF_SELF,
    }),
    attribute(NDA.LLADDR, macBytes(value.mac)),
    ...(isRemoval ? [] : [attribute(NDA.DST, bytesOf(value.destination))]),
  ]);
  return {
    type: isRemoval ? RTM.DELNEIGH : RTM.NEWNEIGH,
    flags: isRemoval ? 0 : NLM.CREATE | NLM.REPLACE,
    payload,
    operation: change.action,
    object: `fdb entry ${value.mac} on ${value.link}`,
  };
}

const dumpOf = ({ name, ifindex }: LinkFacts): NetlinkRequest => ({
  type: RTM.GETNEIGH,
  payload: Buffer.concat([neighbourHeader(AF.BRIDGE), u32(NDA.IFINDEX, ifindex)]),
  operation: 'list',
  object: `fdb of ${name}`,
});

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
  if (!link || !mac || !isVxlan(link) || !isSelf) return undefined;
  const destination = ipOf(attributes.get(NDA.DST));
  if (!destination && isEcho(attributes)) return undefined;
  const altered = alterationOf(state, attributes);
  return { link: link.name, mac, destination: destination ?? NO_DESTINATION, ...(altered && { altered }) };
}

/**
 * After the device has told of a change, rtnetlink of Linux 6.1 tells of it again, in its own words and without the tunnel end
 * (rtnl_fdb_notify; Linux 6.18 does not). Taken for the entry, it would never be as it should. The device's own words always have ages.
 */
const isEcho = (attributes: ReadonlyMap<number, Buffer>): boolean => !attributes.has(NDA.CACHEINFO);

/** The kernel reports a permanent entry as permanent and not resolvable. */
function alterationOf(state: number, attributes: ReadonlyMap<number, Buffer>): string | undefined {
  if ((state & ~NUD_NOARP) !== NUD_PERMANENT) return `has the state ${state}`;
  for (const name of ['PORT', 'VNI', 'IFINDEX', 'SRC_VNI', 'NH_ID'] as const) {
    if (attributes.has(NDA[name])) return `has its own ${name}`;
  }
  return undefined;
}
