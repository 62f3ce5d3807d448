/**
 * The whole plan: kernel = f(cluster). Pure; what is expensive is memoised on the identity of all its inputs, so that one
 * Node changing among thousands plans its own fragment only.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Cluster, Node } from '../model/cluster.ts';
import { type Fragment, type FragmentId, rankOf } from '../model/fragment.ts';
import type { Host } from '../model/host.ts';
import { type Cidr, factsOf, familyOf } from '../model/ip.ts';
import { type AnyItem, item } from '../model/items.ts';
import { setName } from '../model/kernel-names.ts';
import type { Backend } from './backend.ts';
import { NODE_NETWORK, planNodeNetwork } from './node-network.ts';
import { addressesOf, cidrRefusal, findOverlaps, type Overlap, overlapProblem } from './overlaps.ts';
import { type PlanSettings, planUnderlay, type Underlay } from './underlay.ts';

export interface PlanInput {
  readonly nodeName: string;
  readonly cluster: Cluster;
  readonly host: Host;
  readonly settings: PlanSettings;
  readonly backend: Backend;
}

export interface Plan {
  readonly underlay: Underlay;
  /** The node's own fragments and one a peer; pods are planned by whoever attaches them. */
  readonly fragments: ReadonlyMap<FragmentId, Fragment>;
}

/** Keeps what the last plan worked out, and nothing else: the same inputs always give the same plan. */
export class Planner {
  #last:
    | { input: PlanInput; plan: Plan; overlaps: ReadonlyMap<string, readonly Overlap[]>; peers: Map<Node, Fragment> }
    | undefined;

  plan(input: PlanInput): Plan {
    const last = this.#last;
    const overlaps =
      last && sameClaims(last.input.cluster, input.cluster)
        ? last.overlaps
        : kept(last?.overlaps, findOverlaps(input.cluster.nodes.values()));
    const underlay = kept(last?.plan.underlay, computeUnderlay(input, overlaps));
    const sameContext =
      last !== undefined &&
      last.plan.underlay === underlay &&
      last.overlaps === overlaps &&
      last.input.settings === input.settings &&
      last.input.backend === input.backend;
    const known = sameContext ? last.peers : new Map<Node, Fragment>();
    const peers = new Map<Node, Fragment>();
    const fragments = new Map<FragmentId, Fragment>();
    for (const fragment of nodeFragments(input, underlay)) fragments.set(fragment.id, fragment);
    for (const node of input.cluster.nodes.values()) {
      if (node.name === input.nodeName) continue;
      const fragment = known.get(node) ?? planPeer(node, underlay, overlaps.get(node.name) ?? [], input);
      peers.set(node, fragment);
      fragments.set(fragment.id, fragment);
    }
    const plan = { underlay, fragments };
    this.#last = { input, plan, overlaps, peers };
    return plan;
  }
}

/** The former value when the new one is equal: identity is what memoised plans hang on. */
const kept = <T>(former: T | undefined, computed: T): T =>
  former !== undefined && isDeepStrictEqual(former, computed) ? former : computed;

const computeUnderlay = (input: PlanInput, overlaps: ReadonlyMap<string, readonly Overlap[]>): Underlay =>
  planUnderlay(input, overlaps.get(input.nodeName) ?? []);

/** Whether nothing that findOverlaps looks at has changed. */
function sameClaims(before: Cluster, after: Cluster): boolean {
  if (before.nodes === after.nodes) return true;
  if (before.nodes.size !== after.nodes.size) return false;
  for (const [name, node] of after.nodes) {
    const old = before.nodes.get(name);
    if (old === node) continue;
    if (!old || claimOf(old) !== claimOf(node)) return false;
  }
  return true;
}

const claimOf = (node: Node): string => [node.uid, node.podCidrs, addressesOf(node)].join(' ');

function nodeFragments({ host, settings, backend }: PlanInput, underlay: Underlay): readonly Fragment[] {
  const device: Fragment = {
    id: `backend ${backend.name}`,
    cause: `backend ${backend.name}`,
    rank: '',
    items: underlay.podNetworks.length > 0 ? backend.device(underlay, host, settings) : [],
    requires: [NODE_NETWORK],
    problems: [],
  };
  return [planNodeNetwork(underlay, host, settings), device];
}

function planPeer(node: Node, underlay: Underlay, lost: readonly Overlap[], input: PlanInput): Fragment {
  const problems = [...node.problems, ...lost.map((overlap) => overlapProblem(node.name, overlap))];
  const nodeIps = [...addressesOf(node), ...(underlay.tunnel ? [underlay.tunnel.local] : [])];
  const podCidrs = node.podCidrs.filter((cidr) => {
    if (lost.some((overlap) => overlap.cidr === cidr)) return false;
    const refusal = cidrRefusal(node.name, cidr, nodeIps);
    if (refusal !== undefined) problems.push(refusal);
    return refusal === undefined;
  });
  const reachable = podCidrs.filter((cidr) => underlay.podNetworks.some(({ family }) => family === familyOf(cidr)));
  const peer = input.backend.peer(node, reachable, underlay, input.settings);
  return {
    id: `node ${node.name}`,
    cause: `node ${node.name}`,
    rank: rankOf(node.creationMs, node.uid),
    items: reachable.length > 0 ? [...reachable.map(directItem), ...peer.items] : [],
    requires: [NODE_NETWORK, `backend ${input.backend.name}`],
    problems: [...problems, ...peer.problems],
  };
}

/** Pods of this node send to the peer's pods with their own addresses. */
function directItem(entry: Cidr): AnyItem {
  const set = setName('direct', factsOf(entry));
  return item('member', { set, entry }, [`set ${set}`]);
}
