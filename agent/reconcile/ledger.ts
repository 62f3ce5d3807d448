import { isDeepStrictEqual } from 'node:util';
import type { AnyItem, Key, Kind, Objects } from '../model/items.ts';
import { type BackoffLimits, backoffMs } from './backoff.ts';
import type { Blocked } from './blocked.ts';
import { DirtyKeys } from './dirty-keys.ts';
import type { KernelState } from './kernel-state.ts';
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
 * Writes and notices may come while a list is read and compared: what they say of a key is newer than what was listed.
 */
export class Ledger {
  readonly driver: KindDriver;
  readonly schedule: ListSchedule;
  readonly dirty: DirtyKeys;
  readonly #context: LedgerContext;
  readonly #backoff: BackoffLimits;
  #known = new Map<Key, Value>();
  /** With the number of lists that had begun by then: a list that had begun before settles nothing. */
  readonly #doubtful = new Map<Key, number>();
  /** Keys of the batch that the driver works on. */
  readonly #inFlight = new Set<Key>();
  /** Last notices for keys in flight. */
  readonly #overheard = new Map<Key, Value | undefined>();
  /** Keys of which something was learned since the list that is under way began, and how. */
  readonly #newer = new Map<Key, 'told' | 'written'>();
  /** What the list for a sweep found that nobody wants, and what came to it. */
  readonly #unwanted = new Set<Key>();
  #lists = 0;
  /** Keys that changed in the kernel without our doing. */
  readonly #strayed = new Set<Key>();
  #hasListed = false;
  #isListing = false;
  #sweep: 'off' | 'asked' | 'listing' | 'listed' | 'on' = 'off';
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
  get isListing(): boolean {
    return this.#isListing;
  }
  /** A sweep was asked for, and nothing is listed for it yet. */
  get awaitsSweepList(): boolean {
    return this.#sweep === 'asked' || this.#sweep === 'listing';
  }
  /** It is known what a sweep removes. */
  get isSweepListed(): boolean {
    return this.#sweep === 'listed' || this.#sweep === 'on';
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

  /** Whether an object that nobody wants will go: everything once a sweep was asked for, before that what we once wanted. */
  mayRemove(key: Key): boolean {
    return this.#sweep !== 'off' || this.#context.state.wasWanted(key);
  }

  /** From now on everything goes that nobody wants. Does nothing until it was listed for that. */
  sweep(): void {
    if (this.#sweep !== 'listed') return;
    this.#sweep = 'on';
    for (const key of this.#unwanted) this.#recheck(key);
    this.#unwanted.clear();
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
      if (this.#isListing) this.#newer.set(change.key, 'written');
      this.#context.onKnown(change.key);
    }
    return failed;
  }

  /** The batch ended without an answer, by a fault of our own: every key of it counts as failed. */
  abandon(error: Error): void {
    for (const key of this.#inFlight) {
      this.#bookFailure(key, error);
      this.#overheard.delete(key);
      if (this.#isListing) this.#newer.set(key, 'written');
    }
    this.#inFlight.clear();
  }

  /** A notice: the object is now as given, or gone. */
  found(key: Key, value: Value | undefined): void {
    if (this.#inFlight.has(key)) {
      this.#overheard.set(key, value);
      return;
    }
    if (this.#isListing) this.#newer.set(key, 'told');
    else if (!this.#hasListed) return;
    const wasDoubtful = this.#doubtful.delete(key);
    if (this.#isSame(this.#known.get(key), value)) {
      if (wasDoubtful) this.#recheck(key);
      return;
    }
    this.#differs(key, value);
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
    this.#lists++;
    this.#isListing = true;
    if (this.#sweep === 'asked') this.#sweep = 'listing';
  }

  /** Known becomes what was listed, key by key, but for what was learned since the list began; every difference is dirty. */
  *absorb(listed: ReadonlyMap<Key, Value>): Generator<void, void> {
    for (const [key, value] of listed) {
      this.#compare(key, value);
      yield;
    }
    for (const key of this.#known.keys()) {
      if (!listed.has(key)) this.#compare(key, undefined);
      yield;
    }
    this.#isListing = false;
    this.schedule.succeeded({ contradicted: this.#takeNewer(listed) });
    for (const [key, since] of this.#doubtful) if (since < this.#lists) this.#doubtful.delete(key);
    this.#hasListed = true;
    if (this.#sweep === 'listing') this.#sweep = 'listed';
    for (const key of [...this.dirty.waiting]) this.#recheck(key);
    // What was pending before could not be written while this kind was stale.
    this.#context.onWork();
  }

  listFailed(reason: string): void {
    this.#isListing = false;
    this.#newer.clear();
    this.#unwanted.clear();
    if (this.#sweep === 'listing') this.#sweep = 'asked';
    this.schedule.failed(reason);
  }

  #compare(key: Key, found: Value | undefined): void {
    if (!this.#context.state.wanted(key)) this.#noteUnwanted(key);
    // What is being written is acknowledged after this.
    if (this.#newer.has(key) || this.#inFlight.has(key)) return;
    if (!this.#isSame(this.#known.get(key), found)) this.#differs(key, found);
  }

  /** What the kernel holds is something else than what was known. */
  #differs(key: Key, found: Value | undefined): void {
    this.#learn(key, found);
    if (this.#hasListed) this.#strayed.add(key);
    this.#recheck(key);
  }

  /**
   * Forgets what is newer than the list. Whether notices said otherwise than the list, which may have passed there before the
   * change: they win for now. What was written is no contradiction.
   */
  #takeNewer(listed: ReadonlyMap<Key, Value>): boolean {
    let contradicted = false;
    for (const [key, how] of this.#newer)
      contradicted ||= how === 'told' && !this.#isSame(listed.get(key), this.#known.get(key));
    this.#newer.clear();
    return contradicted;
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
    } else if (from && this.#removes(key)) change = { action: 'remove', kind, key, from } as Change;
    else if (from) this.#noteUnwanted(key);
    // A half-made object that nobody wants: only a list tells whether it is there, and whether it is ours.
    else if (doubtful) this.schedule.markStale(`the outcome of a write of ${key} is not known`);
    if (this.#strayed.delete(key) && change) this.#drift++;
    if (!change) {
      if (item) this.#keep(key, item.value);
      this.#clean(key);
    }
    return change;
  }

  #noteUnwanted(key: Key): void {
    if (this.#sweep === 'listing' || this.#sweep === 'listed') this.#unwanted.add(key);
  }

  #removes(key: Key): boolean {
    return this.#sweep === 'on' || this.#context.state.wasWanted(key);
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
    this.#doubtful.set(key, this.#lists);
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
    this.#doubtful.set(key, this.#lists);
    this.dirty.touch(key);
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
