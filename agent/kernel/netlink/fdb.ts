/** Forwarding entries of own VXLAN devices. Whatever stands there beside them is drift: nothing learns on these devices. */
import { bytesOf, type IpAddress } from '../../model/ip.ts';
import { macBytes } from '../../model/mac.ts';
import type { Change } from '../../reconcile/types.ts';
import { attribute, parseAttributes, u32 } from './attributes.ts';
import { isBackendLink, type Links } from './links.ts';
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

const isVxlan = (link: LinkFacts): boolean => isBackendLink(link) && link.kind === 'vxlan';

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

const dumpOf = ({ ifindex, name }: LinkFacts): NetlinkRequest => ({
  type: RTM.GETNEIGH,
  payload: Buffer.concat([neighbourHeader(AF.BRIDGE), u32(NDA.IFINDEX, ifindex)]),
  operation: 'list',
  object: `fdb of ${name}`,
});

/** Of an entry that has no tunnel end of its own (a next hop group). */
const NO_DESTINATION = '0.0.0.0' as IpAddress;

function readFdb({ type, payload }: NetlinkMessage, links: Links): Found<'fdb'> | undefined {
  if ((type !== RTM.NEWNEIGH && type !== RTM.DELNEIGH) || payload[0] !== AF.BRIDGE) return undefined;
  const link = links.byIndex(payload.readInt32LE(4));
  if (!link || !isVxlan(link) || (payload.readUInt8(10) & NTF_SELF) === 0) return undefined;
  const attributes = parseAttributes(payload, 12);
  const mac = macOfBytes(attributes.get(NDA.LLADDR));
  if (!mac) return undefined;
  const altered = alterationOf(payload.readUInt16LE(8), attributes);
  return {
    link: link.name,
    mac,
    destination: ipOf(attributes.get(NDA.DST)) ?? NO_DESTINATION,
    ...(altered && { altered }),
  };
}

/** The kernel reports a permanent entry as permanent and not resolvable. */
function alterationOf(state: number, attributes: ReadonlyMap<number, Buffer>): string | undefined {
  if ((state & ~NUD_NOARP) !== NUD_PERMANENT) return `has the state ${state}`;
  for (const name of ['PORT', 'VNI', 'IFINDEX', 'SRC_VNI', 'NH_ID'] as const) {
    if (attributes.has(NDA[name])) return `has its own ${name}`;
  }
  return undefined;
}
