import { type Key, type Kind, kindOf } from '../model/items.ts';
import type { Blocked } from './blocked.ts';
import type { KernelState, Problem } from './kernel-state.ts';
import type { BatchReport, LaneLoop, ListReport } from './lane.ts';
import type { Ledger } from './ledger.ts';
import type { Change, Lane } from './types.ts';

type Actions = Readonly<Record<Change['action'], number>>;

export interface KindStatus {
  readonly lane: Lane;
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
  readonly listFailures: number;
  readonly lastListMs: number | null;
  /** Writes that succeeded. */
  readonly changes: number;
  /** The same, by what they did. */
  readonly actions: Actions;
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
  /** What each loop is at, and for how many milliseconds; none for one that waits for work. */
  readonly work: Readonly<Partial<Record<Lane, { readonly operation: string; readonly durationMs: number }>>>;
  /** Age of the oldest event that is not in the kernel yet, in milliseconds; 0 when all are. See Reconciler.follow. */
  readonly behindMs: number;
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
  listFailures = 0;
  lastListMs: number | null = null;
  readonly actions: { -readonly [A in keyof Actions]: number } = { create: 0, update: 0, remove: 0 };
  failures = 0;
  lastSuccess: number | null = null;
  /** Of the ledger's drift, what was logged. */
  loggedDrift = 0;

  countBatch({ changes, failed }: BatchReport, nowMs: number): void {
    for (const { action } of changes) this.actions[action]++;
    for (const { change } of failed) this.actions[change.action]--;
    this.failures += failed.length;
    if (failed.length === 0) this.lastSuccess = Math.round(nowMs);
  }

  countList({ durationMs, error }: ListReport): void {
    if (error) this.listFailures++;
    else this.lists++;
    if (!error) this.lastListMs = durationMs;
  }
}

interface StatusSource {
  readonly state: KernelState;
  readonly ledgers: ReadonlyMap<Kind, Ledger>;
  readonly lanes: ReadonlyMap<Lane, LaneLoop>;
  readonly counters: ReadonlyMap<Kind, KindCounters>;
  readonly blocked: Blocked;
  readonly oldestMs: number | undefined;
  readonly nowMs: number;
}

/** Pure: the books as plain JSON. */
export function renderStatus(source: StatusSource): ReconcilerStatus {
  const { state, ledgers, lanes, counters, blocked, oldestMs, nowMs } = source;
  const blockedEntries = [...blocked.entries()].map(([key, by]) => ({ key, by }));
  const kinds: Partial<Record<Kind, KindStatus>> = {};
  for (const [kind, ledger] of ledgers) {
    const blockedOfKind = blockedEntries.filter(({ key }) => kindOf(key) === kind).length;
    kinds[kind] = renderKind(state.count(kind), ledger, blockedOfKind, counters.get(kind) ?? new KindCounters());
  }
  return {
    kinds,
    cycles: Object.fromEntries([...lanes].map(([name, { cycles }]) => [name, cycles])),
    work: renderWork(lanes, nowMs),
    behindMs: oldestMs === undefined ? 0 : nowMs - oldestMs,
    failing: [...ledgers.values()].flatMap((ledger) => renderFailing(ledger, nowMs)),
    blocked: blockedEntries,
    contested: state
      .contested()
      .map(({ key, winner, losers }) => ({ key, winner: winner.id, losers: losers.map(({ id }) => id) })),
    problems: state.problems(),
  };
}

/** What each loop is at. */
export function renderWork(lanes: ReadonlyMap<Lane, LaneLoop>, nowMs: number): ReconcilerStatus['work'] {
  const busy = [...lanes].flatMap(([name, { work }]) =>
    work ? [[name, { operation: work.operation, durationMs: nowMs - work.sinceMs }] as const] : [],
  );
  return Object.fromEntries(busy);
}

function renderKind(wanted: number, ledger: Ledger, blocked: number, counters: KindCounters): KindStatus {
  const { dirty, schedule, known, inFlight, drift, driver } = ledger;
  const { lists, listFailures, lastListMs, actions, failures, lastSuccess } = counters;
  return {
    lane: driver.lane,
    wanted,
    known: known.size,
    dirty: dirty.size + inFlight + blocked,
    failing: dirty.failures.size,
    blocked,
    stale: schedule.stale ?? null,
    lists,
    listFailures,
    lastListMs,
    changes: actions.create + actions.update + actions.remove,
    actions: { ...actions },
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
