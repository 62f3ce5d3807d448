/** Looks at a node and says what is wrong with it, why, and what to do: all checks, each on its own. */
import { agentState } from './agent-state.ts';
import { api } from './api.ts';
import { cniConfig } from './cni-config.ts';
import { type DoctorOptions, type Facts, openFacts } from './facts.ts';
import type { Check, Finding, Fix } from './finding.ts';
import { firewall } from './firewall.ts';
import { forwarding } from './forwarding.ts';
import { iptables } from './iptables.ts';
import { leftovers } from './leftovers.ts';
import { mtu } from './mtu.ts';
import { networkd } from './networkd.ts';
import { nodeAddress } from './node-address.ts';
import { podCidr } from './pod-cidr.ts';
import { runDir } from './run-dir.ts';
import { services } from './services.ts';
import { conntrack, neighbours } from './tables.ts';
import { tools } from './tools.ts';
import { tunnel } from './tunnel.ts';
import { tunnelDevice } from './tunnel-device.ts';

/** In the order in which a person reads them: what others depend on comes first. */
export const CHECKS: readonly Check[] = [
  agentState,
  api,
  podCidr,
  nodeAddress,
  cniConfig,
  runDir,
  leftovers,
  iptables,
  firewall,
  forwarding,
  networkd,
  tunnelDevice,
  tunnel,
  mtu,
  services,
  conntrack,
  neighbours,
  tools,
];

export interface CheckReport {
  readonly check: string;
  readonly state: 'ok' | 'findings' | 'skipped';
  /** What was found to be right, or why nothing was looked at. */
  readonly detail: string;
  readonly findings: readonly Finding[];
}

/** Bound of the whole. */
const DEADLINE_MS = 60_000;

/** What was done for one finding. */
export interface Repair {
  readonly steps: readonly string[];
  /** Why it could not be done to the end. */
  readonly error?: string;
}

export interface Diagnosis {
  readonly checks: readonly CheckReport[];
  readonly repairs: readonly Repair[];
}

/**
 * Looks; may run beside the agent. Without `fix` nothing is changed. With an empty one Tulle's own objects are repaired, with
 * names what these have left is removed. Throws KernelError when there is no netlink to ask.
 */
export async function examine(
  options: DoctorOptions,
  fix: readonly string[] | undefined,
  outer: AbortSignal,
): Promise<Diagnosis> {
  const signal = AbortSignal.any([outer, AbortSignal.timeout(DEADLINE_MS)]);
  const facts = openFacts(options, signal);
  try {
    const checks = await Promise.all(CHECKS.map((check) => report(check, facts, signal)));
    const repairs: Repair[] = [];
    for (const each of fix === undefined ? [] : fixesIn(checks, fix)) repairs.push(await repair(each, signal));
    return { checks, repairs };
  } finally {
    await facts.close();
  }
}

async function repair({ steps, apply }: Fix, signal: AbortSignal): Promise<Repair> {
  try {
    await apply(signal);
    return { steps };
  } catch (error) {
    return { steps, error: error instanceof Error ? error.message : String(error) };
  }
}

async function report({ name, run }: Check, facts: Facts, signal: AbortSignal): Promise<CheckReport> {
  try {
    const result = await run(facts, signal);
    if ('skipped' in result) return { check: name, state: 'skipped', detail: result.skipped, findings: [] };
    const { seen, findings } = result;
    return { check: name, state: findings.length > 0 ? 'findings' : 'ok', detail: seen, findings };
  } catch (error) {
    return { check: name, state: 'findings', detail: '', findings: [impossible(error)] };
  }
}

const impossible = (error: unknown): Finding => ({
  severity: 'error',
  summary: 'this could not be looked at',
  evidence: [error instanceof Error ? error.message : String(error)],
  cause: 'The kernel, a tool or a file did not answer as expected.',
  remedy: 'run the doctor as root on the node itself, or in the container of the agent',
});

function fixesIn(reports: readonly CheckReport[], names: readonly string[]): readonly Fix[] {
  const all = reports.flatMap(({ findings }) => findings.flatMap(({ fix }) => fix ?? []));
  return all.filter(({ name }) =>
    names.length === 0 ? name === undefined : name !== undefined && names.includes(name),
  );
}
