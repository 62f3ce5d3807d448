import type { Logger } from 'pino';
import { APPLY_ORDER, type Key, type Kind, kindOf, type Objects } from '../model/items.ts';
import type { BackoffLimits } from './backoff.ts';
import { Blocked } from './blocked.ts';
import { CatchUps, type Followed } from './catch-ups.ts';
import { DeadlineError, withDeadline } from './deadline.ts';
import type { KernelState } from './kernel-state.ts';
import { keyedDiff } from './keyed-diff.ts';
import { type BatchReport, LaneLoop, type ListReport } from './lane.ts';
import { type KindDriver, Ledger, type LedgerContext, type Value } from './ledger.ts';
import { Settles } from './settles.ts';
import { KindCounters, type ReconcilerStatus, renderStatus, renderWork } from './status.ts';
import type { AnyDriver, Change, Lane, Notice } from './types.ts';

export type { Followed } from './catch-ups.ts';
export type { BatchReport, ListReport } from './lane.ts';
export { SettleError } from './settles.ts';
export type { KindStatus, ReconcilerStatus } from './status.ts';

export interface ReconcilerOptions {
  /** Mean time between two full lists of one kind. */
  readonly resyncIntervalMs?: number;
  /** Most changes in one call of apply(). */
  readonly batchSize?: number;
  readonly backoff?: BackoffLimits;
  /** How long one list() or apply() may take before it counts as failed. */
  readonly deadlineMs?: number;
  /** Milliseconds since the epoch on a clock that never goes back. */
  readonly now?: () => number;
  /** [0, 1) */
  readonly random?: () => number;
  /** Told of every batch once it is booked, for metrics. */
  readonly onBatch?: (report: BatchReport) => void;
  /** Told of every full list, also of one that failed. */
  readonly onList?: (report: ListReport) => void;
  /** Told once the kernel holds what follow() was given, with the milliseconds since the event came. */
  readonly onCaughtUp?: (durationMs: number) => void;
}

/** What is under one key; `found` is absent where nothing is. */
export interface Inspection {
  readonly found?: Objects[Kind];
  /** It is what is wanted; nothing may be. */
  readonly isRight: boolean;
}

const DEFAULTS = {
  resyncIntervalMs: 300_000,
  batchSize: 256,
  backoff: { minMs: 100, maxMs: 30_000 },
  deadlineMs: 60_000,
  now: () => performance.timeOrigin + performance.now(),
  random: Math.random,
  onBatch: () => {},
  onList: () => {},
  onCaughtUp: () => {},
} as const satisfies Required<ReconcilerOptions>;

/**
 * Keeps the kernel equal to a KernelState: diffs dirty keys against what is known and has drivers write the difference, in
 * one loop a lane. It holds no truth of its own: a new one over the same kernel and state comes to the same result.
 */
export class Reconciler {
  readonly #state: KernelState;
  readonly #log: Logger;
  readonly #options: Required<ReconcilerOptions>;
  readonly #ledgers = new Map<Kind, Ledger>();
  readonly #lanes = new Map<Lane, LaneLoop>();
  readonly #blocked = new Blocked();
  readonly #settles: Settles;
  readonly #catchUps: CatchUps;
  readonly #counters = new Map<Kind, KindCounters>();
  readonly #listed = Promise.withResolvers<void>();
  readonly #stopped = Promise.withResolvers<void>();
  #isStarted = false;

  constructor(parts: {
    readonly state: KernelState;
    readonly drivers: readonly AnyDriver[];
    readonly log: Logger;
    readonly options?: ReconcilerOptions;
  }) {
    this.#state = parts.state;
    this.#log = parts.log;
    this.#options = { ...DEFAULTS, ...parts.options };
    const isSettled = (key: Key): boolean => this.#ledgers.get(kindOf(key))?.isSettled(key) ?? false;
    this.#settles = new Settles(this.#state, isSettled);
    // What nobody writes is never waited for.
    const isDone = (key: Key): boolean => !this.#ledgers.has(kindOf(key)) || isSettled(key);
    this.#catchUps = new CatchUps(isDone, (sinceMs) => this.#options.onCaughtUp(this.#options.now() - sinceMs));
    // Nobody has to wait for it.
    this.#listed.promise.catch(() => {});
    for (const driver of parts.drivers.toSorted((a, b) => orderOf(a.kind) - orderOf(b.kind))) this.#open(driver);
    for (const lane of new Set(parts.drivers.map((driver) => driver.lane))) this.#lanes.set(lane, this.#loopOf(lane));
    this.#state.onDirty((kind) => this.#ring(kind));
  }

  /** Every driver has listed once. Rejects with the abort reason if that comes first. */
  get listed(): Promise<void> {
    return this.#listed.promise;
  }

  /** All loops have ended after the abort. */
  get stopped(): Promise<void> {
    return this.#stopped.promise;
  }

  /** Lists everything, then works until the signal aborts; nothing is written after that. Once per object. */
  start(signal: AbortSignal): void {
    if (this.#isStarted || signal.aborted)
      throw new Error('cannot start the reconciler: expected a new one and a live signal');
    this.#isStarted = true;
    for (const ledger of this.#ledgers.values()) this.#watch(ledger, signal);
    if (this.#ledgers.size === 0) this.#listed.resolve();
    signal.addEventListener('abort', () => this.#abort(signal.reason), { once: true });
    Promise.all([...this.#lanes.values()].map((lane) => lane.run(signal))).then(
      () => this.#stopped.resolve(),
      this.#stopped.reject,
    );
  }

  /**
   * From the next full lists on, which it asks for, objects are removed that nobody wants, whoever made them. Until then only
   * those go that this process wanted at some time: before the cluster is known, not wanted means nothing.
   */
  enableSweep(): void {
    for (const ledger of this.#ledgers.values()) {
      ledger.askForSweep();
      this.#ring(ledger.kind);
    }
  }

  /** Resolves once every lane has tried at least once to write what there is to write now, or has ended. */
  async rest(): Promise<void> {
    await Promise.all([...this.#lanes.values()].map((lane) => lane.rest()));
  }

  /** The last full list plus acknowledged writes and notices. */
  known<K extends Kind>(key: Key<K>): Objects[K] | undefined {
    return this.#ledgers.get(kindOf(key as Key))?.known.get(key as Key) as Objects[K] | undefined;
  }

  /**
   * Resolves when what is known of each key equals what is wanted (both may be absent) by the driver's own word. These keys
   * and what they need go first. Rejects with SettleError at the first failed attempt at one of them, with the reason of
   * the first abort otherwise; what is merely blocked waits.
   */
  async settle(keys: Iterable<Key>, signal: AbortSignal): Promise<void> {
    const asked = [...keys];
    const orphan = asked.find((key) => !this.#ledgers.has(kindOf(key)));
    if (orphan) throw new TypeError(`cannot settle ${orphan}: expected a kind with a driver, got ${kindOf(orphan)}`);
    const done = this.#settles.wait(asked, signal);
    for (const kind of new Set([...this.#settles.demand()].map(kindOf))) this.#ring(kind);
    await done;
  }

  /**
   * Measures until the kernel holds what an event asks for, which came `ageMs` milliseconds ago. Nothing goes first for
   * that, and nobody waits.
   */
  follow(ageMs: number): Followed {
    return this.#catchUps.begin(this.#options.now() - ageMs);
  }

  /**
   * Why these keys are not in the kernel: writes that failed at least so often in a row or got no answer in time, and kinds
   * that cannot be listed.
   * Cost: one look-up a key where anything fails, none otherwise.
   */
  failures(keys: Iterable<Key>, attempts = 1): readonly Error[] {
    const isFailing = ({ dirty, schedule }: Ledger) => dirty.failures.size > 0 || schedule.failing !== undefined;
    if (![...this.#ledgers.values()].some(isFailing)) return [];
    const errors = new Set<Error>();
    const kinds = new Set<Kind>();
    for (const key of keys) {
      const failure = this.#ledgers.get(kindOf(key))?.dirty.failures.get(key);
      if (failure && (failure.attempts >= attempts || isTimeout(failure.error))) errors.add(failure.error);
      kinds.add(kindOf(key));
    }
    for (const kind of kinds) {
      const reason = this.#ledgers.get(kind)?.schedule.failing;
      if (reason !== undefined)
        errors.add(new Error(`nothing of kind ${kind} is written, as it cannot be listed: ${reason}`));
    }
    return [...errors];
  }

  /** Schedules a full list of one kind or of all. */
  resync(kind?: Kind): void {
    for (const ledger of this.#ledgers.values()) {
      if (kind !== undefined && kind !== ledger.kind) continue;
      ledger.schedule.request();
      this.#ring(ledger.kind);
    }
  }

  /**
   * What the next cycle would change, by fresh lists of everything: creates and updates in apply order, then removals in
   * reverse. Writes and stores nothing. Each kind is listed between two batches of its lane.
   */
  async diff(signal: AbortSignal): Promise<readonly Change[]> {
    const ledgers = [...this.#ledgers.values()];
    const changes = await Promise.all(ledgers.map((ledger) => this.#diffOf(ledger, signal)));
    return [...changes.flatMap(({ writes }) => writes), ...changes.toReversed().flatMap(({ removals }) => removals)];
  }

  /**
   * What the kernel holds under these keys, by fresh lists of their kinds and of no others. Writes and stores nothing. A key
   * whose kind has no driver holds nothing.
   */
  async inspect(keys: Iterable<Key>, signal: AbortSignal): Promise<ReadonlyMap<Key, Inspection>> {
    const parts = [...Map.groupBy(keys, kindOf)].map(async ([kind, ofKind]) => {
      const ledger = this.#ledgers.get(kind);
      const list = ledger ? await this.#listFresh(ledger, signal, (found) => found) : new Map<Key, Value>();
      return ofKind.map((key) => [key, this.#inspectOne(key, list.get(key))] as const);
    });
    return new Map((await Promise.all(parts)).flat());
  }

  #inspectOne(key: Key, found: Value | undefined): Inspection {
    const wanted = this.#state.wanted(key)?.value as Value | undefined;
    if (found === undefined) return { isRight: wanted === undefined };
    return { found, isRight: wanted !== undefined && this.#ledgers.get(kindOf(key))?.equal(wanted, found) === true };
  }

  /** Plain JSON. */
  status(): ReconcilerStatus {
    for (const ledger of this.#ledgers.values()) ledger.collect();
    return renderStatus({
      state: this.#state,
      ledgers: this.#ledgers,
      lanes: this.#lanes,
      counters: this.#counters,
      blocked: this.#blocked,
      oldestMs: this.#catchUps.oldestMs(),
      nowMs: this.#options.now(),
    });
  }

  /** What each lane is at, of the status; costs nothing. */
  work(): ReconcilerStatus['work'] {
    return renderWork(this.#lanes, this.#options.now());
  }

  #open(driver: AnyDriver): void {
    const { kind } = driver;
    if (this.#ledgers.has(kind)) throw new TypeError(`cannot reconcile ${kind}: expected one driver, got two`);
    const context: LedgerContext = {
      state: this.#state,
      blocked: this.#blocked,
      timing: this.#options,
      isReady: (need) =>
        this.#state.wanted(need) !== undefined && (this.#ledgers.get(kindOf(need))?.isSettled(need) ?? false),
      onKnown: (key) => this.#onKnown(key),
      onWork: () => this.#ring(kind),
    };
    this.#ledgers.set(kind, new Ledger(driver as KindDriver, context));
    this.#counters.set(kind, new KindCounters());
  }

  #loopOf(name: Lane): LaneLoop {
    const { batchSize, deadlineMs, now } = this.#options;
    return new LaneLoop(
      [...this.#ledgers.values()].filter(({ driver }) => driver.lane === name),
      {
        settles: this.#settles,
        log: this.#log,
        batchSize,
        deadlineMs,
        now,
        onBatch: (report) => this.#onBatch(report),
        onList: (report) => this.#onList(report),
      },
    );
  }

  #watch(ledger: Ledger, signal: AbortSignal): void {
    const notice: Notice<Kind> = {
      found: (key, value) => {
        ledger.found(key, value);
        this.#settles.check();
      },
      stale: (reason) => {
        ledger.schedule.markStale(reason);
        this.#ring(ledger.kind);
      },
      freed: (isMeant) => ledger.freed(isMeant),
    };
    try {
      ledger.driver.watch?.(notice, signal);
    } catch (error) {
      this.#log.error(
        { kind: ledger.kind, err: error },
        'cannot watch; changes of others are seen only at the next full list',
      );
    }
  }

  #ring(kind: Kind): void {
    const lane = this.#ledgers.get(kind)?.driver.lane;
    if (lane) this.#lanes.get(lane)?.ring();
    // Without a driver the state can be shown, and nobody asks what became dirty.
    else this.#state.takeDirty(kind);
  }

  #onKnown(key: Key): void {
    this.#catchUps.check(key);
    this.#wakeWaitersFor(key);
  }

  #wakeWaitersFor(need: Key): void {
    for (const waiter of this.#blocked.waitersFor(need)) this.#ledgers.get(kindOf(waiter))?.unblock(waiter);
  }

  #onBatch(report: BatchReport): void {
    const { kind, changes, failed, durationMs } = report;
    this.#counters.get(kind)?.countBatch(report, this.#options.now());
    this.#logDrift(kind, changes);
    this.#log.debug({ kind, changes: changes.length, failures: failed.length, durationMs }, 'wrote a batch');
    this.#options.onBatch(report);
  }

  #logDrift(kind: Kind, changes: readonly Change[]): void {
    const drift = this.#ledgers.get(kind)?.drift ?? 0;
    const counters = this.#counters.get(kind);
    if (!counters || counters.loggedDrift === drift) return;
    const repairs = drift - counters.loggedDrift;
    counters.loggedDrift = drift;
    this.#log.info({ kind, repairs, key: changes[0]?.key }, 'repaired what somebody else had changed');
  }

  #onList(report: ListReport): void {
    const { kind } = report;
    this.#counters.get(kind)?.countList(report);
    this.#options.onList(report);
    if (report.error) return;
    this.#catchUps.checkAll();
    // While a kind is stale nothing counts as ready, so that its return may free anything.
    for (const need of this.#blocked.needs()) if (kindOf(need) === kind) this.#wakeWaitersFor(need);
    const ledgers = [...this.#ledgers.values()];
    if (ledgers.every((ledger) => ledger.isSweepListed)) this.#state.forgetHistory();
    if ([...this.#counters.values()].every(({ lists }) => lists > 0)) this.#listed.resolve();
  }

  #abort(reason: unknown): void {
    this.#listed.reject(reason);
    this.#settles.abort(reason);
  }

  #diffOf(ledger: Ledger, signal: AbortSignal): Promise<{ writes: Change[]; removals: Change[] }> {
    return this.#listFresh(ledger, signal, (found) => this.#compare(ledger, found));
  }

  /** What `use` makes of a list, before the lane writes again. */
  async #listFresh<T>(
    { driver, kind }: Ledger,
    signal: AbortSignal,
    use: (found: ReadonlyMap<Key, Value>) => T,
  ): Promise<T> {
    const work = async (either: AbortSignal): Promise<T> =>
      use(await withDeadline(either, this.#options.deadlineMs, `list ${kind}`, (inner) => driver.list(inner)));
    const lane = this.#isStarted ? this.#lanes.get(driver.lane) : undefined;
    return lane ? lane.between(signal, work) : work(signal);
  }

  #compare(ledger: Ledger, found: ReadonlyMap<Key, Value>): { writes: Change[]; removals: Change[] } {
    const { kind } = ledger;
    const wanted = new Map<Key, Value>();
    for (const key of this.#state.keys(kind)) wanted.set(key, this.#state.wanted(key)?.value as Value);
    const { creates, updates, removes } = keyedDiff(wanted, found, (value, from) => ledger.equal(value, from));
    const item = (key: Key) => this.#state.wanted(key);
    return {
      writes: [
        ...creates.map(({ key }) => ({ action: 'create', kind, key, item: item(key) }) as Change),
        ...updates.map(({ key, from }) => ({ action: 'update', kind, key, item: item(key), from }) as Change),
      ],
      removals: removes
        .filter(({ key }) => ledger.mayRemove(key))
        .map(({ key, from }) => ({ action: 'remove', kind, key, from }) as Change),
    };
  }
}

const orderOf = (kind: Kind): number => APPLY_ORDER.indexOf(kind);

/** Of our own deadline, or of a driver's. */
const isTimeout = (error: Error): boolean =>
  error instanceof DeadlineError || (error as { readonly code?: unknown }).code === 'ETIMEDOUT';
