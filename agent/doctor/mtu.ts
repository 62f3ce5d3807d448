/** Whether packets of the size that pods may send reach every peer: proved by packets that nobody may fragment. */
import { type Family, familyOf } from '../model/ip.ts';
import { BACKENDS } from '../plan/backends.ts';
import type { Plan } from '../plan/planner.ts';
import type { Facts } from './facts.ts';
import { type Check, type Finding, several, verdict } from './finding.ts';
import { describeAnswer, type EndReach, type Reach } from './reach.ts';

export const mtu: Check = {
  name: 'mtu',
  async run(facts) {
    const plan = await facts.plan();
    const reach = await facts.reach();
    if (!plan || !reach) return { skipped: 'the peers cannot be known without the Nodes' };
    const ends = endsOf(reach);
    const proved = ends.filter(({ full }) => full?.kind === 'answered').length;
    const seen = `pods ${plan.underlay.mtuBytes} bytes; ${proved} of ${ends.length} ways to ${reach.peers.length} peers proved with full packets`;
    const tooWide = wider(plan, facts);
    // The same cause would be told once more for every peer.
    return verdict(seen, tooWide ? [tooWide] : narrow(ends, plan, facts));
  },
};

/** One way to one peer. */
interface Way extends EndReach {
  readonly peer: string;
  readonly network: 'underlay' | 'pod network';
}

const endsOf = ({ peers }: Reach): readonly Way[] =>
  peers.flatMap(({ name, underlay, pods }) => [
    ...underlay.map((end) => ({ ...end, peer: name, network: 'underlay' as const })),
    ...pods.map((end) => ({ ...end, peer: name, network: 'pod network' as const })),
  ]);

const overheadOf = (family: Family, { config }: Facts): number =>
  BACKENDS[config.backend].overheadBytes?.(family, config) ?? 0;

function wider({ underlay }: Plan, facts: Facts): Finding | undefined {
  const family = underlay.tunnel?.family ?? underlay.podNetworks[0]?.family;
  const link = family && underlay.locals[family]?.link;
  if (!family || !link) return undefined;
  const overheadBytes = overheadOf(family, facts);
  const fits = link.mtuBytes - overheadBytes;
  if (underlay.mtuBytes <= fits) return undefined;
  return {
    severity: 'error',
    summary: `pods may send ${underlay.mtuBytes} bytes, but ${link.name} passes only ${fits} of them`,
    evidence: [
      `MTU of ${link.name}: ${link.mtuBytes}`,
      `overhead of the tunnel over ${family}: ${overheadBytes}`,
      `setting mtuBytes: ${facts.config.mtuBytes || '0 (from the underlay)'}`,
    ],
    cause:
      'The setting mtuBytes is larger than the underlay allows, or the underlay has become smaller. Full packets are fragmented or vanish: connections open and then hang.',
    remedy: `leave mtuBytes at 0, or at most ${fits}; or raise the MTU of ${link.name}`,
  };
}

/** Peers with the same trouble are one finding. */
function narrow(ends: readonly Way[], plan: Plan, facts: Facts): readonly Finding[] {
  const failing = ends.filter(({ full }) => full !== undefined && full.kind !== 'answered');
  const groups = Map.groupBy(failing, ({ network, full, passesBytes, ip }) =>
    [network, familyOf(ip), full?.kind === 'too-big' ? `${full.by} ${full.mtuBytes}` : passesBytes].join(' '),
  );
  return [...groups.values()].map((ways) => narrowFinding(ways, plan, facts));
}

function narrowFinding(ways: readonly Way[], { underlay }: Plan, facts: Facts): Finding {
  const [first] = ways as [Way];
  const { full, passesBytes, fullBytes, network } = first;
  const peers = several([...new Set(ways.map(({ peer }) => peer))]);
  const [limitBytes, by] = full?.kind === 'too-big' ? [full.mtuBytes, full.by] : [passesBytes, undefined];
  const family = underlay.tunnel?.family ?? familyOf(first.ip);
  const overheadBytes = network === 'underlay' ? overheadOf(family, facts) : 0;
  const fits = limitBytes === undefined ? undefined : limitBytes - overheadBytes;
  const where = by ? `behind ${by}` : full?.kind === 'too-big' ? 'of this host' : 'somewhere on the way';
  return {
    severity: 'error',
    summary: `a link ${where} passes at most ${limitBytes ?? '?'} bytes to ${peers} (${network}), pods need ${fullBytes}`,
    evidence: ways
      .slice(0, 5)
      .map(
        (way) =>
          `${way.fullBytes} bytes to ${way.peer} ${way.ip}, not to be fragmented: ${describeAnswer(way.full)}${way.passesBytes === undefined ? '' : `; ${way.passesBytes} bytes are answered, ${way.passesBytes + 1} are not`}`,
      ),
    cause: by
      ? `${by} forwards into a link with a smaller MTU than the one of this host.`
      : 'A switch, a tunnel or a provider in between has a smaller MTU and drops larger packets without a word, or a firewall drops the ICMP that would tell (type 3 code 4, ICMPv6 type 2).',
    remedy: `raise the MTU of that link${fits === undefined ? '' : `, or set mtuBytes to ${fits} on all nodes`}; let the ICMP pass`,
  };
}
