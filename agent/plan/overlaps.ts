/** Overlapping podCIDRs: the older Node keeps its own, on every node alike. */
import type { Node } from '../model/cluster.ts';
import { rankOf } from '../model/fragment.ts';
import { type Cidr, familyOf, rangeOf } from '../model/ip.ts';

export interface Overlap {
  readonly cidr: Cidr;
  readonly winner: Node;
  readonly winnerCidr: Cidr;
}

/** For people: who lost what to whom, and the remedy. */
export const overlapProblem = (nodeName: string, { cidr, winner, winnerCidr }: Overlap): string =>
  `podCIDR ${cidr} of Node ${nodeName} overlaps ${winnerCidr} of the older Node ${winner.name}, which keeps it: give ${nodeName} another podCIDR (re-create the Node)`;

interface Claim {
  readonly node: Node;
  readonly cidr: Cidr;
  readonly first: bigint;
  readonly last: bigint;
  readonly rank: string;
}

/**
 * The pod CIDRs that lose against an older Node's, by Node name. Pure; O(n log n) plus the overlaps. A claim that lost
 * takes nothing away from younger ones.
 */
export function findOverlaps(nodes: Iterable<Node>): ReadonlyMap<string, readonly Overlap[]> {
  const losers = new Map<string, Overlap[]>();
  for (const cluster of clustersOf(claimsOf(nodes))) {
    const winners: Claim[] = [];
    for (const claim of cluster.sort((a, b) => (a.rank < b.rank ? -1 : 1))) {
      const winner = winners.find(
        (other) => other.first <= claim.last && claim.first <= other.last && other.node !== claim.node,
      );
      if (!winner) {
        winners.push(claim);
        continue;
      }
      const overlaps = losers.get(claim.node.name) ?? [];
      overlaps.push({ cidr: claim.cidr, winner: winner.node, winnerCidr: winner.cidr });
      losers.set(claim.node.name, overlaps);
    }
  }
  return losers;
}

function claimsOf(nodes: Iterable<Node>): Claim[] {
  return [...nodes].flatMap((node) =>
    node.podCidrs.map((cidr) => ({ node, cidr, ...rangeOf(cidr), rank: rankOf(node.creationMs, node.uid) })),
  );
}

/** Claims in groups that touch each other, directly or through others; almost always one claim each. */
function* clustersOf(claims: Claim[]): Generator<Claim[]> {
  const sorted = claims.sort((a, b) => {
    const [familyA, familyB] = [familyOf(a.cidr), familyOf(b.cidr)];
    if (familyA !== familyB) return familyA < familyB ? -1 : 1;
    return a.first < b.first ? -1 : a.first > b.first ? 1 : 0;
  });
  let group: Claim[] = [];
  let last = -1n;
  for (const claim of sorted) {
    const touches =
      group.length > 0 && familyOf((group[0] as Claim).cidr) === familyOf(claim.cidr) && claim.first <= last;
    if (!touches && group.length > 0) {
      if (group.length > 1) yield group;
      group = [];
      last = -1n;
    }
    group.push(claim);
    if (claim.last > last) last = claim.last;
  }
  if (group.length > 1) yield group;
}
