/** Who calls Services in a way that programs at sockets do not see, where these alone serve cluster addresses. */
import { run } from '../kernel/command.ts';
import { type Family, families } from '../model/ip.ts';
import { serviceSet } from '../plan/services/iptables/base.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, verdict } from './finding.ts';

const DEADLINE_MS = 10_000;
/** As many may come from sockets that are older than the programs. */
const FEW = 20;

export const services: Check = {
  name: 'services',
  async run(facts, signal) {
    const agent = runningAgent(facts);
    if (!agent) return { skipped: 'no agent answers' };
    const { mode } = agent.services ?? { mode: 'off' };
    if (mode !== 'ebpf' || facts.config['services.ebpf.scope'] === 'host')
      return { skipped: `cluster addresses are not left to sockets (services.mode ${mode})` };
    const refused = (await Promise.all(families.map(({ family }) => refusedRule(facts, family, signal)))).flat();
    return verdict('whoever called a cluster address did so through a socket of this node', [
      refused.length > 0 ? unseen(refused) : undefined,
    ]);
  },
};

/** The rule that refuses packets to cluster addresses, as iptables-save has it with its counters; none while these are small. */
async function refusedRule({ iptables }: Facts, family: Family, signal: AbortSignal): Promise<readonly string[]> {
  const { commands } = await iptables();
  const rules: string[] = [];
  const match = ` --match-set ${serviceSet('svc-cluster', family).name} `;
  await run({
    file: commands[family].save,
    args: ['-c', '-t', 'filter'],
    timeoutMs: DEADLINE_MS,
    signal,
    onLine: (line) => line.includes(match) && Number(/^\[(\d+):/.exec(line)?.[1]) > FEW && rules.push(line),
  });
  return rules;
}

const unseen = (rules: readonly string[]): Finding => ({
  severity: 'warning',
  summary: 'packets to cluster addresses were refused, as no program saw the socket that sent them',
  evidence: rules,
  cause:
    'Their senders have no socket on this node, such as virtual machines in pods and other hosts that have a route to here. Or the address has no such port, and somebody asks all the same.',
  remedy:
    'tcpdump -ni any on the cluster addresses shows who; let services.ebpf.scope be host, which leaves all pods and what arrives from elsewhere to iptables',
});
