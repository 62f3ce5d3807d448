/** Which address the next pod gets: round robin through the node's pod CIDR, so that a released one rests for long. */
import { addressAt, type Cidr, type Family, familyOf, type IpAddress, offsetIn, sizeOf } from '../model/ip.ts';

export interface AddressUse {
  readonly inUse: Pick<ReadonlyMap<IpAddress, unknown>, 'has' | 'keys'>;
  /** Released addresses and since when, in milliseconds since the epoch. */
  readonly released: ReadonlyMap<IpAddress, number>;
  /** What was released before rests no more. */
  readonly restedMs: number;
  /** The address given out last, where the round continues. */
  readonly last: IpAddress | undefined;
}

/** How many addresses are looked at before the search gives up: more than any node has pods. */
const SEARCH_LIMIT = 1 << 17;

/**
 * The next free address of the CIDR; never the network address, the node's own (the first) or, in IPv4, the broadcast
 * address. A resting address is taken only when no other is left, the one that rests longest first. Undefined: all in use.
 */
export function nextAddress(cidr: Cidr, { inUse, released, restedMs, last }: AddressUse): IpAddress | undefined {
  const { first, count } = usableRange(cidr);
  if (count === 0n) return undefined;
  const lastOffset = last === undefined ? undefined : offsetIn(cidr, last);
  const addresses = addressesOf(cidr);
  let offset = first + modulo(lastOffset === undefined ? 0n : lastOffset - first + 1n, count);
  let resting: IpAddress | undefined;
  let restingSince = Infinity;
  for (let left = count < SEARCH_LIMIT ? Number(count) : SEARCH_LIMIT; left > 0; left--) {
    const candidate = addresses(offset);
    if (++offset === first + count) offset = first;
    if (inUse.has(candidate)) continue;
    const since = released.get(candidate);
    if (since === undefined || since < restedMs) return candidate;
    if (since < restingSince) [resting, restingSince] = [candidate, since];
  }
  return resting;
}

/**
 * By CIDR and offset: while most addresses rest, a search sees nearly all of them. Not of ranges that the round never
 * comes to the end of: every address of those would stay here for good, and nearly every one is free.
 */
const seen = new Map<Cidr, (offset: bigint) => IpAddress>();
const LARGEST_SEEN = 1n << 16n;

/** The addresses of a CIDR by their offset. */
function addressesOf(cidr: Cidr): (offset: bigint) => IpAddress {
  const known = seen.get(cidr);
  if (known) return known;
  if (sizeOf(cidr) > LARGEST_SEEN) return (offset) => addressAt(cidr, offset);
  const addresses: IpAddress[] = [];
  const addressOf = (offset: bigint): IpAddress => {
    addresses[Number(offset)] ??= addressAt(cidr, offset);
    return addresses[Number(offset)] as IpAddress;
  };
  seen.set(cidr, addressOf);
  return addressOf;
}

/** Whether a pod may have this address: of the CIDR, and none of the reserved ones. */
export function isUsable(cidr: Cidr, ip: IpAddress): boolean {
  const { first, count } = usableRange(cidr);
  const offset = offsetIn(cidr, ip);
  return offset !== undefined && offset >= first && offset < first + count;
}

/** How many addresses of a CIDR can be given to pods. */
export const capacityOf = (cidr: Cidr): bigint => usableRange(cidr).count;

/** How many addresses of a CIDR pods have, and could have. Of a large IPv6 CIDR the free ones are about right. */
export interface AddressCount {
  readonly family: Family;
  readonly used: number;
  /** Released lately, and so taken last. */
  readonly resting: number;
  readonly free: number;
}

export function countAddresses(cidr: Cidr, { inUse, released, restedMs }: Omit<AddressUse, 'last'>): AddressCount {
  const isOurs = (ip: IpAddress): boolean => isUsable(cidr, ip);
  const used = [...inUse.keys()].filter(isOurs).length;
  const resting = [...released].filter(([ip, since]) => since >= restedMs && isOurs(ip) && !inUse.has(ip)).length;
  return { family: familyOf(cidr), used, resting, free: Number(capacityOf(cidr)) - used - resting };
}

function usableRange(cidr: Cidr): { first: bigint; count: bigint } {
  const broadcast = cidr.includes(':') ? 0n : 1n;
  const count = sizeOf(cidr) - 2n - broadcast;
  return { first: 2n, count: count > 0n ? count : 0n };
}

const modulo = (value: bigint, count: bigint): bigint => ((value % count) + count) % count;
