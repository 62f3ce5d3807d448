/**
 * Everybody's rules in both back ends of iptables, as far as a person who looks for trouble wants them: the names of all
 * chains, and the rules of the built-in ones. What is inside the chains of others is only counted: a Service proxy has a
 * hundred thousand rules.
 */
import { type Family, families } from '../../model/ip.ts';
import { CHAIN_PREFIX } from '../../model/kernel-names.ts';
import type { Run } from '../command.ts';
import { KernelError } from '../errors.ts';
import { type BackendName, backendCommands } from './backend.ts';
import { BUILTIN_CHAINS } from './render.ts';

export interface TableScan {
  readonly table: string;
  /** Policy by built-in chain; `-` for every other chain. */
  readonly chains: ReadonlyMap<string, string>;
  /** Rules of the built-in chains in their order, as saved: `-A INPUT …`. */
  readonly builtin: readonly string[];
}

export interface RuleScan {
  readonly backend: BackendName;
  readonly family: Family;
  readonly tables: readonly TableScan[];
  readonly ownRules: number;
  readonly foreignRules: number;
  /** What the tool says besides rules: tables that somebody made with nft and it cannot show. */
  readonly remarks: readonly string[];
}

const DEADLINE_MS = 10_000;

/** Both back ends and families. One that is not installed, or that the kernel lacks, is left out. */
export async function scanRules(run: Run, signal?: AbortSignal): Promise<readonly RuleScan[]> {
  const backends: readonly BackendName[] = ['nft', 'legacy'];
  const scans = backends.flatMap((backend) => families.map(({ family }) => scanOne(run, backend, family, signal)));
  return (await Promise.all(scans)).filter((scan) => scan !== undefined);
}

async function scanOne(
  run: Run,
  backend: BackendName,
  family: Family,
  signal: AbortSignal | undefined,
): Promise<RuleScan | undefined> {
  const reading = new Reading();
  try {
    await run({
      file: backendCommands(backend)[family].save,
      args: [],
      timeoutMs: DEADLINE_MS,
      signal,
      onLine: (line) => reading.line(line),
    });
  } catch (error) {
    if (error instanceof KernelError && error.code !== 'ECANCELED') return undefined;
    throw error;
  }
  return { backend, family, ...reading.result() };
}

/** Takes the lines of one iptables-save. */
class Reading {
  readonly #tables: { table: string; chains: Map<string, string>; builtin: string[] }[] = [];
  readonly #remarks: string[] = [];
  #ownRules = 0;
  #foreignRules = 0;

  line(line: string): void {
    const current = this.#tables.at(-1);
    if (line.startsWith('*')) this.#tables.push({ table: line.slice(1).trim(), chains: new Map(), builtin: [] });
    else if (line.startsWith(':')) {
      const [chain = '', policy = '-'] = line.slice(1).split(' ');
      current?.chains.set(chain, policy);
    } else if (line.startsWith('-A ')) {
      if (line.includes(CHAIN_PREFIX)) this.#ownRules++;
      else this.#foreignRules++;
      const chain = line.slice(3, line.indexOf(' ', 3));
      if (BUILTIN_CHAINS.has(chain)) current?.builtin.push(line);
    } else if (/incompatible/.test(line)) this.#remarks.push(line);
  }

  result(): Omit<RuleScan, 'backend' | 'family'> {
    return {
      tables: this.#tables,
      ownRules: this.#ownRules,
      foreignRules: this.#foreignRules,
      remarks: this.#remarks,
    };
  }
}
