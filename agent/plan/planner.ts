/**
 * The whole plan: kernel = f(cluster). Pure; what is expensive is memoised on the identity of all its inputs, so that one
 * Node changing among thousands plans its own fragment only.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Cluster, Node } from '../model/cluster.ts';
import { type Fragment, type FragmentId, rankOf } from '../model/fragment.ts';
import type { Host } from '../model/host.ts';
import { type Cidr, familyOf, type IpAddress } from '../model/ip.ts';
import { type AnyItem, item } from '../model/items.ts';
import type { Backend } from './backend.ts';
import { planBridge } from './bridge.ts';
import { addressesOf, coverageOf, heldCidrs, type Losses, lossSteps } from './claims.ts';
import { directMember, NODE_NETWORK, planNodeNetwork } from './node-network.ts';
import { finish, type Steps } from './steps.ts';
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
  /** Which podCIDRs do not count. */
  readonly losses: Losses;
}

/** What the last plan worked out. */
interface Last {
  readonly input: PlanInput;
  readonly plan: Plan;
  readonly losses: Losses;
  /** Whether an address lies within a pod CIDR that counted. */
  readonly covers: (ip: IpAddress) => boolean;
  readonly own: readonly Fragment[];
  readonly peers: ReadonlyMap<Node, Fragment>;
}

/** Keeps what the last plan worked out, and nothing else: the same inputs always give the same plan. */
export class Planner {
  #last: Last | undefined;
  readonly #former: Underlay | undefined;

  /** `former` is the underlay that an earlier process planned last, if it is known. */
  constructor(former?: Underlay) {
    this.#former = former;
  }

  plan(input: PlanInput): Plan {
    return finish(this.steps(input));
  }

  /** The same with pauses. One at a time. */
  *steps(input: PlanInput): Steps<Plan> {
    const last = this.#last;
    if (last && isSameInput(last.input, input)) return last.plan;
    const isSame = last !== undefined && sameClaims(last, input.cluster);
    const losses = isSame ? last.losses : kept(last?.losses, yield* lossSteps(input.cluster.nodes.values()));
    const covers = isSame ? last.covers : coverageOf(input.cluster.nodes.values());
    yield;
    const former = last?.plan.underlay ?? this.#former;
    const underlay = kept(former, planUnderlay(input, losses, former));
    const sameContext =
      last !== undefined &&
      last.plan.underlay === underlay &&
      last.losses === losses &&
      last.input.settings === input.settings &&
      last.input.backend === input.backend;
    const own = sameContext && last.input.host === input.host ? last.own : nodeFragments(input, underlay);
    const peers = new Map<Node, Fragment>();
    const fragments = new Map<FragmentId, Fragment>(own.map((fragment) => [fragment.id, fragment]));
    for (const node of input.cluster.nodes.values()) {
      if (node.name === input.nodeName) continue;
      const known = sameContext ? last.peers.get(node) : undefined;
      const fragment = known ?? planPeer(node, underlay, losses, input);
      peers.set(node, fragment);
      fragments.set(fragment.id, fragment);
      if (!known) yield;
    }
    const plan = { underlay, fragments, losses };
    this.#last = { input, plan, losses, covers, own, peers };
    return plan;
  }
}

/** Whether nothing has changed but Pods, Services and their endpoints, which say nothing here. */
const isSameInput = (before: PlanInput, after: PlanInput): boolean =>
  before.nodeName === after.nodeName &&
  before.cluster.nodes === after.cluster.nodes &&
  before.cluster.synced === after.cluster.synced &&
  before.host === after.host &&
  before.settings === after.settings &&
  before.backend === after.backend;

/** The former value when the new one is equal: identity is what memoised plans hang on. */
const kept = <T>(former: T | undefined, computed: T): T =>
  former !== undefined && isDeepStrictEqual(former, computed) ? former : computed;

/**
 * Whether findLosses would find the same. The addresses of a Node decide nothing while they are in nobody's pod CIDR: as long
 * as nothing is lost, those that it had were not.
 */
function sameClaims({ input, losses, covers }: Last, after: Cluster): boolean {
  const before = input.cluster;
  if (before.nodes === after.nodes) return true;
  if (before.nodes.size !== after.nodes.size) return false;
  for (const [name, node] of after.nodes) {
    const old = before.nodes.get(name);
    if (old === node) continue;
    if (!old || claimOf(old) !== claimOf(node)) return false;
    const addresses = addressesOf(node);
    if (addresses.join() === addressesOf(old).join()) continue;
    if (losses.size > 0 || addresses.some(covers)) return false;
  }
  return true;
}

const claimOf = ({ uid, podCidrs }: Node): string => [uid, ...podCidrs].join(' ');

function nodeFragments({ host, settings, backend }: PlanInput, underlay: Underlay): readonly Fragment[] {
  const device: Fragment = {
    id: `backend ${backend.name}`,
    cause: `backend ${backend.name}`,
    rank: '',
    items: underlay.podNetworks.length > 0 ? backend.device(underlay, host, settings) : [],
    requires: [NODE_NETWORK],
    problems: [],
  };
  return [planNodeNetwork(underlay, host, settings), planBridge(underlay, host), device];
}

function planPeer(node: Node, underlay: Underlay, losses: Losses, input: PlanInput): Fragment {
  const problems = [...node.problems, ...(losses.get(node.name) ?? []).map(({ problem }) => problem)];
  const podCidrs = heldCidrs(node, losses);
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
const directItem = (entry: Cidr): AnyItem => item('member', directMember(entry), [`set ${directMember(entry).set}`]);
