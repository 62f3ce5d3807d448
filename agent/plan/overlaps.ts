/** Overlapping podCIDRs: the older Node keeps its own, on every node alike. */
import type { Node } from '../model/cluster.ts';
import { rankOf } from '../model/fragment.ts';
import { type Cidr, containsIp, familyOf, type IpAddress, prefixLengthOf, rangeOf } from '../model/ip.ts';

export interface Overlap {
  readonly cidr: Cidr;
  readonly winner: Node;
  readonly winnerCidr: Cidr;
}

/** For people: who lost what to whom, and the remedy. */
export const overlapProblem = (nodeName: string, { cidr, winner, winnerCidr }: Overlap): string =>
  `podCIDR ${cidr} of Node ${nodeName} overlaps ${winnerCidr} of the older Node ${winner.name}, which keeps it: give ${nodeName} another podCIDR (re-create the Node)`;

/** Wider than this is no node's share of a cluster: a route for it would take the host's other traffic away. */
const WIDEST_PREFIX = { ipv4: 8, ipv6: 16 } as const;

/** Why a pod CIDR must not be routed, or undefined. `nodeIps` are addresses that the underlay has to reach. */
export function cidrRefusal(nodeName: string, cidr: Cidr, nodeIps: readonly IpAddress[]): string | undefined {
  const widest = WIDEST_PREFIX[familyOf(cidr)];
  if (prefixLengthOf(cidr) < widest) {
    return `podCIDR ${cidr} of Node ${nodeName} is refused: expected a prefix of /${widest} or longer, for one node's pods`;
  }
  const covered = nodeIps.find((ip) => containsIp(cidr, ip));
  if (covered === undefined) return undefined;
  return `podCIDR ${cidr} of Node ${nodeName} is refused: it covers the node address ${covered}, which could then not be reached; pods and nodes need separate ranges`;
}

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

/** A CIDR that is refused takes nothing away from others. */
function claimsOf(nodes: Iterable<Node>): Claim[] {
  return [...nodes].flatMap((node) =>
    node.podCidrs
      .filter((cidr) => cidrRefusal(node.name, cidr, addressesOf(node)) === undefined)
      .map((cidr) => ({ node, cidr, ...rangeOf(cidr), rank: rankOf(node.creationMs, node.uid) })),
  );
}

/** What the underlay has to reach of a node. */
export const addressesOf = (node: Node): readonly IpAddress[] => [...node.internalIps, ...node.underlayIps];

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
