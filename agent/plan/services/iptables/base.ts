/**
 * What all Services share in iptables: a few rules in built-in chains, whose number does not depend on that of Services, and
 * the sets that they ask. A new connection to anything else pays for one look into a set in nat and four in filter.
 *
 * The mark says `internal` until the connection is translated: it is set for what a pod or the host itself sends to a
 * Service, as that is always masqueraded, and for others by the chain that they end in.
 */
import type { Fragment, FragmentId } from '../../../model/fragment.ts';
import { FAMILIES, type Family } from '../../../model/ip.ts';
import { type ChainPart, type IpSet, type Item, item, type Rule, type Table } from '../../../model/items.ts';
import {
  baseChain,
  CHAIN_PREFIX,
  MASQUERADE_MARK,
  POD_LINKS,
  type SetPurpose,
  setName,
} from '../../../model/kernel-names.ts';

/** Where the search for a Service begins. */
export const SERVICES_CHAIN = `${CHAIN_PREFIX}SERVICES`;
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

export type ServiceSet = Extract<SetPurpose, `svc-${string}`>;
/** Ports of addresses, and addresses as a whole. */
const SET_TYPES: Readonly<Record<ServiceSet, IpSet['type']>> = {
  'svc-translated': 'hash:ip,port',
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

/** In effect while a Service of this family requires it. */
export function baseFragment(family: Family, { randomFully }: { readonly randomFully: boolean }): Fragment {
  const sets = (Object.keys(SET_TYPES) as ServiceSet[]).map((purpose) => item('set', serviceSet(purpose, family)));
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
      MASQUERADE_CHAIN,
      ORDER,
      // The mark must not reach the outer packet of a tunnel, which would be masqueraded, too.
      { args: CLEAR_MARK, comment: 'decided' },
      {
        args: [
          ...['-m', 'conntrack', '--ctstate', 'DNAT'],
          ...['-j', 'MASQUERADE', ...(randomFully ? ['--random-fully'] : [])],
        ],
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
      {
        args: ['-i', POD_LINKS, '-m', 'conntrack', '--ctstate', 'INVALID', '-j', 'DROP'],
        comment: 'an answer that would leave untranslated',
      },
      {
        args: [...isIn('svc-guarded', 'dst,dst'), '-j', 'DROP'],
        comment: 'not translated: not from its source ranges',
      },
      {
        args: [...UNLESS_MARKED, ...isIn('svc-dropped', 'dst,dst'), '-j', 'DROP'],
        comment: 'no endpoint of this node',
      },
      { args: [...isIn('svc-refused', 'dst,dst'), '-g', REFUSE_CHAIN], comment: 'a Service without endpoints' },
      { args: [...isIn('svc-cluster', 'dst'), '-g', REFUSE_CHAIN], comment: 'a port that no Service has' },
    ),
  ];
}

function outerParts(family: Family): readonly ChainPart[] {
  const part = partIn(family);
  const isService = matchSet('svc-translated', family, 'dst,dst');
  const toServices = { args: [...isService, '-j', SERVICES_CHAIN], comment: 'to a Service' };
  // Also what is INVALID, which a state of NEW would miss.
  const begins = ['-m', 'conntrack', '!', '--ctstate', 'RELATED,ESTABLISHED,UNTRACKED'];
  const verdicts = { args: [...begins, '-j', VERDICTS_CHAIN], comment: 'what no backend is there for' };
  return [
    part('nat', baseChain('POSTROUTING'), ORDER, {
      args: [...IF_MARKED, '-j', MASQUERADE_CHAIN],
      comment: 'to a Service',
    }),
    ...['INPUT', 'FORWARD', 'OUTPUT'].map((builtin) => part('filter', baseChain(builtin), ORDER, verdicts)),
    part(
      'filter',
      baseChain('FORWARD'),
      ACCEPT_ORDER,
      { args: [...IF_MARKED, '-j', 'ACCEPT'], comment: 'to a Service' },
      {
        args: [
          ...['-m', 'conntrack', '--ctstate', 'RELATED,ESTABLISHED'],
          ...['-m', 'conntrack', '--ctstate', 'DNAT', '-j', 'ACCEPT'],
        ],
        comment: 'of a connection to a Service',
      },
    ),
    part(
      'nat',
      baseChain('PREROUTING'),
      ORDER,
      { args: ['-i', POD_LINKS, ...isService, ...SET_MARK], comment: 'from a pod to a Service' },
      toServices,
    ),
    part(
      'nat',
      baseChain('OUTPUT'),
      ORDER,
      { args: [...isService, ...SET_MARK], comment: 'from the host' },
      toServices,
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
