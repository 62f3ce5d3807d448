/**
 * Which iptables the host uses. The kernel runs the rules of both back ends, so one that differs from the host's works
 * at first and then surprises: order against the host's own rules is undefined, and people look in the wrong place.
 */
import { FAMILIES, type Family, families } from '../../model/ip.ts';
import { CHAIN_PREFIX } from '../../model/kernel-names.ts';
import type { Run } from '../command.ts';
import { KernelError } from '../errors.ts';
import { isMissingFamily } from './own-table.ts';

export type BackendName = 'nft' | 'legacy';
/** In order of preference. */
const BACKENDS: readonly BackendName[] = ['nft', 'legacy'];

export interface Backend {
  readonly backend: BackendName;
  readonly commands: Readonly<Record<Family, { readonly restore: string; readonly save: string }>>;
  /** `MASQUERADE --random-fully` is known (iptables 1.6.2, Linux 3.13). */
  readonly randomFully: boolean;
  /** As the tool names itself. */
  readonly version: string;
  /** Why this one, for the log. */
  readonly reason: string;
}

/** What one back end holds. */
interface Census {
  readonly name: BackendName;
  /** A chain by which a kubelet shows which back end it uses (KEP-3178). */
  hinted: boolean;
  foreignRules: number;
  ownRules: number;
}

const DEADLINE_MS = 10_000;
/** Failures that say nothing about a back end. */
const PASSING: ReadonlySet<string> = new Set(['ECANCELED', 'ETIMEDOUT', 'EAGAIN']);
const HINT = /^:(KUBE-IPTABLES-HINT|KUBE-KUBELET-CANARY) /;

export const backendCommands = (backend: BackendName): Backend['commands'] => {
  const commands = ({ iptables }: { iptables: string }) => ({
    restore: `${iptables}-${backend}-restore`,
    save: `${iptables}-${backend}-save`,
  });
  return { ipv4: commands(FAMILIES.ipv4), ipv6: commands(FAMILIES.ipv6) };
};

/**
 * The kubelet's hint decides, then more rules of others, then Tulle's own rules of before, then nft. One that cannot be
 * read is not chosen: it is not installed, or the kernel lacks it. Throws KernelError: the first reason when neither can
 * be read; at once when one is merely busy, because an answer would depend on the moment.
 */
export async function chooseBackend(run: Run, signal?: AbortSignal): Promise<Backend> {
  const counted: Census[] = [];
  const unusable: { readonly name: BackendName; readonly error: KernelError }[] = [];
  for (const name of BACKENDS) {
    try {
      counted.push(await takeCensus(run, name, signal));
    } catch (error) {
      if (!(error instanceof KernelError) || PASSING.has(error.code)) throw error;
      unusable.push({ name, error });
    }
  }
  const [best] = counted.sort(byEvidence);
  if (!best) throw unusable[0]?.error;
  const reasons = [reasonOf(best), ...unusable.map(({ name, error }) => `${name} is unusable: ${error.message}`)];
  return describeBackend(run, best.name, reasons.join('; '), signal);
}

/** The facts of a back end that is chosen already. */
export async function describeBackend(
  run: Run,
  backend: BackendName,
  reason: string,
  signal?: AbortSignal,
): Promise<Backend> {
  const commands = backendCommands(backend);
  const { stdout } = await run({ file: commands.ipv4.restore, args: ['--version'], timeoutMs: DEADLINE_MS, signal });
  const randomFully = await probeRandomFully(run, commands.ipv4.restore, signal);
  return Object.freeze({ backend, commands, randomFully, version: stdout.trim(), reason });
}

/** Stable sort: equal evidence leaves nft first. */
const byEvidence = (a: Census, b: Census): number =>
  Number(b.hinted) - Number(a.hinted) || b.foreignRules - a.foreignRules || b.ownRules - a.ownRules;

function reasonOf({ hinted, foreignRules, ownRules }: Census): string {
  if (hinted) return 'a kubelet uses it';
  if (foreignRules > 0) return `it holds ${foreignRules} rules of others`;
  return ownRules > 0 ? 'Tulle used it before' : 'no other rules on this host';
}

/** Reads without -t, which for legacy would load the tables that it reads. A family that cannot be read holds nothing. */
async function takeCensus(run: Run, name: BackendName, signal?: AbortSignal): Promise<Census> {
  const census: Census = { name, hinted: false, foreignRules: 0, ownRules: 0 };
  for (const { family } of families) {
    const file = backendCommands(name)[family].save;
    try {
      await run({ file, args: [], timeoutMs: DEADLINE_MS, signal, onLine: (line) => count(census, line) });
    } catch (error) {
      if (family === FAMILIES.ipv4.family || !isMissingFamily(error)) throw error;
    }
  }
  return census;
}

function count(census: Census, line: string): void {
  if (HINT.test(line)) census.hinted = true;
  if (!line.startsWith('-A ')) return;
  if (line.includes(CHAIN_PREFIX)) census.ownRules++;
  else census.foreignRules++;
}

/** Asks with a table that is checked and never committed. */
async function probeRandomFully(run: Run, restore: string, signal?: AbortSignal): Promise<boolean> {
  const chain = `${CHAIN_PREFIX}PROBE`;
  const stdin = `*nat\n:${chain} - [0:0]\n-A ${chain} -j MASQUERADE --random-fully\nCOMMIT\n`;
  try {
    await run({ file: restore, args: ['--noflush', '--test'], stdin, timeoutMs: DEADLINE_MS, signal });
    return true;
  } catch (error) {
    if (error instanceof KernelError && error.code !== 'ECANCELED') return false;
    throw error;
  }
}
