import { isDeepStrictEqual } from 'node:util';
import type { AnyItem, Key, Kind, Objects } from '../model/items.ts';
import { type BackoffLimits, backoffMs } from './backoff.ts';
import type { Blocked } from './blocked.ts';
import { DirtyKeys } from './dirty-keys.ts';
import type { KernelState } from './kernel-state.ts';
import { keyedDiff } from './keyed-diff.ts';
import { ListSchedule, type ListTiming } from './list-schedule.ts';
import type { Change, Driver } from './types.ts';

export type Value = Objects[Kind];
/** A driver whose kind is known only at run time: a ledger hands it keys and values of its own kind alone. */
export type KindDriver = Driver<Kind>;

/** What a ledger shares with the others. */
export interface LedgerContext {
  readonly state: KernelState;
  readonly blocked: Blocked;
  readonly timing: ListTiming;
  /** Whether a need is in the kernel as wanted. */
  isReady(key: Key): boolean;
  /** What is known of this key changed, or turned out to be what is wanted. */
  onKnown(key: Key): void;
  /** There is something for the lane to do. */
  onWork(): void;
}

/** An attempt that failed. */
export interface FailedChange {
  readonly change: Change;
  readonly error: Error;
}

/**
 * The books of one kind: what is known to be in the kernel, which keys are dirty and why, and what to write next. No I/O
 * and no waiting: the lane carries changes to the driver and its answers back.
 *
 * Known is the last full list plus acknowledged writes plus notices. A key whose write failed (it may have been done in
 * part) or met with another change is `doubtful` until a list, a later notice or a successful write says what became of it.
 */
export class Ledger {
  readonly driver: KindDriver;
  readonly schedule: ListSchedule;
  readonly dirty: DirtyKeys;
  readonly #context: LedgerContext;
  readonly #backoff: BackoffLimits;
  #known = new Map<Key, Value>();
  readonly #doubtful = new Set<Key>();
  /** Keys of the batch that the driver works on. */
  readonly #inFlight = new Set<Key>();
  /** Last notices for keys in flight, or for any key while a list runs. */
  readonly #overheard = new Map<Key, Value | undefined>();
  /** Keys that changed in the kernel without our doing. */
  readonly #strayed = new Set<Key>();
  #hasListed = false;
  #isListing = false;
  #sweep: 'off' | 'asked' | 'listing' | 'on' = 'off';
  #drift = 0;

  constructor(driver: KindDriver, context: LedgerContext) {
    this.driver = driver;
    this.#context = context;
    this.#backoff = context.timing.backoff;
    this.schedule = new ListSchedule(context.timing);
    this.dirty = new DirtyKeys(context.onWork);
  }

  get kind(): Kind {
    return this.driver.kind;
  }
  get known(): ReadonlyMap<Key, Value> {
    return this.#known;
  }
  get inFlight(): number {
    return this.#inFlight.size;
  }
  /** Differences that appeared without our doing and had to be repaired. */
  get drift(): number {
    return this.#drift;
  }
  get isSweeping(): boolean {
    return this.#sweep === 'on';
  }

  /** Whether the kernel holds what is wanted under this key, as far as is known and acknowledged. */
  isSettled(key: Key): boolean {
    if (this.schedule.stale !== undefined || this.#inFlight.has(key) || this.#doubtful.has(key)) return false;
    const wanted = this.#context.state.wanted(key);
    const known = this.#known.get(key);
    return wanted === undefined || known === undefined ? wanted === known : this.equal(wanted.value, known);
  }

  /** Something that the driver cannot compare is different: it is written, and the driver's answer to that is reported. */
  equal(wanted: Value, found: Value): boolean {
    if (wanted === found) return true;
    try {
      return this.driver.equal(wanted, found);
    } catch {
      return false;
    }
  }

  /** Takes over what changed in the state. */
  collect(): void {
    for (const key of this.#context.state.takeDirty(this.kind)) {
      this.#context.blocked.remove(key);
      this.dirty.renew(key);
    }
  }

  /** A need of this blocked key changed. */
  unblock(key: Key): void {
    this.#context.blocked.remove(key);
    this.dirty.touch(key);
  }

  askForSweep(): void {
    if (this.#sweep === 'off') this.#sweep = 'asked';
    this.schedule.request();
  }

  /** Whether an object that nobody wants may go: everything after the sweep began, before that what we once wanted. */
  mayRemove(key: Key): boolean {
    return this.#sweep !== 'off' || this.#context.state.wasWanted(key);
  }

  /**
   * The next creates and updates, at most `limit`, which are in flight from now on. What needs something that is not there
   * is blocked, what has to go is put aside for takeRemovals. With `only`, nothing else, and whatever their backoff.
   */
  takeWrites(limit: number, only?: ReadonlySet<Key>): readonly Change[] {
    if (this.schedule.stale !== undefined || this.dirty.size === 0) return [];
    const batch: Change[] = [];
    for (const key of only ? this.#dirtyAmong(only) : this.dirty.pending) {
      if (batch.length >= limit) break;
      const change = this.#changeFor(key);
      if (!change) continue;
      if (change.action === 'remove') this.dirty.leave(key);
      else if (this.#isFree(change.item)) batch.push(this.#begin(change));
    }
    return batch;
  }

  /** The next removals, likewise. */
  takeRemovals(limit: number, only?: ReadonlySet<Key>): readonly Change[] {
    if (this.schedule.stale !== undefined || this.dirty.size === 0) return [];
    const batch: Change[] = [];
    for (const key of this.dirty.leaving) {
      if (batch.length >= limit) break;
      if (only && !only.has(key)) continue;
      const change = this.#changeFor(key);
      // Wanted again since it was put aside: collect() is about to make it pending.
      if (change?.action === 'remove') batch.push(this.#begin(change));
    }
    return batch;
  }

  /** Books the driver's answer to a batch. Returns what failed. */
  acknowledge(batch: readonly Change[], failures: ReadonlyMap<Key, Error>): readonly FailedChange[] {
    const failed: FailedChange[] = [];
    for (const change of batch) {
      const error = failures.get(change.key);
      this.#inFlight.delete(change.key);
      if (error) {
        this.#bookFailure(change.key, error);
        failed.push({ change, error });
      } else this.#bookSuccess(change);
      if (this.#overheard.has(change.key)) this.#bookOverheard(change.key);
      this.#context.onKnown(change.key);
    }
    return failed;
  }

  /** The batch ended without an answer, by a fault of our own: every key of it counts as failed. */
  abandon(error: Error): void {
    for (const key of this.#inFlight) this.#bookFailure(key, error);
    this.#inFlight.clear();
  }

  /** A notice: the object is now as given, or gone. */
  found(key: Key, value: Value | undefined): void {
    if (this.#isListing || this.#inFlight.has(key)) {
      this.#overheard.set(key, value);
      return;
    }
    if (!this.#hasListed) return;
    const wasDoubtful = this.#doubtful.delete(key);
    if (this.#isSame(this.#known.get(key), value)) {
      if (wasDoubtful) this.#recheck(key);
      return;
    }
    this.#learn(key, value);
    this.#strayed.add(key);
    this.#recheck(key);
  }

  /** Ends the backoff of what is meant. An attempt that is under way may be too early: it is followed by another if it fails. */
  freed(isMeant: (wanted: Value) => boolean): void {
    for (const key of [...this.dirty.waiting, ...this.#inFlight]) {
      const item = this.#context.state.wanted(key);
      if (item && isMeant(item.value)) this.dirty.hurry(key);
    }
  }

  beginList(): void {
    this.schedule.begin();
    this.#isListing = true;
    this.#overheard.clear();
    if (this.#sweep === 'asked') this.#sweep = 'listing';
  }

  /** Known becomes what was listed; every difference is dirty. */
  absorb(listed: ReadonlyMap<Key, Value>): void {
    this.#isListing = false;
    const before = this.#known;
    this.#known = new Map(listed);
    const contradicted = this.#preferOverheard(listed);
    this.schedule.succeeded({ contradicted });
    this.#doubtful.clear();

    const { creates, updates, removes } = keyedDiff(this.#known, before, (now, then) => this.#isSame(then, now));
    const suspects = new Set([...creates, ...updates, ...removes].map(({ key }) => key));
    if (this.#hasListed) for (const key of suspects) this.#strayed.add(key);
    this.#hasListed = true;
    if (this.#sweep === 'listing') {
      this.#sweep = 'on';
      for (const key of this.#known.keys()) if (!this.#context.state.wanted(key)) suspects.add(key);
    }
    for (const [key, then] of before) if (!suspects.has(key)) this.#keep(key, then);
    for (const key of suspects.union(new Set(this.dirty.waiting))) this.#recheck(key);
    // What was pending before could not be written while this kind was stale.
    this.#context.onWork();
  }

  listFailed(reason: string): void {
    this.#isListing = false;
    if (this.#sweep === 'listing') this.#sweep = 'asked';
    this.schedule.failed(reason);
  }

  #dirtyAmong(keys: ReadonlySet<Key>): Key[] {
    return [...keys].filter((key) => this.dirty.has(key));
  }

  /** What brings this key into order. Undefined if nothing can or need be done now; then the key is no longer dirty. */
  #changeFor(key: Key): Change | undefined {
    const item = this.#context.state.wanted(key);
    const from = this.#known.get(key);
    const doubtful = this.#doubtful.has(key);
    const kind = this.kind;
    let change: Change | undefined;
    if (item) {
      if (!from) change = { action: 'create', kind, key, item } as Change;
      else if (doubtful || !this.equal(item.value, from))
        change = { action: 'update', kind, key, item, from } as Change;
    } else if (from && this.mayRemove(key)) change = { action: 'remove', kind, key, from } as Change;
    // A half-made object that nobody wants: only a list tells whether it is there, and whether it is ours.
    else if (!from && doubtful) this.schedule.markStale(`the outcome of a write of ${key} is not known`);
    if (this.#strayed.delete(key) && change) this.#drift++;
    if (!change) {
      if (item) this.#keep(key, item.value);
      this.#clean(key);
    }
    return change;
  }

  /** What is as wanted is known as the wanted object itself, as after a write: one copy, and known as equal at a glance. */
  #keep(key: Key, value: Value): void {
    if (this.#known.has(key) && this.#context.state.wanted(key)?.value === value) this.#known.set(key, value);
  }

  #clean(key: Key): void {
    this.dirty.take(key);
    this.dirty.forgive(key);
    this.#context.onKnown(key);
  }

  #isFree({ key, needs }: AnyItem): boolean {
    const missing = needs.find((need) => !this.#context.isReady(need));
    if (missing === undefined) return true;
    this.dirty.take(key);
    this.#context.blocked.add(key, missing);
    return false;
  }

  #begin(change: Change): Change {
    this.dirty.take(change.key);
    this.#inFlight.add(change.key);
    return change;
  }

  #bookSuccess(change: Change): void {
    this.#doubtful.delete(change.key);
    this.dirty.forgive(change.key);
    this.#learn(change.key, change.action === 'remove' ? undefined : change.item.value);
  }

  #bookFailure(key: Key, error: Error): void {
    const { now, random } = this.#context.timing;
    this.#doubtful.add(key);
    this.dirty.fail(key, error, (attempts) => now() + backoffMs(attempts, this.#backoff, random));
  }

  /**
   * A notice that came while its key was being written: the echo of our write, or of a step of it, or somebody else's
   * change before or after it. If it is not what we wrote nobody knows which came last, so the key is in doubt: the next
   * notice decides, or it is written again.
   */
  #bookOverheard(key: Key): void {
    const value = this.#overheard.get(key);
    this.#overheard.delete(key);
    if (this.#isSame(this.#known.get(key), value)) return;
    this.#learn(key, value);
    this.#doubtful.add(key);
    this.dirty.touch(key);
  }

  /** Whether notices during the list said otherwise. They win for now: the list may have passed there before the change. */
  #preferOverheard(listed: ReadonlyMap<Key, Value>): boolean {
    let contradicted = false;
    for (const [key, value] of this.#overheard) {
      if (this.#isSame(listed.get(key), value)) continue;
      contradicted = true;
      this.#learn(key, value);
    }
    this.#overheard.clear();
    return contradicted;
  }

  #learn(key: Key, value: Value | undefined): void {
    if (value) this.#known.set(key, value);
    else this.#known.delete(key);
  }

  /** Dirty after something was learned; a backoff that has become pointless ends. */
  #recheck(key: Key): void {
    if (this.dirty.failures.has(key) && this.isSettled(key)) this.#clean(key);
    else this.unblock(key);
    this.#context.onKnown(key);
  }

  #isSame(known: Value | undefined, found: Value | undefined): boolean {
    if (known === undefined || found === undefined) return known === found;
    return this.equal(known, found) || isDeepStrictEqual(known, found);
  }
}
