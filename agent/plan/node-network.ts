/**
 * What the node itself needs, whatever the backend: forwarding, the gate, masquerade, and a dead end for its unused pod
 * addresses. One fragment, `node-network`.
 */
import type { Fragment } from '../model/fragment.ts';
import type { Host } from '../model/host.ts';
import { type Cidr, FAMILIES, type Family, type FamilyFacts, factsOf, familyOf } from '../model/ip.ts';
import { type AnyItem, type ChainPart, item, type Key, keyOf, type Member, type Rule } from '../model/items.ts';
import { BRIDGE_NAME, baseChain, POD_INTERFACES, type SetPurpose, setName } from '../model/kernel-names.ts';
import { BRIDGE } from './bridge.ts';
import type { PlanSettings, PodNetwork, Underlay } from './underlay.ts';

export const NODE_NETWORK = 'node-network';

/** Above every route that anyone else has for a pod: only what nothing else matches ends here. */
const DEAD_END_METRIC = 4_000_000_000;
/** A node has at most a few hundred pods; the cluster at most some ten thousand nodes, with two CIDRs each. */
const READY_MAX_ELEMENTS = 65_536;
const DIRECT_MAX_ELEMENTS = 65_536;

export function planNodeNetwork(underlay: Underlay, host: Host, settings: PlanSettings): Fragment {
  const items: AnyItem[] = [];
  for (const network of underlay.podNetworks) items.push(...networkItems(network, host, settings));
  return {
    id: NODE_NETWORK,
    cause: `node ${underlay.nodeName}`,
    rank: '',
    items,
    requires: settings.podLink === 'bridge' ? [BRIDGE] : [],
    problems: underlay.problems,
  };
}

/** Destinations in this CIDR see pod addresses as they are. */
export const directMember = (entry: Cidr): Member => ({ set: setName('direct', factsOf(entry)), entry });

/** What must be in the kernel before any pod is connected: the gate and everything that it refers to. */
export const gateKeys = (family: Family): readonly Key[] => [
  keyOf('chain-part', { ...gatePart(family), rules: [] }),
  keyOf('set', readySet(FAMILIES[family])),
];

function networkItems(network: PodNetwork, host: Host, settings: PlanSettings): AnyItem[] {
  const facts = FAMILIES[network.family];
  const ready = item('set', readySet(facts));
  const direct = item('set', {
    name: setName('direct', facts),
    type: 'hash:net',
    family: facts.family,
    maxElements: DIRECT_MAX_ELEMENTS,
  });
  const items: AnyItem[] = [
    ready,
    direct,
    ...directCidrs(network, settings).map((entry) => item('member', { set: direct.value.name, entry }, [direct.key])),
    item('chain-part', { ...gatePart(network.family), rules: gateRules(network.cidr, facts) }, [ready.key]),
    item('chain-part', acceptPart(facts)),
    ...spoofingItems(facts, host),
    item('route', { destination: network.cidr, metric: DEAD_END_METRIC, type: 'unreachable' }),
    ...forwardingItems(facts, host),
  ];
  if (settings.masquerade) items.push(item('chain-part', masqueradePart(network, host), [direct.key, ready.key]));
  return items;
}

const readySet = (facts: FamilyFacts) =>
  ({ name: setName('ready', facts), type: 'hash:ip', family: facts.family, maxElements: READY_MAX_ELEMENTS }) as const;

/** Destinations that see pod addresses as they are, beside the peers' pod CIDRs, which come with the peers. */
function directCidrs({ cidr, family }: PodNetwork, settings: PlanSettings): readonly Cidr[] {
  const configured = [...settings.clusterCidrs, ...settings.nonMasqueradeCidrs].filter(
    (other) => familyOf(other) === family,
  );
  return [...new Set([cidr, FAMILIES[family].multicast, ...configured])];
}

/**
 * The gate stands in mangle, where no ACCEPT of another firewall in filter can undo it. It is the last part of its chain,
 * because what it knows to be open returns from there.
 */
const gatePart = (family: Family) =>
  ({ family, table: 'mangle', chain: baseChain('FORWARD'), order: '90-gate' }) as const satisfies Partial<ChainPart>;

const inSet = (purpose: SetPurpose, facts: FamilyFacts, direction: 'src' | 'dst') =>
  ['-m', 'set', '--match-set', setName(purpose, facts), direction] as const;
const notInSet = (purpose: SetPurpose, facts: FamilyFacts, direction: 'src' | 'dst') =>
  ['-m', 'set', '!', '--match-set', setName(purpose, facts), direction] as const;

/**
 * Closed unless the pod is ready; the first rules also stop a pod that sends with an address that is not its own kind. Pods
 * may have addresses of a former podCIDR: what goes through their links is looked at whatever the address. Every forwarded
 * packet pays for each rule and most for each look into a set: a connection passes the gate with its first packets each way,
 * what goes between pods of the node leaves at once, and what the rules of links have looked at is not looked at again.
 */
function gateRules(cidr: Cidr, facts: FamilyFacts): Rule[] {
  const unlessReady = (direction: 'src' | 'dst') => [...notInSet('ready', facts, direction), '-j', 'DROP'];
  const [podLinks] = POD_INTERFACES;
  return [
    { args: ['-m', 'conntrack', '--ctstate', 'ESTABLISHED', '-j', 'RETURN'], comment: 'answered through the gate' },
    ...POD_INTERFACES.map((pattern) => ({
      args: [
        '-i',
        pattern,
        '-o',
        pattern,
        ...inSet('ready', facts, 'src'),
        ...inSet('ready', facts, 'dst'),
        '-j',
        'RETURN',
      ],
      comment: 'between ready pods',
    })),
    ...POD_INTERFACES.map((pattern) => ({
      args: ['-i', pattern, ...unlessReady('src')],
      comment: 'from a pod, not the address of a ready pod',
    })),
    ...POD_INTERFACES.map((pattern) => ({
      args: ['-o', pattern, ...unlessReady('dst')],
      comment: 'to a pod, not the address of a ready pod',
    })),
    { args: ['-s', cidr, '!', '-i', podLinks, ...unlessReady('src')], comment: 'from a pod that is not ready' },
    { args: ['-d', cidr, '!', '-o', podLinks, ...unlessReady('dst')], comment: 'to a pod that is not ready' },
  ];
}

/**
 * A pod sends with its own addresses only. For IPv4 the kernel sees to it (rp_filter of the pod's link); IPv6 has no such
 * setting, and the gate does not see what a pod sends to the node itself. A packet of a bridged pod that the program at the bridge
 * has looked at need not pay for a look at the routes.
 */
const spoofingItems = ({ family }: FamilyFacts, { sourceProgram }: Host): readonly AnyItem[] =>
  family === 'ipv4'
    ? []
    : [
        item('chain-part', {
          family,
          table: 'raw',
          chain: baseChain('PREROUTING'),
          order: '05-spoofing',
          rules: POD_INTERFACES.filter((pattern) => pattern !== BRIDGE_NAME || sourceProgram === undefined).map(
            (pattern) => ({
              args: ['-i', pattern, '-m', 'rpfilter', '--invert', '-j', 'DROP'],
              comment: 'not an address of the pod that sends it',
            }),
          ),
        }),
      ];

/**
 * Pod traffic is forwarded also where the policy of FORWARD is DROP (Docker, ufw). By links, which cost less than sets: the
 * gate has seen to it that only ready pods come this far.
 */
export const acceptPart = (facts: FamilyFacts): ChainPart => ({
  family: facts.family,
  table: 'filter',
  chain: baseChain('FORWARD'),
  order: '50-pods',
  rules: (['-i', '-o'] as const).flatMap((side) =>
    POD_INTERFACES.map((pattern) => ({
      args: [side, pattern, '-j', 'ACCEPT'],
      comment: `${side === '-i' ? 'from' : 'to'} pods of this node`,
    })),
  ),
});

/**
 * Nobody outside of the node has a way back to the address of a former podCIDR: such pods send with the node's own address
 * where pod addresses are known, and elsewhere with one of the way out.
 */
function masqueradePart({ cidr, family, nodeIp }: PodNetwork, { randomFully }: Host): ChainPart {
  const facts = FAMILIES[family];
  const random = randomFully ? ['--random-fully'] : [];
  const masquerade = ['-j', 'MASQUERADE', ...random];
  const elsewhere = notInSet('ready', facts, 'dst');
  const former = ['!', '-s', cidr, ...inSet('ready', facts, 'src'), ...elsewhere];
  return {
    family,
    table: 'nat',
    chain: baseChain('POSTROUTING'),
    order: '50-masquerade',
    rules: [
      {
        args: ['-s', cidr, ...notInSet('direct', facts, 'dst'), ...elsewhere, ...masquerade],
        comment: 'pod traffic that leaves the cluster',
      },
      ...(nodeIp
        ? [
            {
              args: [...former, ...inSet('direct', facts, 'dst'), '-j', 'SNAT', '--to-source', nodeIp, ...random],
              comment: 'from a pod with an address of a former podCIDR to other pods',
            },
          ]
        : []),
      { args: [...former, ...masquerade], comment: 'from a pod with an address of a former podCIDR' },
    ],
  };
}

/**
 * Forwarding, and before IPv6 forwarding accept_ra 2 on every link that lives by router advertisements: with forwarding
 * on, the kernel obeys them only then (Documentation/networking/ip-sysctl, accept_ra).
 */
function forwardingItems(facts: FamilyFacts, host: Host): AnyItem[] {
  if (facts.family === 'ipv4') return [item('sysctl', { path: 'net/ipv4/ip_forward', value: '1' })];
  const keepAdvertisements = host.ipv6Forwarding
    ? []
    : host.links
        .filter(({ name, acceptRa }) => name !== 'lo' && (acceptRa === '1' || acceptRa === '2'))
        .map(({ name }) => item('sysctl', { path: `net/ipv6/conf/${name}/accept_ra`, value: '2' }));
  const forwarding = item(
    'sysctl',
    { path: 'net/ipv6/conf/all/forwarding', value: '1' },
    keepAdvertisements.map(({ key }) => key),
  );
  return [...keepAdvertisements, forwarding];
}
