/** What one family and table of iptables holds of Tulle, and how it is written: all or nothing, then by halves. */
import { FAMILIES, type Family } from '../../model/ip.ts';
import type { ChainPart, Key, Table } from '../../model/items.ts';
import type { Change } from '../../reconcile/types.ts';
import type { Run } from '../command.ts';
import { isUnsupported, KernelError } from '../errors.ts';
import type { Backend } from './backend.ts';
import { type FoundChain, ReadBack } from './read-back.ts';
import { builtinOf, objectName, renderTable } from './render.ts';

/**
 * Less than a lane allows, and short where there is little to do, so that a tool that hangs is told soon. Legacy iptables takes
 * seconds for a few hundred thousand rules, whatever is changed.
 */
const DEADLINE_MS = 45_000;
const LEAST_DEADLINE_MS = 10_000;
const MS_A_CHAIN = 4;
/** How long iptables waits for the lock of other iptables commands; less than the deadline. */
const LOCK_WAIT_SECONDS = 5;

/** Failures that another composition of the batch cannot change. */
const NOT_THE_BATCH = new Set(['EAGAIN', 'ETIMEDOUT', 'ECANCELED', 'ENOPKG', 'EPERM', 'ENOPROTOOPT', 'EAFNOSUPPORT']);

export type PartChange = Change<'chain-part'>;
export type Failures = Map<Key<'chain-part'>, Error>;
/** Own chains of one family and table, each with its parts by order. */
type Chains = Map<string, ReadonlyMap<string, ChainPart>>;

export const partOf = (change: PartChange): ChainPart => (change.action === 'remove' ? change.from : change.item.value);

/** The own chains of one family and table. */
export class OwnTable {
  readonly family: Family;
  readonly #table: Table;
  readonly #run: Run;
  readonly #backend: Pick<Backend, 'commands'>;
  #chains: Chains = new Map();
  /** Own chains whose jump is as it should be, as far as known. */
  #jumped = new Set<string>();

  constructor(run: Run, backend: Pick<Backend, 'commands'>, family: Family, table: Table) {
    this.#run = run;
    this.#backend = backend;
    this.family = family;
    this.#table = table;
  }

  hold(found: readonly FoundChain[]): void {
    this.#chains = new Map(found.map(({ chain, parts }) => [chain, parts]));
    this.#jumped = new Set(found.filter(({ isJumpRight }) => isJumpRight).map(({ chain }) => chain));
  }

  /**
   * Everything at once; what is refused is halved until one change stands alone. A failure may come from a chain that
   * another half makes, so the failed ones get another turn as long as that helps.
   */
  async apply(changes: readonly PartChange[], signal: AbortSignal): Promise<Failures> {
    let left = changes;
    for (;;) {
      const failures = await this.#halving(left, signal);
      if (failures.size === 0 || failures.size === left.length) return failures;
      if (![...failures.values()].some(isOfTheBatch)) return failures;
      left = left.filter(({ key }) => failures.has(key));
    }
  }

  async #halving(changes: readonly PartChange[], signal: AbortSignal): Promise<Failures> {
    try {
      await this.#write(changes, signal);
      return new Map();
    } catch (error) {
      if (changes.length === 1 || !isOfTheBatch(error))
        return new Map(changes.map((change) => [change.key, explain(change, error)]));
      const middle = changes.length >> 1;
      const first = await this.#halving(changes.slice(0, middle), signal);
      return new Map([...first, ...(await this.#halving(changes.slice(middle), signal))]);
    }
  }

  async #write(changes: readonly PartChange[], signal: AbortSignal): Promise<void> {
    const next = this.#changed(changes);
    const jumps = await this.#jumpEdits(next, signal);
    const chains = new Map([...next].map(([chain, parts]) => [chain, [...parts.values()]]));
    const stdin = renderTable({ table: this.#table, chains, ...jumps });
    const file = this.#backend.commands[this.family].restore;
    const args = ['--noflush', `--wait=${LOCK_WAIT_SECONDS}`];
    try {
      await this.#run({ file, args, stdin, timeoutMs: this.#deadlineMs(next.size), signal });
    } catch (error) {
      throw withLine(error, stdin);
    }
    for (const [chain, parts] of next) this.#hold(chain, parts);
  }

  #deadlineMs(touchedChains: number): number {
    return Math.min(DEADLINE_MS, LEAST_DEADLINE_MS + MS_A_CHAIN * (this.#chains.size + touchedChains));
  }

  #hold(chain: string, parts: ReadonlyMap<string, ChainPart>): void {
    if (parts.size > 0) {
      this.#chains.set(chain, parts);
      this.#jumped.add(chain);
    } else {
      this.#chains.delete(chain);
      this.#jumped.delete(chain);
    }
  }

  /** The touched chains as they shall be. */
  #changed(changes: readonly PartChange[]): Chains {
    const next = new Map<string, Map<string, ChainPart>>();
    for (const change of changes) {
      const { chain, order } = partOf(change);
      const parts = next.get(chain) ?? new Map(this.#chains.get(chain));
      next.set(chain, parts);
      if (change.action === 'remove') parts.delete(order);
      else parts.set(order, change.item.value);
    }
    return next;
  }

  /**
   * Nothing for a chain whose jump is right. Otherwise the table is read now: what must be deleted has to be known
   * exactly, since deleting a rule that is not there fails the whole run.
   */
  async #jumpEdits(
    next: Chains,
    signal: AbortSignal,
  ): Promise<{ deletedJumps: readonly string[]; insertedJumps: readonly string[] }> {
    const edited = [...next].filter(
      ([chain, parts]) => builtinOf(chain) && (parts.size === 0 || !this.#jumped.has(chain)),
    );
    if (edited.length === 0) return { deletedJumps: [], insertedJumps: [] };
    const only = { table: this.#table, jumpsOnly: true };
    const read = await readFamily(this.#run, this.#backend, this.family, signal, only);
    const found = new Map(read.map((chain) => [chain.chain, chain]));
    const wrong = edited.filter(([chain, parts]) => parts.size === 0 || !found.get(chain)?.isJumpRight);
    return {
      deletedJumps: wrong.flatMap(([chain]) => found.get(chain)?.jumps ?? []),
      insertedJumps: wrong.filter(([, parts]) => parts.size > 0).map(([chain]) => chain),
    };
  }
}

/** Own chains of one family, of all tables or of one, see ReadBack for `jumpsOnly`. A family that the host lacks has none. */
export async function readFamily(
  run: Run,
  backend: Pick<Backend, 'commands'>,
  family: Family,
  signal: AbortSignal,
  { table, jumpsOnly = false }: { readonly table?: Table; readonly jumpsOnly?: boolean } = {},
): Promise<readonly FoundChain[]> {
  const readBack = new ReadBack(family, { jumpsOnly });
  const args = table === undefined ? [] : ['-t', table];
  try {
    await run({
      file: backend.commands[family].save,
      args,
      timeoutMs: DEADLINE_MS,
      signal,
      onLine: (line) => readBack.line(line),
    });
  } catch (error) {
    if (family === FAMILIES.ipv4.family || !isMissingFamily(error)) throw error;
    return [];
  }
  return readBack.chains();
}

export const isMissingFamily = (error: unknown): boolean =>
  isUnsupported(error) || (error instanceof KernelError && (error.code === 'ENOPROTOOPT' || error.code === 'ENOPKG'));

const isOfTheBatch = (error: unknown): boolean => error instanceof KernelError && !NOT_THE_BATCH.has(error.code);

/** Adds the line that iptables names, where it names one. */
function withLine(error: unknown, stdin: string): unknown {
  if (!(error instanceof KernelError)) return error;
  const { code, operation, object, detail } = error;
  const line = stdin.split('\n')[Number(/line:? (\d+)/.exec(detail ?? '')?.[1]) - 1];
  if (line === undefined || line === 'COMMIT') return error;
  return new KernelError({ code, operation, object, detail: `${detail}; line: ${line}`, cause: error });
}

function explain(change: PartChange, error: unknown): Error {
  if (!(error instanceof KernelError) || error.operation === 'render') return error as Error;
  const operation = change.action === 'remove' ? 'remove' : 'write';
  return new KernelError({
    code: error.code,
    operation,
    object: objectName(partOf(change)),
    detail: error.detail,
    cause: error,
  });
}
