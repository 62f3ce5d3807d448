/** The agent of this node: that it runs, is ready, and has everything in the kernel. */

import type { AgentAnswer } from './facts.ts';
import { type Check, type Finding, several, verdict } from './finding.ts';

export const agentState: Check = {
  name: 'agent',
  async run({ agent, version }) {
    if (agent instanceof Error) return verdict('', [absent(agent)]);
    const seen = `tulle ${agent.version} runs and is ready for pods`;
    return verdict(seen, [notReady(agent), otherVersion(agent, version), unsettled(agent), strays(agent)]);
  },
};

const absent = ({ message }: Error): Finding => ({
  severity: 'error',
  summary: 'no agent answers on this node',
  evidence: [message],
  cause:
    'The agent does not run, is starting, or has another run directory. What it wrote into the kernel stays as it is.',
  remedy:
    "look at the agent's log (kubectl -n kube-system logs ds/tulle, or the log of its service); with another run directory give --run-dir",
});

function notReady({ readiness }: AgentAnswer): Finding | undefined {
  if (readiness.ready) return undefined;
  return {
    severity: 'error',
    summary: 'the agent is not ready for pods',
    evidence: [readiness.reason],
    cause: 'New pods are refused with this reason; pods that run keep their network.',
    remedy: 'see what the other checks say about this reason',
  };
}

function otherVersion({ version }: AgentAnswer, own: string): Finding | undefined {
  if (version === own) return undefined;
  return {
    severity: 'warning',
    summary: 'another version of Tulle runs than the one that looks',
    evidence: [`agent: ${version}`, `this program: ${own}`],
    cause: 'What the two want in the kernel may differ, so the other checks may judge by the wrong rules.',
    remedy: "call the doctor of the agent's own version, or finish the upgrade",
  };
}

function unsettled({ kernel: { failing, blocked } }: AgentAnswer): Finding | undefined {
  if (failing.length + blocked.length === 0) return undefined;
  return {
    severity: 'error',
    summary: `${failing.length} objects cannot be written to the kernel, ${blocked.length} wait for others`,
    evidence: [
      ...failing.slice(0, 10).map(({ key, error, attempts }) => `${key}: ${error} (${attempts} attempts)`),
      ...(blocked.length > 0 ? [`blocked: ${several(blocked.map(({ key, by }) => `${key} by ${by}`))}`] : []),
    ],
    cause: 'The kernel or a tool refuses them; the agent tries again by itself.',
    remedy: 'remove what the messages name; `tulle status` shows all of them',
  };
}

function strays({ problems }: AgentAnswer): Finding | undefined {
  if (problems.length === 0) return undefined;
  return {
    severity: 'warning',
    summary: 'pods have a network that is not as new pods get it',
    evidence: problems,
    cause: 'The podCIDR of this node has changed under them.',
    remedy: 'delete these pods, so that their controllers make them again',
  };
}
