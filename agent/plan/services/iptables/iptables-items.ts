/**
 * Services for packets: the frontends of one owner as rules and members of sets. What arrives at the node meets the external
 * frontends; what a pod or the host sends meets the internal ones, as far as it is not translated at the socket already.
 */
import type { Fragment, FragmentId } from '../../../model/fragment.ts';
import { type Cidr, familyOf, hostCidr, prefixLengthOf } from '../../../model/ip.ts';
import { type AnyItem, type Item, item, type Key, keyOf, type Member, type Rule } from '../../../model/items.ts';
import { serviceChain } from '../../../model/kernel-names.ts';
import {
  type BackendSet,
  type Frontend,
  frontendId,
  isSetId,
  type Protocol,
  type Scope,
} from '../../../model/services.ts';
import { backendRules } from './backend-chain.ts';
import { baseId, IF_MARKED, memberItem, type ServiceSet, UNLESS_MARKED } from './base.ts';
import { leafOf, type Place } from './dispatch.ts';

export interface IptablesItems {
  readonly items: readonly AnyItem[];
  /** Shared fragments that these items cannot do without: baseFragment of each family, and `branches`. */
  readonly requires: readonly FragmentId[];
  /** Of the tree of chains that leads to the Service. */
  readonly branches: readonly Fragment[];
}

export interface IptablesOptions {
  /**
   * Whether cluster addresses have rules. Where sockets translate, only packets from other hosts and from containers inside
   * pods need them; without, such packets are refused. SCTP has them in any case: no program translates its sockets.
   */
  readonly clusterAddresses: boolean;
}

/** Both scopes of one place. */
type Pair = Partial<Readonly<Record<Scope, PlacedFrontend>>>;
type PlacedFrontend = Frontend & { readonly protocol: Protocol };

/** `owner`: whose frontends these are. Throws RangeError when a set is not given. */
export function iptablesItems(
  owner: FragmentId,
  frontends: readonly Frontend[],
  sets: readonly BackendSet[],
  { clusterAddresses }: IptablesOptions,
): IptablesItems {
  const addresses = frontends.filter(({ protocol }) => protocol === 'any');
  const placed = frontends.filter(
    (each): each is PlacedFrontend =>
      each.protocol !== 'any' && (clusterAddresses || each.kind !== 'cluster' || each.protocol === 'SCTP'),
  );
  const members = new Map<Key, Item<'member'>>();
  const requires = new Set(frontends.map(({ ip }) => baseId(familyOf(ip))));
  const add = (purpose: ServiceSet, { ip }: Pick<Frontend, 'ip'>, port?: Member['port']): void => {
    const made = memberItem(purpose, familyOf(ip), { entry: hostCidr(ip), ...(port && { port }) });
    members.set(made.key, made);
  };
  for (const each of addresses) add('svc-cluster', each);
  // Nearly all Services where sockets lead to them.
  if (placed.length === 0) return { items: [...members.values()], requires: [...requires], branches: [] };
  const chains = chainsOf(owner, placed, new Map(sets.map((set) => [set.id, set])));
  const pairs = Map.groupBy(placed, ({ ip, port, protocol }) => `${ip} ${port} ${protocol}`);
  const dispatch: Item<'chain-part'>[] = [];
  const branches = new Map<FragmentId, Fragment>();
  for (const pair of pairs.values()) {
    const place = pair[0] as Place;
    const byScope: Pair = Object.fromEntries(pair.map((each) => [each.scope, each]));
    for (const purpose of setsOf(byScope)) add(purpose, place, { protocol: place.protocol, number: place.port });
    const part = dispatchItem(place, byScope, chains);
    if (!part) continue;
    dispatch.push(part);
    const leaf = leafOf(place);
    requires.add(leaf.id);
    for (const fragment of leaf.fragments) branches.set(fragment.id, fragment);
  }
  // What jumps comes first, so that it also leaves first.
  const items = [...dispatch, ...new Set(chains.values()), ...members.values()];
  return { items, requires: [...requires], branches: [...branches.values()] };
}

/** Which sets a place is in. A packet that is translated is not looked for in those of the table filter any more, others are. */
function setsOf({ internal, external }: Pair): readonly ServiceSet[] {
  const both = [internal, external].filter((each) => each !== undefined);
  const isServed = both.some(({ target }) => isSetId(target));
  const sets: ServiceSet[] = ['svc-places'];
  if (isServed && both.some((each) => rangesOf(each) !== undefined)) sets.push('svc-guarded');
  if (internal?.target === 'drop') sets.push('svc-guarded');
  if (external?.target === 'drop') sets.push('svc-dropped');
  if (both.some(({ target }) => target === 'refuse')) sets.push('svc-refused');
  return sets;
}

/** Undefined: everybody. No rule and no set can say /0 otherwise. */
const rangesOf = ({ sourceRanges }: Frontend): readonly Cidr[] | undefined =>
  sourceRanges?.some((range) => prefixLengthOf(range) === 0) ? undefined : sourceRanges;

/** Undefined where nothing is translated. */
function dispatchItem(
  place: Place,
  { internal, external }: Pair,
  chains: ReadonlyMap<Frontend, Item<'chain-part'>>,
): Item<'chain-part'> | undefined {
  const inside = internal && chains.get(internal);
  const outside = external && chains.get(external);
  const rules =
    inside && inside === outside
      ? rulesTo(inside, internal)
      : [
          ...(inside ? rulesTo(inside, internal, IF_MARKED) : []),
          ...(outside ? rulesTo(outside, external, UNLESS_MARKED) : []),
        ];
  if (rules.length === 0) return undefined;
  const { ip, port, protocol } = place;
  const leaf = leafOf(place);
  const family = familyOf(ip);
  const order = `${ip}-${port}-${protocol[0]}`;
  const anchor = keyOf('chain-part', { family, table: 'nat', chain: leaf.chain, order: '00', rules: [] });
  const needs = [anchor, ...[inside, outside].flatMap((each) => each?.key ?? [])];
  return item('chain-part', { family, table: 'nat', chain: leaf.chain, order, rules }, needs);
}

/** One rule, or one a range of sources. */
function rulesTo(chain: Item<'chain-part'>, frontend: Frontend, match: readonly string[] = []): readonly Rule[] {
  const { ip, port, protocol, service } = frontend;
  const to = ['-d', ip, '-p', protocol.toLowerCase(), '--dport', String(port), ...match, '-g', chain.value.chain];
  const ranges = rangesOf(frontend)?.map((range) => ['-s', range]) ?? [[]];
  return ranges.map((range) => ({ args: [...range, ...to], comment: service }));
}

/**
 * One chain for all frontends that choose alike. Its name follows from the first of them and not from the backends: when
 * these change, one chain is rewritten, in place.
 */
function chainsOf(
  owner: FragmentId,
  frontends: readonly PlacedFrontend[],
  sets: ReadonlyMap<string, BackendSet>,
): ReadonlyMap<Frontend, Item<'chain-part'>> {
  const chains = new Map<Frontend, Item<'chain-part'>>();
  const served = frontends.filter(({ target }) => isSetId(target)).toSorted(byStability);
  for (const alike of Map.groupBy(served, choiceOf).values()) {
    const made = chainItem(owner, alike, sets);
    for (const each of alike) chains.set(each, made);
  }
  return chains;
}

const choiceOf = (frontend: PlacedFrontend): string =>
  [frontend.protocol, frontend.target, isMasqueraded(frontend), frontend.affinitySeconds ?? ''].join(' ');

/** From inside always, in answer to which a pod that is its own backend would talk past the translation. */
const isMasqueraded = ({ scope, masquerade }: Frontend): boolean => scope === 'internal' || masquerade === true;

/** Cluster addresses stay, others come and go. */
const byStability = (a: Frontend, b: Frontend): number => {
  const [first, second] = [a, b].map((each) => `${each.kind === 'cluster' ? 0 : 1} ${frontendId(each)}`) as [
    string,
    string,
  ];
  return first < second ? -1 : first > second ? 1 : 0;
};

function chainItem(
  owner: FragmentId,
  alike: readonly PlacedFrontend[],
  sets: ReadonlyMap<string, BackendSet>,
): Item<'chain-part'> {
  const [first] = alike as readonly [PlacedFrontend, ...PlacedFrontend[]];
  const set = sets.get(first.target);
  if (!set) throw new RangeError(`cannot render ${frontendId(first)}: expected the set ${first.target}, got none`);
  const chain = serviceChain(`${owner} ${frontendId(first)}`);
  const marks = alike.some(({ scope, masquerade }) => scope === 'external' && masquerade === true);
  const { protocol, affinitySeconds, service } = first;
  const rules = backendRules({ chain, protocol, set, affinitySeconds, marks, service });
  return item('chain-part', { family: set.family, table: 'nat', chain, order: '10', rules });
}
