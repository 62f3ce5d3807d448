/** The two back ends of iptables: the kernel runs the rules of both, whoever looks sees those of one. */
import { KernelError } from '../kernel/errors.ts';
import type { Backend, BackendName } from '../kernel/iptables/backend.ts';
import type { RuleScan } from '../kernel/iptables/scan.ts';
import { removeOwnChains } from '../kernel/kernel.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, type Fix, verdict } from './finding.ts';

/** The first without faults in what Tulle uses: comments of rules are kept, and tables restored as a whole. */
const OLDEST_VERSION = [1, 8, 0] as const;

export const iptables: Check = {
  name: 'iptables',
  async run(facts) {
    const backend = await facts.iptables().catch((error: unknown) => error);
    if (backend instanceof KernelError) return verdict('', [unusable(backend)]);
    const used = backend as Backend;
    const scans = await facts.rules();
    const seen = `${used.version}, ${used.reason}`;
    return verdict(seen, [strays(used, scans, facts), mixed(used, scans), foreignTables(scans), outdated(used)]);
  },
};

const unusable = ({ message }: KernelError): Finding => ({
  severity: 'error',
  summary: 'no iptables can be used',
  evidence: [message],
  cause: 'The tool is not installed, or this kernel has neither nf_tables nor ip_tables.',
  remedy: 'install iptables (1.8 or later); modprobe nft_compat, or ip_tables and iptable_{raw,mangle,nat,filter}',
});

const place = ({ backend, family }: RuleScan): string => `iptables-${backend} (${family})`;

/**
 * Own chains where nobody of Tulle looks after them any more. Only a running agent knows which ones are in use: what would
 * be chosen now may be another back end than the one whose rules carry the pods while no agent runs.
 */
function strays(used: Backend, scans: readonly RuleScan[], facts: Facts): Finding | undefined {
  const found = scans.filter(({ backend, ownRules }) => backend !== used.backend && ownRules > 0);
  const [first] = found;
  if (!first) return undefined;
  return {
    severity: 'error',
    summary: `rules of Tulle stand in iptables-${first.backend}, but iptables-${used.backend} is used`,
    evidence: found.map((scan) => `${place(scan)}: ${scan.ownRules} rules of Tulle`),
    cause:
      'The host changed from one back end to the other under an agent. Both are obeyed, and the old rules are never updated.',
    remedy: runningAgent(facts)
      ? 'remove them; a ready agent does so when it starts'
      : 'start the agent, which removes what it does not use once it is ready',
    ...(runningAgent(facts) && { fix: removal(first.backend, found) }),
  };
}

const removal = (backend: BackendName, found: readonly RuleScan[]): Fix => ({
  steps: found.map((scan) => `remove the chains TULLE-* from ${place(scan)}`),
  apply: async (signal) => {
    const { failures } = await removeOwnChains(backend, signal);
    const [failure] = failures;
    if (failure) throw failure;
  },
});

function mixed(used: Backend, scans: readonly RuleScan[]): Finding | undefined {
  const holders = scans.filter(({ foreignRules }) => foreignRules > 0);
  if (new Set(holders.map(({ backend }) => backend)).size < 2) return undefined;
  const other = used.backend === 'nft' ? 'legacy' : 'nft';
  return {
    severity: 'warning',
    summary: 'there are rules of others in both back ends of iptables',
    evidence: holders.map((scan) => `${place(scan)}: ${scan.foreignRules} rules of others`),
    cause: `Two programs use different iptables, often one in a container and one of the host. A packet passes both; a DROP in either wins, and each sees only its own.`,
    remedy: `let all use one: update-alternatives --set iptables, or the other program's own switch; then empty the other (iptables-${other}-save shows what is there)`,
  };
}

function foreignTables(scans: readonly RuleScan[]): Finding | undefined {
  const remarks = scans.flatMap((scan) => scan.remarks.map((remark) => `${place(scan)}: ${remark}`));
  if (remarks.length === 0) return undefined;
  return {
    severity: 'warning',
    summary: 'a table of iptables holds rules that iptables cannot show',
    evidence: remarks,
    cause: 'Somebody wrote them with nft, or with a newer iptables, into a table that belongs to iptables.',
    remedy:
      'put own nft rules into a table of their own (nft list ruleset shows them); use one version of iptables on host and in containers',
  };
}

function outdated({ version }: Backend): Finding | undefined {
  const numbers = (/v(\d+)\.(\d+)(?:\.(\d+))?/.exec(version) ?? []).slice(1).map((part) => Number(part ?? 0));
  if (numbers.length === 0) return undefined;
  const at = OLDEST_VERSION.findIndex((number, i) => number !== (numbers[i] ?? 0));
  if (at < 0 || (numbers[at] ?? 0) > (OLDEST_VERSION[at] as number)) return undefined;
  return {
    severity: 'warning',
    summary: 'iptables is older than what Tulle was tried with',
    evidence: [version],
    cause: 'An old distribution, or an old image.',
    remedy: `use iptables ${OLDEST_VERSION.join('.')} or later`,
  };
}
