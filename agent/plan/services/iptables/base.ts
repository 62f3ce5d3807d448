/**
 * What all Services share in iptables: a few rules in built-in chains, whose number does not depend on that of Services, and
 * the sets that they ask. The first packet of a connection to anything else pays for two looks into sets, in nat, which no
 * other packet comes to. What all packets meet is a comparison of the mark; of those by which pods speak with others than each
 * other, the state is asked for.
 *
 * The mark says `internal` while a backend is looked for: it is set for what a pod or the host itself sends to a Service, as
 * that is always masqueraded, and for others by the chain that they end in. Afterwards it says that something is left to do:
 * what was translated is masqueraded, what was not is judged in filter, where a packet can be refused.
 */
import type { Fragment, FragmentId } from '../../../model/fragment.ts';
import { FAMILIES, type Family, families } from '../../../model/ip.ts';
import {
  type ChainPart,
  type IpSet,
  type Item,
  item,
  type Key,
  type Member,
  type Rule,
  type Table,
} from '../../../model/items.ts';
import {
  baseChain,
  CHAIN_PREFIX,
  MASQUERADE_MARK,
  POD_INTERFACES,
  type SetPurpose,
  setName,
} from '../../../model/kernel-names.ts';

/** Where the search for a Service begins. */
export const SERVICES_CHAIN = `${CHAIN_PREFIX}SERVICES`;
/** What comes in by a link, and what the host sends, to a place of a Service. */
const ARRIVED_CHAIN = `${CHAIN_PREFIX}ARRIVED`;
const HOST_CHAIN = `${CHAIN_PREFIX}HOST`;
const VERDICTS_CHAIN = `${CHAIN_PREFIX}VERDICTS`;
const REFUSE_CHAIN = `${CHAIN_PREFIX}REFUSE`;
const MASQUERADE_CHAIN = `${CHAIN_PREFIX}MASQUERADE`;
const ORDER = '40-services';
/** After what lets pods' packets pass. */
const ACCEPT_ORDER = '60-services';

const MARK = `0x${MASQUERADE_MARK.toString(16)}`;
/** As iptables-save words it. */
export const IF_MARKED = ['-m', 'mark', '--mark', `${MARK}/${MARK}`] as const;
export const UNLESS_MARKED = ['-m', 'mark', '!', '--mark', `${MARK}/${MARK}`] as const;
export const SET_MARK = ['-j', 'MARK', '--set-xmark', `${MARK}/${MARK}`] as const;
const CLEAR_MARK = ['-j', 'MARK', '--set-xmark', `0x0/${MARK}`] as const;
const IF_TRANSLATED = ['-m', 'conntrack', '--ctstate', 'DNAT'] as const;
/** Does not come back with a packet that was translated. */
const SEARCH: Rule = { args: ['-j', SERVICES_CHAIN], comment: 'search' };

export type ServiceSet = Extract<SetPurpose, `svc-${string}`>;
/** Ports of addresses, and addresses as a whole. What is not in the first nor the last is to no Service. */
const SET_TYPES: Readonly<Record<ServiceSet, IpSet['type']>> = {
  'svc-places': 'hash:ip,port',
  'svc-refused': 'hash:ip,port',
  'svc-dropped': 'hash:ip,port',
  'svc-guarded': 'hash:ip,port',
  'svc-cluster': 'hash:ip',
};
const MAX_ELEMENTS = 262_144;

export const baseId = (family: Family): FragmentId => `services ${family}`;

export const serviceSet = (purpose: ServiceSet, family: Family): IpSet => ({
  name: setName(purpose, FAMILIES[family]),
  type: SET_TYPES[purpose],
  family,
  maxElements: MAX_ELEMENTS,
});

const setItemsOf = (family: Family): readonly Item<'set'>[] =>
  (Object.keys(SET_TYPES) as ServiceSet[]).map((purpose) => item('set', serviceSet(purpose, family)));

/** By name: what the members of a set need, of which there is at least one a Service. */
const NEEDS: ReadonlyMap<string, readonly Key[]> = new Map(
  families
    .flatMap(({ family }) => setItemsOf(family))
    .map(({ key, value }) => [value.name, Object.freeze([key])] as const),
);

/** A member of the set of this purpose. */
export function memberItem(purpose: ServiceSet, family: Family, member: Omit<Member, 'set'>): Item<'member'> {
  const set = setName(purpose, FAMILIES[family]);
  return item('member', { set, ...member }, NEEDS.get(set));
}

/** In effect while a Service of this family requires it. */
export function baseFragment(family: Family, { randomFully }: { readonly randomFully: boolean }): Fragment {
  const sets = setItemsOf(family);
  const inner = innerParts(family, randomFully).map((part) =>
    item(
      'chain-part',
      part,
      sets.map(({ key }) => key),
    ),
  );
  // What jumps comes after what it jumps to, though other parts of the built-in chain may be there already.
  const outer = outerParts(family).map((part) => item('chain-part', part, keysOf([...sets, ...inner])));
  return {
    id: baseId(family),
    cause: 'services',
    rank: '',
    items: [...sets, ...inner, ...outer],
    requires: [],
    shared: true,
    problems: [],
  };
}

const keysOf = (items: readonly Item<'set' | 'chain-part'>[]) => items.map(({ key }) => key);

const partIn =
  (family: Family) =>
  (table: Table, chain: string, order: string, ...rules: readonly Rule[]): ChainPart => ({
    family,
    table,
    chain,
    order,
    rules,
  });

function innerParts(family: Family, randomFully: boolean): readonly ChainPart[] {
  const part = partIn(family);
  const isIn = (purpose: ServiceSet, ...flags: readonly string[]) => matchSet(purpose, family, ...flags);
  const reject = (type: string) => ['-j', 'REJECT', '--reject-with', type];
  return [
    part('nat', SERVICES_CHAIN, '00'),
    part(
      'nat',
      ARRIVED_CHAIN,
      ORDER,
      ...POD_INTERFACES.map((pattern) => ({ args: ['-i', pattern, ...SET_MARK], comment: 'from a pod' })),
      SEARCH,
      { args: SET_MARK, comment: 'not translated' },
    ),
    part('nat', HOST_CHAIN, ORDER, { args: SET_MARK, comment: 'from the host' }, SEARCH),
    part(
      'nat',
      MASQUERADE_CHAIN,
      ORDER,
      // The mark must not reach the outer packet of a tunnel, which would be masqueraded, too.
      { args: CLEAR_MARK, comment: 'decided' },
      {
        args: [...IF_TRANSLATED, '-j', 'MASQUERADE', ...(randomFully ? ['--random-fully'] : [])],
        comment: 'backends see this node',
      },
    ),
    part(
      'filter',
      REFUSE_CHAIN,
      ORDER,
      { args: ['-p', 'tcp', ...reject('tcp-reset')], comment: 'nothing listens' },
      {
        args: reject(family === 'ipv4' ? 'icmp-port-unreachable' : 'icmp6-port-unreachable'),
        comment: 'nothing listens',
      },
    ),
    part(
      'filter',
      VERDICTS_CHAIN,
      ORDER,
      { args: [...IF_TRANSLATED, '-j', 'RETURN'], comment: 'has a backend' },
      {
        args: [...isIn('svc-guarded', 'dst,dst'), '-j', 'DROP'],
        comment: 'not translated: not from its source ranges',
      },
      { args: [...isIn('svc-dropped', 'dst,dst'), '-j', 'DROP'], comment: 'no endpoint of this node' },
      { args: [...isIn('svc-refused', 'dst,dst'), '-g', REFUSE_CHAIN], comment: 'a Service without endpoints' },
      { args: [...isIn('svc-cluster', 'dst'), '-g', REFUSE_CHAIN], comment: 'a port that no Service has' },
      // With it, FORWARD would accept what is translated to nothing.
      { args: CLEAR_MARK, comment: 'to no Service any more' },
    ),
  ];
}

function outerParts(family: Family): readonly ChainPart[] {
  const part = partIn(family);
  const toPlace = matchSet('svc-places', family, 'dst,dst');
  const toCluster = { args: [...matchSet('svc-cluster', family, 'dst'), ...SET_MARK], comment: 'to a cluster address' };
  const verdicts = { args: [...IF_MARKED, '-j', VERDICTS_CHAIN], comment: 'to a Service' };
  /** `out`: only what leaves so. */
  const answers = (out: (pattern: string) => readonly string[]) =>
    POD_INTERFACES.map((pattern) => ({
      args: ['-i', pattern, ...out(pattern), '-m', 'conntrack', '--ctstate', 'INVALID', '-j', 'DROP'],
      comment: 'an answer that would leave untranslated',
    }));
  return [
    part('nat', baseChain('POSTROUTING'), ORDER, {
      args: [...IF_MARKED, '-j', MASQUERADE_CHAIN],
      comment: 'to a Service',
    }),
    part('filter', baseChain('INPUT'), ORDER, ...answers(() => []), verdicts),
    // To pods of this node they go by INPUT: what these send to Services is masqueraded. The state costs much, the link little.
    part('filter', baseChain('FORWARD'), ORDER, ...answers((pattern) => ['!', '-o', pattern]), verdicts),
    part('filter', baseChain('OUTPUT'), ORDER, verdicts),
    part(
      'filter',
      baseChain('FORWARD'),
      ACCEPT_ORDER,
      { args: [...IF_MARKED, '-j', 'ACCEPT'], comment: 'to a Service' },
      {
        // In this order what else the node forwards is asked once.
        args: [...IF_TRANSLATED, ...['-m', 'conntrack', '--ctstate', 'RELATED,ESTABLISHED'], '-j', 'ACCEPT'],
        comment: 'of a connection to a Service',
      },
    ),
    ...(
      [
        ['PREROUTING', ARRIVED_CHAIN],
        ['OUTPUT', HOST_CHAIN],
      ] as const
    ).map(([builtin, chain]) =>
      part('nat', baseChain(builtin), ORDER, { args: [...toPlace, '-j', chain], comment: 'to a Service' }, toCluster),
    ),
  ];
}

const matchSet = (purpose: ServiceSet, family: Family, ...flags: readonly string[]): readonly string[] => [
  '-m',
  'set',
  '--match-set',
  setName(purpose, FAMILIES[family]),
  ...flags,
];
