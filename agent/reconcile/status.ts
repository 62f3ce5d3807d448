import { type Key, type Kind, kindOf } from '../model/items.ts';
import type { Blocked } from './blocked.ts';
import type { KernelState, Problem } from './kernel-state.ts';
import type { BatchReport, LaneLoop } from './lane.ts';
import type { Ledger } from './ledger.ts';
import type { Lane } from './types.ts';

export interface KindStatus {
  readonly wanted: number;
  readonly known: number;
  /** All keys not known to be right: pending, in flight, failing and blocked ones. */
  readonly dirty: number;
  readonly failing: number;
  readonly blocked: number;
  /** Why nothing is written now; null when the last list can be trusted. */
  readonly stale: string | null;
  /** Since the start, as are the other counts. */
  readonly lists: number;
  readonly lastListMs: number | null;
  /** Writes that succeeded. */
  readonly changes: number;
  readonly failures: number;
  /** Repairs of what somebody else changed. */
  readonly drift: number;
  /** Milliseconds since the epoch of the last batch without a failure. */
  readonly lastSuccess: number | null;
}

export interface ReconcilerStatus {
  readonly kinds: Readonly<Partial<Record<Kind, KindStatus>>>;
  /** How often each loop woke up. */
  readonly cycles: Readonly<Partial<Record<Lane, number>>>;
  /** `nextTryMs`: from now, 0 for at once. */
  readonly failing: readonly {
    readonly key: Key;
    readonly error: string;
    readonly attempts: number;
    readonly nextTryMs: number;
  }[];
  readonly blocked: readonly { readonly key: Key; readonly by: Key }[];
  /** Fragments by id. */
  readonly contested: readonly { readonly key: Key; readonly winner: string; readonly losers: readonly string[] }[];
  readonly problems: readonly Problem[];
}

/** What happened to one kind since the start. */
export class KindCounters {
  lists = 0;
  lastListMs: number | null = null;
  changes = 0;
  failures = 0;
  lastSuccess: number | null = null;
  /** Of the ledger's drift, what was logged. */
  loggedDrift = 0;

  countBatch({ changes, failed }: BatchReport, nowMs: number): void {
    this.changes += changes.length - failed.length;
    this.failures += failed.length;
    if (failed.length === 0) this.lastSuccess = Math.round(nowMs);
  }

  countList(durationMs: number): void {
    this.lists++;
    this.lastListMs = durationMs;
  }
}

interface StatusSource {
  readonly state: KernelState;
  readonly ledgers: ReadonlyMap<Kind, Ledger>;
  readonly lanes: ReadonlyMap<Lane, LaneLoop>;
  readonly counters: ReadonlyMap<Kind, KindCounters>;
  readonly blocked: Blocked;
  readonly nowMs: number;
}

/** Pure: the books as plain JSON. */
export function renderStatus({ state, ledgers, lanes, counters, blocked, nowMs }: StatusSource): ReconcilerStatus {
  const blockedEntries = [...blocked.entries()].map(([key, by]) => ({ key, by }));
  const kinds: Partial<Record<Kind, KindStatus>> = {};
  for (const [kind, ledger] of ledgers) {
    const blockedOfKind = blockedEntries.filter(({ key }) => kindOf(key) === kind).length;
    kinds[kind] = renderKind(state.count(kind), ledger, blockedOfKind, counters.get(kind) ?? new KindCounters());
  }
  return {
    kinds,
    cycles: Object.fromEntries([...lanes].map(([name, { cycles }]) => [name, cycles])),
    failing: [...ledgers.values()].flatMap((ledger) => renderFailing(ledger, nowMs)),
    blocked: blockedEntries,
    contested: state
      .contested()
      .map(({ key, winner, losers }) => ({ key, winner: winner.id, losers: losers.map(({ id }) => id) })),
    problems: state.problems(),
  };
}

function renderKind(wanted: number, ledger: Ledger, blocked: number, counters: KindCounters): KindStatus {
  const { dirty, schedule, known, inFlight, drift } = ledger;
  const { lists, lastListMs, changes, failures, lastSuccess } = counters;
  return {
    wanted,
    known: known.size,
    dirty: dirty.size + inFlight + blocked,
    failing: dirty.failures.size,
    blocked,
    stale: schedule.stale ?? null,
    lists,
    lastListMs,
    changes,
    failures,
    drift,
    lastSuccess,
  };
}

function renderFailing({ dirty }: Ledger, nowMs: number): ReconcilerStatus['failing'] {
  return [...dirty.failures].map(([key, { error, attempts, nextTryMs }]) => ({
    key,
    error: error.message,
    attempts,
    nextTryMs: Math.max(0, Math.round(nextTryMs - nowMs)),
  }));
}
