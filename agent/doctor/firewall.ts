/** Other firewalls: Tulle's own rules that somebody removed, and rules of others that stop the tunnel or the pods. */
import { run } from '../kernel/command.ts';
import { readFamily } from '../kernel/iptables/own-table.ts';
import type { FoundChain } from '../kernel/iptables/read-back.ts';
import { listBaseChains, type NftBaseChain } from '../kernel/nftables.ts';
import { families } from '../model/ip.ts';
import type { ChainPart } from '../model/items.ts';
import { baseChain } from '../model/kernel-names.ts';
import { BACKENDS } from '../plan/backends.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, several, verdict } from './finding.ts';

export const firewall: Check = {
  name: 'firewall',
  async run(facts, signal) {
    const rules = await dropping(facts);
    const policies = await deadPolicies(facts);
    const native = await nativeDrops(facts);
    const missing = await missingRules(facts, signal);
    const tunnelPort = portOf(facts);
    const port = tunnelPort === undefined ? '' : `UDP port ${tunnelPort} or `;
    const seen = `nothing drops ${port}forwarded packets before Tulle's rules`;
    return verdict(seen, [
      missing,
      rules.length > 0 ? blocked(rules, facts) : undefined,
      policies.length > 0 ? closed(policies) : undefined,
      native.length > 0 ? nativePolicy(native) : undefined,
    ]);
  },
};

const portOf = ({ config }: Facts): number | undefined => BACKENDS[config.backend].tunnel?.(config).port;

/** What may drop tunnel packets here, for the evidence of a tunnel that carries nothing. */
export async function suspects(facts: Facts): Promise<readonly string[]> {
  const native = await nativeDrops(facts);
  return [...(await dropping(facts)), ...(await deadPolicies(facts)), ...native.map(describeChain)].map(
    (each) => `suspect: ${each}`,
  );
}

/** Chains through which tunnel packets of this node go. */
const ON_THE_WAY = /^-A (PREROUTING|INPUT|OUTPUT|POSTROUTING) /;
const REFUSING = / -j (DROP|REJECT)\b/;

/** Rules of others that name the tunnel port, with the back end and table in which they stand. */
async function dropping(facts: Facts): Promise<readonly string[]> {
  const port = portOf(facts);
  if (port === undefined) return [];
  return (await facts.rules()).flatMap((scan) =>
    scan.tables.flatMap(({ table, builtin }) =>
      builtin
        .filter((rule, at) => isRefusing(rule, port) && !isOvertaken(table, builtin.slice(0, at)))
        .map((rule) => `iptables-${scan.backend} (${scan.family}) ${table}: ${rule}`),
    ),
  );
}

const isRefusing = (rule: string, port: number): boolean =>
  ON_THE_WAY.test(rule) && REFUSING.test(rule) && / -p udp\b/.test(rule) && namesPort(rule, port);

/** In filter, Tulle accepts the tunnel's packets before: its jump comes first and an ACCEPT ends the table. */
const isOvertaken = (table: string, before: readonly string[]): boolean =>
  table === 'filter' && before.some((rule) => rule.endsWith(`-j ${baseChain('INPUT')}`));

function namesPort(rule: string, port: number): boolean {
  const lists = [...rule.matchAll(/ --(?:dport|dports|ports) (\S+)/g)].flatMap(([, list = '']) => list.split(','));
  return lists.some((entry) => {
    const [first, last = first] = entry.split(':').map(Number);
    return first !== undefined && last !== undefined && first <= port && port <= last;
  });
}

const blocked = (rules: readonly string[], facts: Facts): Finding => ({
  severity: 'error',
  summary: `a rule of somebody else stops UDP port ${portOf(facts)}`,
  evidence: rules,
  cause:
    'A firewall of this host was set up without the tunnel. An ACCEPT of Tulle in filter does not undo a DROP in raw or mangle.',
  remedy: 'delete the rule, or let it except the other nodes (-m set ! --match-set tulle-nodes-4 src)',
});

/**
 * A policy that drops, where no rule of Tulle stands before it in the same table. FORWARD and INPUT of the filter table that
 * Tulle uses may drop what they like: its own chains come first and accept.
 */
async function deadPolicies(facts: Facts): Promise<readonly string[]> {
  return (await facts.rules()).flatMap((scan) =>
    scan.tables.flatMap(({ table, chains, builtin }) =>
      [...chains]
        .filter(([chain, policy]) => policy === 'DROP' && !isCovered(table, chain, builtin))
        .map(([chain]) => `iptables-${scan.backend} (${scan.family}) ${table}: policy of ${chain} is DROP`),
    ),
  );
}

function isCovered(table: string, chain: string, builtin: readonly string[]): boolean {
  const isFilter = table === 'filter' && ['FORWARD', 'INPUT'].includes(chain);
  return isFilter && builtin.some((rule) => rule.startsWith(`-A ${chain} `) && rule.endsWith(`-j ${baseChain(chain)}`));
}

const closed = (policies: readonly string[]): Finding => ({
  severity: 'warning',
  summary: 'a policy that drops is not preceded by rules of Tulle',
  evidence: policies,
  cause:
    'A firewall was set up in another back end of iptables, in another table, or Tulle has not written its rules yet.',
  remedy: 'let the firewall accept the tunnel port from nodes and what pods send and get, or set the policy to ACCEPT',
});

/** Base chains of nftables that nobody made for iptables. An ACCEPT elsewhere does not undo their DROP. */
async function nativeDrops(facts: Facts): Promise<readonly NftBaseChain[]> {
  const chains = await listBaseChains(facts.nfnetlink);
  return chains.filter(
    ({ name, policy, hook }) => policy === 'drop' && hook !== 'postrouting' && name !== hook.toUpperCase(),
  );
}

const describeChain = ({ family, table, name, hook, priority }: NftBaseChain): string =>
  `nftables: table ${family} ${table}, chain ${name} (hook ${hook}, priority ${priority}): policy drop`;

const nativePolicy = (chains: readonly NftBaseChain[]): Finding => ({
  severity: 'warning',
  summary: 'a firewall of nftables drops what its own rules do not accept',
  evidence: chains.map(describeChain),
  cause:
    'Every base chain has its own verdict: what Tulle accepts is dropped here all the same, unless this firewall accepts it too.',
  remedy:
    'accept there: on input, the tunnel port from the nodes; on forward, what comes from and goes to the interfaces tl+ and tulle+ (nft list ruleset shows what it accepts now)',
});

/** What a flush by somebody else took away. A running agent writes it again within one resync. */
async function missingRules(facts: Facts, signal: AbortSignal): Promise<Finding | undefined> {
  const backend = await facts.iptables();
  const items = (await facts.wanted()) ?? [];
  const wanted = items.flatMap(({ kind, value }) => (kind === 'chain-part' ? [value] : []));
  const evidence: string[] = [];
  for (const { family } of families) {
    const ofFamily = wanted.filter((part) => part.family === family);
    if (ofFamily.length === 0) continue;
    evidence.push(...defects(ofFamily, await readFamily(run, backend, family, signal)));
  }
  if (evidence.length === 0) return undefined;
  return {
    severity: 'error',
    summary: `${evidence.length} of Tulle's own chains are not as they should be`,
    evidence: evidence.slice(0, 20),
    cause: runningAgent(facts)
      ? 'Somebody flushed or edited them (iptables -F, a firewall that reloads, iptables-restore without --noflush).'
      : 'Somebody removed them while no agent ran, or none has run since the last boot.',
    remedy: runningAgent(facts)
      ? 'the agent writes them again within one resync; find who flushes, and let that leave chains TULLE-* alone'
      : 'start the agent',
  };
}

function defects(wanted: readonly ChainPart[], found: readonly FoundChain[]): readonly string[] {
  const byChain = Map.groupBy(wanted, ({ family, table, chain }) => `${family} ${table} ${chain}`);
  return [...byChain].flatMap(([name, parts]) => {
    const chain = found.find(({ table, chain }) => parts[0]?.table === table && parts[0].chain === chain);
    if (!chain) return [`${name}: no such chain`];
    const missing = parts.filter(({ order }) => !chain.parts.has(order)).map(({ order }) => order);
    if (missing.length > 0) return [`${name}: without ${several(missing)}`];
    return chain.drift === undefined ? [] : [`${name}: ${chain.drift}`];
  });
}
