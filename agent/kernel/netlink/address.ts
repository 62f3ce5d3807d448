/** Addresses on the devices of backends. Those of pod links belong to the pod link. */
import { bytesOf, factsOf, families } from '../../model/ip.ts';
import type { Address } from '../../model/items.ts';
import type { Change } from '../../reconcile/types.ts';
import { attribute, parseAttributes, u32, u32Of } from './attributes.ts';
import { isBackendLink, type Links } from './links.ts';
import type { Found, IfindexOf, ObjectKind } from './object-driver.ts';
import { addressHeader, IFA, IFA_F_NODAD, IFA_F_NOPREFIXROUTE, ipOf, type LinkFacts, RTM } from './rtnetlink.ts';
import { type NetlinkMessage, type NetlinkRequest, NLM } from './socket.ts';

/**
 * No duplicate address detection, which would hold the address back for two seconds and asks nobody who could answer, and
 * no connected route: what is reached over the device is said by routes of Tulle's own.
 */
const FLAGS = IFA_F_NODAD | IFA_F_NOPREFIXROUTE;

export const addressKind: ObjectKind<'address'> = {
  kind: 'address',
  same: (a, b) => a.link === b.link && a.ip === b.ip && a.prefixLength === b.prefixLength,
  linksOf: ({ link }) => [link],
  render: renderAddress,
  dumps: (links) =>
    links.filter(isBackendLink).flatMap((link) => families.map(({ addressFamily }) => dumpOf(link, addressFamily))),
  readBack: readAddress,
  isGone: ({ type }) => type === RTM.DELADDR,
};

/** Another prefix length makes another address of the same text: the old one has to go first, see addressDriver. */
function renderAddress(change: Change<'address'>, ifindexOf: IfindexOf): NetlinkRequest {
  const isRemoval = change.action === 'remove';
  const value = isRemoval ? change.from : change.item.value;
  return {
    type: isRemoval ? RTM.DELADDR : RTM.NEWADDR,
    flags: isRemoval ? 0 : NLM.CREATE | NLM.REPLACE,
    payload: addressPayload(value, ifindexOf(value.link), isRemoval ? 0 : FLAGS),
    operation: change.action,
    object: `address ${value.ip}/${value.prefixLength} on ${value.link}`,
  };
}

/** Header and attributes of an address request; `flags` are IFA_F_*. */
export function addressPayload(
  { ip, prefixLength }: Pick<Address, 'ip' | 'prefixLength'>,
  ifindex: number,
  flags: number,
): Buffer {
  const bytes = bytesOf(ip);
  return Buffer.concat([
    addressHeader(factsOf(ip).addressFamily, { prefixLength, ifindex }),
    attribute(IFA.LOCAL, bytes),
    attribute(IFA.ADDRESS, bytes),
    ...(flags ? [u32(IFA.FLAGS, flags)] : []),
  ]);
}

const dumpOf = ({ ifindex, name }: LinkFacts, addressFamily: number): NetlinkRequest => ({
  type: RTM.GETADDR,
  payload: addressHeader(addressFamily, { ifindex }),
  operation: 'list',
  object: `addresses on ${name}`,
});

function readAddress({ type, payload }: NetlinkMessage, links: Links): Found<'address'> | undefined {
  if (type !== RTM.NEWADDR && type !== RTM.DELADDR) return undefined;
  const link = links.byIndex(payload.readUInt32LE(4));
  if (!link || !isBackendLink(link)) return undefined;
  const attributes = parseAttributes(payload, 8);
  // IPv6 has no IFA_LOCAL unless the address has a peer.
  const ip = ipOf(attributes.get(IFA.LOCAL) ?? attributes.get(IFA.ADDRESS));
  if (!ip) return undefined;
  const peer = ipOf(attributes.get(IFA.ADDRESS));
  return {
    link: link.name,
    ip,
    prefixLength: payload.readUInt8(1),
    ...(peer !== ip && { altered: `has the peer ${peer}` }),
  };
}

/** IFA_F_* of an address message. */
export const addressFlagsOf = (payload: Buffer): number =>
  u32Of(parseAttributes(payload, 8).get(IFA.FLAGS)) ?? payload.readUInt8(2);
