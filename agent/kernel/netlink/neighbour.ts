/** Permanent neighbour entries on own links, backends' devices and host sides of pod links alike. */
import { bytesOf, factsOf, families, type IpAddress, specialUse } from '../../model/ip.ts';
import { type MacAddress, macBytes, parseMac } from '../../model/mac.ts';
import type { Change } from '../../reconcile/types.ts';
import { attribute, parseAttributes } from './attributes.ts';
import { isOwnLink, type Links } from './links.ts';
import { type NetlinkMessage, type NetlinkRequest, NLM } from './message.ts';
import type { Found, IfindexOf, ObjectKind } from './object-driver.ts';
import { AF, familyOfAf, ipOf, macOfBytes, NDA, NTF_PROXY, NUD_PERMANENT, neighbourHeader, RTM } from './rtnetlink.ts';

export const neighbourKind: ObjectKind<'neighbour'> = {
  kind: 'neighbour',
  same: (a, b) => a.link === b.link && a.ip === b.ip && a.mac === b.mac,
  linksOf: ({ link }) => [link],
  render: renderNeighbour,
  dumps: (links) => (links.some(isOwnLink) ? families.map(({ addressFamily }) => dumpOf(addressFamily)) : []),
  readBack: readNeighbour,
  isGone: isGoneNeighbour,
};

/** Stands for the address of an entry that has none. */
export const NO_MAC = parseMac('00:00:00:00:00:00') as MacAddress;

function renderNeighbour(change: Change<'neighbour'>, ifindexOf: IfindexOf): NetlinkRequest {
  const isRemoval = change.action === 'remove';
  const value = isRemoval ? change.from : change.item.value;
  const ifindex = ifindexOf(value.link);
  return {
    type: isRemoval ? RTM.DELNEIGH : RTM.NEWNEIGH,
    flags: isRemoval ? 0 : NLM.CREATE | NLM.REPLACE,
    payload: isRemoval
      ? Buffer.concat([
          neighbourHeader(factsOf(value.ip).addressFamily, { ifindex }),
          attribute(NDA.DST, bytesOf(value.ip)),
        ])
      : neighbourPayload(value.ip, value.mac, ifindex),
    operation: change.action,
    object: `neighbour ${value.ip} on ${value.link}`,
  };
}

/** A permanent entry: the kernel neither asks for the address nor lets anybody else answer for it. */
export const neighbourPayload = (ip: IpAddress, mac: MacAddress, ifindex: number): Buffer =>
  Buffer.concat([
    neighbourHeader(factsOf(ip).addressFamily, { ifindex, state: NUD_PERMANENT }),
    attribute(NDA.DST, bytesOf(ip)),
    attribute(NDA.LLADDR, macBytes(mac)),
  ]);

const dumpOf = (addressFamily: number): NetlinkRequest => ({
  type: RTM.GETNEIGH,
  payload: neighbourHeader(addressFamily),
  operation: 'list',
  object: 'neighbours',
});

function readNeighbour(message: NetlinkMessage, links: Links): Found<'neighbour'> | undefined {
  const { type, payload } = message;
  if ((type !== RTM.NEWNEIGH && type !== RTM.DELNEIGH) || payload.length < 12) return undefined;
  if (payload[0] === AF.BRIDGE || !familyOfAf(payload[0] ?? 0)) return undefined;
  const link = links.byIndex(payload.readInt32LE(4));
  if (!link || !isOwnLink(link) || (payload.readUInt8(10) & NTF_PROXY) !== 0) return undefined;
  const attributes = parseAttributes(payload, 12);
  const ip = ipOf(attributes.get(NDA.DST));
  if (!ip || specialUse(ip) === 'multicast') return undefined;
  return { link: link.name, ip, mac: macOfBytes(attributes.get(NDA.LLADDR)) ?? NO_MAC };
}

/**
 * What the kernel learned is not permanent and not Tulle's. A permanent entry that somebody changes, or that is about to be
 * deleted, is told of as one of another state.
 */
function isGoneNeighbour({ type, payload }: NetlinkMessage): boolean {
  return type === RTM.DELNEIGH || payload.readUInt16LE(8) !== NUD_PERMANENT;
}
