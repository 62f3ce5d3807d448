/**
 * Driver of chain parts: own chains of both families, written by one `iptables-restore --noflush` a family and table.
 *
 * A chain is rewritten whole when one part of it changes. For this the driver holds what each own chain consists of:
 * the last list, corrected by every successful write. Parts found by a list keep their saved text, so a restarted
 * agent can rewrite a chain although it has not written the other parts itself, and a part that cannot be written now
 * (its set is missing) stays as it is.
 *
 * An own chain in which no part can be told is listed under the order '' (which no wanted part has) and removed like
 * any other unwanted part.
 */
import { type Family, families } from '../../model/ip.ts';
import { type ChainPart, type Key, keyOf, type Table } from '../../model/items.ts';
import type { Driver } from '../../reconcile/types.ts';
import type { Run } from '../command.ts';
import type { ServedPlace } from '../conntrack.ts';
import type { Backend, BackendName } from './backend.ts';
import { type Failures, OwnTable, type PartChange, partOf, readFamily } from './own-table.ts';
import { strayPart } from './read-back.ts';
import { type FoundPart, linesOf } from './render.ts';
import { oddlyPrinted, type Printed, sameHashes, sameRules } from './rule-text.ts';
import { ServiceFlows } from './service-flows.ts';

/**
 * Legacy iptables reads and writes the whole table for each batch, whatever is in it: the fewer, the better. What nft (1.8.9)
 * does in user space grows with the square of the batch.
 */
const BATCH_SIZES = { legacy: Number.MAX_SAFE_INTEGER, nft: 2048 } as const satisfies Record<BackendName, number>;

export interface ChainDriverOptions {
  readonly run: Run;
  readonly backend: Pick<Backend, 'backend' | 'commands'>;
  /** Told of places of Services whose UDP flows may have other backends since the last write. Not waited for. */
  readonly onServed?: (family: Family, places: readonly ServedPlace[]) => void;
}

export function createChainDriver({ run, backend, onServed }: ChainDriverOptions): Driver<'chain-part'> {
  const flows = new ServiceFlows();
  const tables = new Map<string, OwnTable>();
  /** Of rules that are there. */
  const printed = new Map<string, string>();
  const tableOf = (family: Family, table: Table): OwnTable => {
    const id = `${family} ${table}`;
    const known = tables.get(id) ?? new OwnTable(run, backend, family, table);
    tables.set(id, known);
    return known;
  };
  let turn: Promise<unknown> = Promise.resolve();
  /** A list must not replace what a write that runs meanwhile has noted. */
  const inTurn = <T>(action: () => Promise<T>): Promise<T> => {
    const result = turn.then(action);
    turn = result.catch(() => undefined);
    return result;
  };

  async function list(signal: AbortSignal): Promise<ReadonlyMap<Key<'chain-part'>, ChainPart>> {
    const found = new Map<Key<'chain-part'>, ChainPart>();
    for (const { family } of families) {
      const chains = await readFamily(run, backend, family, signal);
      for (const own of tables.values()) if (own.family === family) own.hold([]);
      for (const [table, ofTable] of Map.groupBy(chains, ({ table }) => table)) tableOf(family, table).hold(ofTable);
      for (const chain of chains) {
        const parts: readonly ChainPart[] =
          chain.parts.size > 0 ? [...chain.parts.values()] : [strayPart(family, chain)];
        for (const part of parts) found.set(keyOf('chain-part', part), part);
      }
    }
    if (onServed) flows.hold(found.values());
    forgetPrinted(found.values());
    return found;
  }

  /** What is not there any more. */
  function forgetPrinted(found: Iterable<ChainPart>): void {
    if (printed.size === 0) return;
    const lines = new Set([...found].flatMap((part) => (part as Partial<FoundPart>).lines ?? []));
    for (const [hash, line] of printed) if (!lines.has(line)) printed.delete(hash);
  }

  async function apply(batch: readonly PartChange[], signal: AbortSignal): Promise<Failures> {
    const failures: Failures = new Map();
    for (const changes of Map.groupBy(batch, (change) => `${partOf(change).family} ${partOf(change).table}`).values()) {
      const { family, table } = partOf(changes[0] as PartChange);
      for (const [key, error] of await tableOf(family, table).apply(changes, signal)) failures.set(key, error);
      const reworded = changes.filter((change) => !failures.has(change.key) && isReworded(change));
      if (reworded.length > 0) await learn(family, table, reworded, signal);
    }
    if (onServed) {
      const written = batch.filter(({ key }) => !failures.has(key));
      const now = written.map((each) => [each.key, each.action === 'remove' ? undefined : each.item.value] as const);
      for (const [family, places] of flows.wrote(now)) onServed(family, places);
    }
    return failures;
  }

  /** A rule that looked altered was written again: should iptables word it as before, nobody has altered it. */
  async function learn(family: Family, table: Table, changes: readonly PartChange[], signal: AbortSignal) {
    // What cannot be read now looks altered in the next list and gets another turn.
    const chains = await readFamily(run, backend, family, signal, { table }).catch(() => []);
    for (const part of changes.map(partOf)) {
      const found = chains.find(({ chain }) => chain === part.chain)?.parts.get(part.order);
      if (!found || !sameHashes(linesOf(part), linesOf(found))) continue;
      for (const [hash, line] of oddlyPrinted(part, found)) printed.set(hash, line);
    }
  }

  return {
    kind: 'chain-part',
    lane: 'netfilter',
    merge: 'one',
    batchSize: BATCH_SIZES[backend.backend],
    equal: (wanted, found) => isEqual(wanted, found, printed),
    list: (signal) => inTurn(() => list(signal)),
    apply: (batch, signal) => inTurn(() => apply(batch, signal)),
  };
}

/** A part that cannot be rendered equals nothing, and apply says why. */
function isEqual(wanted: ChainPart, found: ChainPart, printed: Printed): boolean {
  if ((found as Partial<FoundPart>).drift !== undefined || (wanted as Partial<FoundPart>).drift !== undefined)
    return false;
  try {
    return sameHashes(linesOf(wanted), linesOf(found)) && sameRules(wanted, found, printed);
  } catch {
    return false;
  }
}

/** An update that leaves the hashes as they are: only the words differ. */
const isReworded = (change: PartChange): boolean =>
  change.action === 'update' &&
  (change.from as Partial<FoundPart>).drift === undefined &&
  sameHashes(linesOf(change.item.value), linesOf(change.from));
