/**
 * Which pod CIDRs of which Nodes count, decided on every node alike: one that would take other traffic away is refused, and
 * of those that overlap the older Node keeps its own.
 */
import type { Node } from '../model/cluster.ts';
import { rankOf } from '../model/fragment.ts';
import { bitsOf, type Cidr, type Family, familyOf, type IpAddress, prefixLengthOf, rangeOf } from '../model/ip.ts';
import { finish, type Steps } from './steps.ts';

/** A pod CIDR that does not count, and why, in a sentence with the remedy. */
export interface Loss {
  readonly cidr: Cidr;
  readonly problem: string;
}

/** What becomes of the claims of all Nodes, by Node name; Nodes that lost nothing are left out. */
export type Losses = ReadonlyMap<string, readonly Loss[]>;

/** The pod CIDRs of a Node that count. */
export const heldCidrs = (node: Node, losses: Losses): readonly Cidr[] =>
  node.podCidrs.filter((cidr) => !losses.get(node.name)?.some((loss) => loss.cidr === cidr));

/** What the underlay has to reach of a node. */
export const addressesOf = (node: Node): readonly IpAddress[] => [...node.internalIps, ...node.underlayIps];

/** Wider than this is no node's share of a cluster: a route for it would take the host's other traffic away. */
const WIDEST_PREFIX = { ipv4: 8, ipv6: 16 } as const;

interface Claim {
  readonly node: Node;
  readonly cidr: Cidr;
  readonly first: bigint;
  readonly last: bigint;
  readonly rank: string;
}

/** Pure; O(n log n) plus the overlaps. A claim that is refused or lost takes nothing away from others. */
export const findLosses = (nodes: Iterable<Node>): Losses => finish(lossSteps(nodes));

/** The same with pauses. */
export function* lossSteps(nodes: Iterable<Node>): Steps<Losses> {
  const all: Facts[] = [];
  for (const node of nodes) {
    all.push(factsOf(node));
    yield;
  }
  const losses = new Map<string, Loss[]>();
  const lose = ({ node, cidr }: Claim, problem: string): void => {
    losses.set(node.name, [...(losses.get(node.name) ?? []), { cidr, problem }]);
  };
  const addresses = sortedAddresses(all);
  yield;
  const accepted: Claim[] = [];
  for (const claim of all.flatMap(({ claims }) => claims)) {
    const problem = refusalOf(claim, addresses);
    if (problem === undefined) accepted.push(claim);
    else lose(claim, problem);
    yield;
  }
  for (const group of touchingGroups(accepted)) {
    const winners: Claim[] = [];
    for (const claim of group.sort((a, b) => (a.rank < b.rank ? -1 : 1))) {
      const winner = winners.find(
        (other) => other.first <= claim.last && claim.first <= other.last && other.node !== claim.node,
      );
      if (winner) lose(claim, overlapProblem(claim, winner));
      else winners.push(claim);
    }
    yield;
  }
  return losses;
}

/** Whether an address lies within a pod CIDR of any of these Nodes. Sorts when first asked, then O(log n). */
export function coverageOf(nodes: Iterable<Node>): (ip: IpAddress) => boolean {
  let reaches: readonly Reach[] | undefined;
  return (ip) => {
    reaches ??= reachesOf([...nodes].flatMap((node) => factsOf(node).claims));
    const key = placeOf(familyOf(ip), bitsOf(ip));
    const after = lowerBound(reaches, (reach) => reach.first > key);
    return after > 0 && key <= (reaches[after - 1] as Reach).last;
  };
}

/** A claim that begins at `first`, with the last place that it, or any that begins before it, covers. */
interface Reach {
  readonly first: bigint;
  readonly last: bigint;
}

function reachesOf(claims: readonly Claim[]): readonly Reach[] {
  let furthest = -1n;
  return claims
    .map(({ cidr, first, last }) => ({
      first: placeOf(familyOf(cidr), first),
      last: placeOf(familyOf(cidr), last),
    }))
    .sort((a, b) => (a.first < b.first ? -1 : 1))
    .map(({ first, last }) => {
      if (last > furthest) furthest = last;
      return { first, last: furthest };
    });
}

/** Both families on one line, IPv4 below all of IPv6. */
const placeOf = (family: Family, bits: bigint): bigint => (family === 'ipv4' ? bits : bits + (1n << 32n));

/** What is compared of one Node; kept as long as the Node, which never changes. */
interface Facts {
  readonly claims: readonly Claim[];
  readonly addresses: readonly NodeAddress[];
}
const knownFacts = new WeakMap<Node, Facts>();

function factsOf(node: Node): Facts {
  const known = knownFacts.get(node);
  if (known) return known;
  const rank = rankOf(node.creationMs, node.uid);
  const facts = {
    claims: node.podCidrs.map((cidr) => ({ node, cidr, ...rangeOf(cidr), rank })),
    addresses: addressesOf(node).map((ip) => ({ ip, bits: bitsOf(ip) })),
  };
  knownFacts.set(node, facts);
  return facts;
}

const overlapProblem = ({ node, cidr }: Claim, winner: Claim): string =>
  `podCIDR ${cidr} of Node ${node.name} overlaps ${winner.cidr} of the older Node ${winner.node.name}, which keeps it: give ${node.name} another podCIDR (re-create the Node)`;

interface NodeAddress {
  readonly ip: IpAddress;
  readonly bits: bigint;
}
type SortedAddresses = { readonly [F in Family]: readonly NodeAddress[] };

function sortedAddresses(nodes: readonly Facts[]): SortedAddresses {
  const all = nodes.flatMap(({ addresses }) => addresses);
  const ofFamily = (family: Family) =>
    all.filter(({ ip }) => familyOf(ip) === family).sort((a, b) => (a.bits < b.bits ? -1 : 1));
  return { ipv4: ofFamily('ipv4'), ipv6: ofFamily('ipv6') };
}

function refusalOf({ node, cidr, first, last }: Claim, addresses: SortedAddresses): string | undefined {
  const family = familyOf(cidr);
  const refused = `podCIDR ${cidr} of Node ${node.name} is refused`;
  if (prefixLengthOf(cidr) < WIDEST_PREFIX[family]) {
    return `${refused}: expected a prefix of /${WIDEST_PREFIX[family]} or longer, for one node's pods`;
  }
  const covered = firstFrom(addresses[family], first);
  if (!covered || covered.bits > last) return undefined;
  return `${refused}: it covers the node address ${covered.ip}, which could then not be reached; pods and nodes need separate ranges`;
}

/** The least address that is not below `bits`. */
const firstFrom = (sorted: readonly NodeAddress[], bits: bigint): NodeAddress | undefined =>
  sorted[lowerBound(sorted, (address) => address.bits >= bits)];

/** The index of the first of which this is true, as it is of all that follow; the length when there is none. */
function lowerBound<T>(sorted: readonly T[], isBeyond: (value: T) => boolean): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isBeyond(sorted[middle] as T)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Claims in groups that touch each other, directly or through others; almost always one claim each. */
function* touchingGroups(claims: readonly Claim[]): Generator<Claim[]> {
  const sorted = claims.toSorted((a, b) => {
    const [familyA, familyB] = [familyOf(a.cidr), familyOf(b.cidr)];
    if (familyA !== familyB) return familyA < familyB ? -1 : 1;
    return a.first < b.first ? -1 : a.first > b.first ? 1 : 0;
  });
  let group: Claim[] = [];
  let last = -1n;
  for (const claim of sorted) {
    const [head] = group;
    if (head && !(familyOf(head.cidr) === familyOf(claim.cidr) && claim.first <= last)) {
      if (group.length > 1) yield group;
      group = [];
      last = -1n;
    }
    group.push(claim);
    if (claim.last > last) last = claim.last;
  }
  if (group.length > 1) yield group;
}
