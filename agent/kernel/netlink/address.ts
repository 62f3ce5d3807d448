/** Addresses on the node's own devices. Those of pod links belong to the pod link. */
import { bytesOf, factsOf, families } from '../../model/ip.ts';
import type { Address } from '../../model/items.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import { attribute, parseAttributes, u32 } from './attributes.ts';
import { isNodeLink, type Links } from './links.ts';
import { type NetlinkMessage, type NetlinkRequest, NLM } from './message.ts';
import {
  type Found,
  type IfindexOf,
  type ObjectDriverOptions,
  type ObjectKind,
  objectDriver,
} from './object-driver.ts';
import { addressHeader, IFA, IFA_F_NODAD, IFA_F_NOPREFIXROUTE, ipOf, type LinkFacts, RTM } from './rtnetlink.ts';

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
    links.filter(isNodeLink).flatMap((link) => families.map(({ addressFamily }) => dumpOf(link, addressFamily))),
  readBack: readAddress,
  isGone: ({ type }) => type === RTM.DELADDR,
};

function renderAddress(change: Change<'address'>, ifindexOf: IfindexOf): NetlinkRequest {
  const isRemoval = change.action === 'remove';
  const value: Found<'address'> = isRemoval ? change.from : change.item.value;
  const ifindex = ifindexOf(value.link);
  return {
    type: isRemoval ? RTM.DELADDR : RTM.NEWADDR,
    flags: isRemoval ? 0 : NLM.CREATE | NLM.REPLACE,
    payload: isRemoval ? removalPayload(value, ifindex) : addressPayload(value, ifindex, FLAGS),
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
    u32(IFA.FLAGS, flags),
  ]);
}

/** An altered address may have a peer, which IFA_ADDRESS would have to name. */
function removalPayload({ ip, prefixLength, altered }: Found<'address'>, ifindex: number): Buffer {
  const bytes = bytesOf(ip);
  return Buffer.concat([
    addressHeader(factsOf(ip).addressFamily, { prefixLength, ifindex }),
    attribute(IFA.LOCAL, bytes),
    ...(altered === undefined ? [attribute(IFA.ADDRESS, bytes)] : []),
  ]);
}

/**
 * Driver of addresses. The kernel changes neither prefix length nor peer of an address: IPv4 takes the changed one for a
 * second address, IPv6 ignores the change. So an update removes what is there first.
 */
export function addressDriver(options: ObjectDriverOptions): Driver<'address'> {
  const base = objectDriver(addressKind, options);
  return {
    ...base,
    async apply(batch, signal) {
      const removals = batch.flatMap((change): Change<'address'>[] =>
        change.action === 'update' ? [{ action: 'remove', kind: 'address', key: change.key, from: change.from }] : [],
      );
      if (removals.length === 0) return base.apply(batch, signal);
      const stuck = await base.apply(removals, signal);
      const failures = await base.apply(
        batch.filter(({ key }) => !stuck.has(key)),
        signal,
      );
      return new Map([...stuck, ...failures]);
    },
  };
}

const dumpOf = ({ ifindex, name }: LinkFacts, addressFamily: number): NetlinkRequest => ({
  type: RTM.GETADDR,
  payload: addressHeader(addressFamily, { ifindex }),
  operation: 'list',
  object: `addresses on ${name}`,
});

function readAddress({ type, payload }: NetlinkMessage, links: Links): Found<'address'> | undefined {
  if ((type !== RTM.NEWADDR && type !== RTM.DELADDR) || payload.length < 8) return undefined;
  const link = links.byIndex(payload.readUInt32LE(4));
  if (!link || !isNodeLink(link)) return undefined;
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
