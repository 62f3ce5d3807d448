import { setImmediate as yieldToEvents } from 'node:timers/promises';
import type { Logger } from 'pino';
import { type Key, type Kind, kindOf } from '../model/items.ts';
import { ASIDE_MS, inTurns } from '../turns.ts';
import { Doorbell } from './doorbell.ts';
import type { FailedChange, Ledger } from './ledger.ts';
import { type LaneWork, Operations } from './operations.ts';
import type { Settles } from './settles.ts';
import type { Change, Lane } from './types.ts';

/** What one call of a driver's apply() did. */
export interface BatchReport {
  readonly lane: Lane;
  readonly kind: Kind;
  readonly changes: readonly Change[];
  readonly failed: readonly FailedChange[];
  readonly durationMs: number;
}

/** How one call of a driver's list() ended. */
export interface ListReport {
  readonly lane: Lane;
  readonly kind: Kind;
  readonly durationMs: number;
  /** Why there is no list. */
  readonly error?: Error;
}

interface Errand {
  run(signal: AbortSignal): Promise<void>;
  cancel(reason: unknown): void;
}

export interface LaneContext {
  readonly settles: Settles;
  readonly log: Logger;
  readonly batchSize: number;
  /** Bound of one list() or apply() that does not answer. A driver has to stop writing when its signal aborts. */
  readonly deadlineMs: number;
  readonly now: () => number;
  /** Called once a batch is booked. */
  onBatch(report: BatchReport): void;
  /** Called once a list is booked, or has failed. */
  onList(report: ListReport): void;
}

/** Somebody who waits for what there was to write. */
interface Resting {
  /** Begun since, with every kind listed. */
  cycles: number;
  readonly resolve: () => void;
}

/**
 * Batches of one kind beyond what there was at first: for what becomes free by these, level by level. Then the kinds after it
 * and removals get their turn, however fast more comes.
 */
const EXTRA_BATCHES = 16;
/** So often all there was is tried, also what the last kind has made free for the first. */
const CYCLES_TO_REST = 2;

/**
 * One loop that does everything its drivers do, one thing at a time: lists, and batches in apply order, creates and updates
 * first and removals in reverse. Between any two batches those who settle get their turn, then lists that are due. Where the
 * driver allows it, a list of what is not stale goes aside, with batches beside it; lists never meet each other.
 * It sleeps on one doorbell and one timer; with nothing to do it does not wake up.
 */
export class LaneLoop {
  /** In apply order. */
  readonly #ledgers: readonly Ledger[];
  readonly #context: LaneContext;
  readonly #bell = new Doorbell();
  readonly #errands: Errand[] = [];
  #resting: Resting[] = [];
  #ended: AbortSignal | undefined;
  /** From run() on. */
  #operations: { readonly writes: Operations; readonly lists: Operations } | undefined;
  /** The list that goes on beside the loop. Never rejects. */
  #aside: Promise<void> | undefined;
  #cycles = 0;

  constructor(ledgers: readonly Ledger[], context: LaneContext) {
    this.#ledgers = ledgers;
    this.#context = context;
  }

  /** How often it woke up to look for work. */
  get cycles(): number {
    return this.#cycles;
  }

  /** What has taken longest; undefined while it waits for work. */
  get work(): LaneWork | undefined {
    const [write, list] = [this.#operations?.writes.current, this.#operations?.lists.current];
    return write && list && list.sinceMs < write.sinceMs ? list : (write ?? list);
  }

  ring(): void {
    this.#bell.ring();
  }

  /** Works until the signal aborts, then returns; what a driver throws never ends it. */
  async run(signal: AbortSignal): Promise<void> {
    signal.addEventListener('abort', () => this.ring(), { once: true });
    const { now } = this.#context;
    this.#operations = { writes: new Operations(now, signal), lists: new Operations(now, signal) };
    while (!signal.aborted) {
      try {
        await this.#cycle(signal);
      } catch (error) {
        if (signal.aborted) break;
        this.#context.log.error({ err: error }, 'a lane failed by a fault of its own and goes on');
        for (const ledger of this.#ledgers) ledger.abandon(asError(error));
      }
      await this.#bell.wait(this.#nextDueMs() - this.#context.now());
    }
    await this.#aside;
    this.#ended = signal;
    this.#endRest(0);
    for (const errand of this.#errands.splice(0)) errand.cancel(signal.reason);
  }

  /**
   * Does something while this lane writes nothing. Rejects with the reason of whichever signal aborts first, the caller's
   * or the lane's; work has to stop at the one that it is given.
   */
  async between<T>(signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    this.#ended?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const onAbort = (): void => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    this.#errands.push({
      run: async (laneSignal) => {
        if (!signal.aborted) await work(AbortSignal.any([laneSignal, signal])).then(resolve, reject);
      },
      cancel: reject,
    });
    this.ring();
    try {
      return await promise;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** Resolves once everything that there is to write now was tried at least once, or the lane has ended. */
  rest(): Promise<void> {
    if (this.#ended) return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#resting.push({ cycles: 0, resolve });
    this.ring();
    return promise;
  }

  /** For those who have waited for so many cycles. */
  #endRest(cycles: number): void {
    const isOver = (each: Resting): boolean => each.cycles >= cycles;
    for (const { resolve } of this.#resting.filter(isOver)) resolve();
    this.#resting = this.#resting.filter((each) => !isOver(each));
  }

  async #cycle(signal: AbortSignal): Promise<void> {
    this.#cycles++;
    await this.#interlude(signal);
    const resting = this.#ledgers.every(this.#isListed) ? [...this.#resting] : [];
    for (const ledger of this.#ledgers) {
      if (ledger.dirty.size > 0) await this.#drain(ledger, () => ledger.takeWrites(this.#limitOf(ledger)), signal);
    }
    // Not before all is listed: what a set is used by goes first.
    if (!this.#ledgers.some((ledger) => ledger.awaitsSweepList && this.#isBeingListed(ledger)))
      for (const ledger of this.#ledgers) ledger.sweep();
    for (const ledger of this.#ledgers.toReversed()) {
      if (ledger.dirty.size > 0) await this.#drain(ledger, () => ledger.takeRemovals(this.#limitOf(ledger)), signal);
    }
    this.#context.settles.check();
    for (const ledger of this.#ledgers) ledger.collect();
    if (this.#ledgers.every(this.#isListed)) for (const each of resting) each.cycles++;
    // Where more comes all the time, something is always left to be tried.
    this.#endRest(this.#ledgers.every(this.#hasTried) ? 0 : CYCLES_TO_REST);
  }

  #limitOf({ driver }: Ledger): number {
    return driver.batchSize ?? this.#context.batchSize;
  }

  async #drain(ledger: Ledger, take: () => readonly Change[], signal: AbortSignal): Promise<void> {
    for (let left = Math.ceil(ledger.dirty.size / this.#limitOf(ledger)) + EXTRA_BATCHES; left > 0; left--) {
      const batch = take();
      if (batch.length === 0) return;
      await this.#apply(ledger, batch, signal);
      await this.#interlude(signal);
    }
  }

  /** Everything that comes before the next batch. */
  async #interlude(signal: AbortSignal): Promise<void> {
    await this.#applyUrgent(signal);
    for (let worked = true; worked; ) {
      // Notices that have arrived, such as echoes of the last batch, are heard before the next decision.
      await yieldToEvents();
      signal.throwIfAborted();
      worked = (await this.#applyUrgent(signal)) || (await this.#listDue(signal)) || (await this.#runErrand(signal));
    }
  }

  /**
   * Whether there was anything that somebody waits for. They are not held up by turns of the event loop; but nothing is
   * written twice without one: what put the first write in doubt may be settled by a notice that has arrived.
   */
  async #applyUrgent(signal: AbortSignal): Promise<boolean> {
    const written = new Set<Key>();
    for (let next = this.#nextUrgent(written); next; next = this.#nextUrgent(written)) {
      await this.#apply(next.ledger, next.batch, signal);
      for (const { key } of next.batch) written.add(key);
      signal.throwIfAborted();
    }
    return written.size > 0;
  }

  /** Takes up what has become dirty. Returns the next batch of what is waited for, except what is written already. */
  #nextUrgent(written: ReadonlySet<Key>): { readonly ledger: Ledger; readonly batch: readonly Change[] } | undefined {
    const nowMs = this.#context.now();
    for (const ledger of this.#ledgers) {
      ledger.collect();
      ledger.dirty.releaseDue(nowMs);
    }
    this.#context.settles.check();
    if (!this.#context.settles.isAwaited) return undefined;
    const demand = this.#context.settles.demand();
    for (const key of written) demand.delete(key);
    for (const ledger of this.#ledgers) {
      const batch = ledger.takeWrites(this.#limitOf(ledger), demand);
      if (batch.length > 0) return { ledger, batch };
    }
    for (const ledger of this.#ledgers.toReversed()) {
      const batch = ledger.takeRemovals(this.#limitOf(ledger), demand);
      if (batch.length > 0) return { ledger, batch };
    }
    return undefined;
  }

  /** Whether there was anything to wait for. */
  async #listDue(signal: AbortSignal): Promise<boolean> {
    const ledger = this.#staleAndDemanded() ?? this.#longestDue();
    if (!ledger) return false;
    const isStale = ledger.schedule.stale !== undefined;
    if (this.#aside !== undefined) {
      if (isStale) await this.#aside;
      return isStale;
    }
    if (isStale || !ledger.driver.listsAside) await this.#list(ledger, signal);
    else this.#listAside(ledger, signal);
    return true;
  }

  #longestDue(): Ledger | undefined {
    let longest: Ledger | undefined;
    for (const ledger of this.#ledgers) {
      const { dueMs } = ledger.schedule;
      if (dueMs <= this.#context.now() && dueMs < (longest?.schedule.dueMs ?? Infinity)) longest = ledger;
    }
    return longest;
  }

  #listAside(ledger: Ledger, signal: AbortSignal): void {
    const onEnd = (): void => {
      this.#aside = undefined;
      this.ring();
    };
    this.#aside = this.#list(ledger, signal).then(onEnd, onEnd);
  }

  #staleAndDemanded(): Ledger | undefined {
    const { settles } = this.#context;
    const stale = this.#ledgers.filter(({ schedule }) => schedule.stale !== undefined);
    if (stale.length === 0 || !settles.isAwaited) return undefined;
    const demanded = new Set([...settles.demand()].map(kindOf));
    return stale.find(({ kind }) => demanded.has(kind));
  }

  async #runErrand(signal: AbortSignal): Promise<boolean> {
    if (this.#aside !== undefined) return false;
    const errand = this.#errands.shift();
    if (errand) await this.#operations?.writes.timed('an errand between two batches', () => errand.run(signal));
    return errand !== undefined;
  }

  async #apply(ledger: Ledger, batch: readonly Change[], signal: AbortSignal): Promise<void> {
    const { settles, now, deadlineMs, onBatch } = this.#context;
    const { writes } = this.#operations as { readonly writes: Operations };
    const { kind, driver } = ledger;
    const startMs = now();
    const operation = `apply ${batch.length} changes of ${kind}`;
    let failures: ReadonlyMap<Key, Error>;
    try {
      failures = await writes.bounded(deadlineMs, operation, (inner) => driver.apply(batch, inner));
    } catch (error) {
      signal.throwIfAborted();
      failures = new Map(batch.map(({ key }) => [key, asError(error)]));
    }
    const failed = ledger.acknowledge(batch, failures);
    onBatch({ lane: driver.lane, kind, changes: batch, failed, durationMs: now() - startMs });
    if (failed.length > 0) this.#logFailures(ledger, failed);
    settles.failed(failed);
    settles.check();
  }

  async #list(ledger: Ledger, signal: AbortSignal): Promise<void> {
    const { settles, log, now, deadlineMs, onList } = this.#context;
    const { lists } = this.#operations as { readonly lists: Operations };
    const { kind, driver } = ledger;
    const startMs = now();
    ledger.beginList();
    try {
      const listed = await lists.bounded(deadlineMs, `list ${kind}`, (inner) => driver.list(inner));
      await inTurns(ledger.absorb(listed), signal, ASIDE_MS);
      onList({ lane: driver.lane, kind, durationMs: now() - startMs });
    } catch (error) {
      signal.throwIfAborted();
      onList({ lane: driver.lane, kind, durationMs: now() - startMs, error: asError(error) });
      ledger.listFailed(asError(error).message);
      log.warn({ kind, err: error }, 'cannot list; nothing of this kind is written until a list succeeds');
      settles.kindFailed(kind, asError(error));
    }
    settles.check();
  }

  #logFailures({ kind, dirty }: Ledger, failed: readonly FailedChange[]): void {
    const [first] = failed;
    if (!first) return;
    const { change, error } = first;
    const attempts = dirty.failures.get(change.key)?.attempts;
    this.#context.log.warn(
      { kind, failures: failed.length, action: change.action, key: change.key, attempts, err: error },
      'changes failed and will be tried again',
    );
  }

  /** The end of a list aside rings. */
  #nextDueMs(): number {
    let nextMs = Infinity;
    for (const { schedule, dirty } of this.#ledgers)
      nextMs = Math.min(nextMs, this.#aside === undefined ? schedule.dueMs : Infinity, dirty.nextTryMs());
    return nextMs;
  }

  readonly #isBeingListed = ({ schedule, isListing }: Ledger): boolean =>
    isListing || schedule.dueMs <= this.#context.now();

  /** Of what cannot be listed, nothing can be written. */
  readonly #isListed = (ledger: Ledger): boolean =>
    !this.#isBeingListed(ledger) && (ledger.schedule.stale === undefined || ledger.schedule.failing !== undefined);

  readonly #hasTried = (ledger: Ledger): boolean =>
    this.#isListed(ledger) && (ledger.schedule.stale !== undefined || !ledger.dirty.hasPending);
}

const asError = (value: unknown): Error =>
  value instanceof Error ? value : new Error(String(value), { cause: value });
