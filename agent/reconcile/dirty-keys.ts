import type { Key } from '../model/items.ts';

export interface Failure {
  readonly error: Error;
  /** In a row. */
  readonly attempts: number;
  /** On the clock of the reconciler. */
  readonly nextTryMs: number;
}

/**
 * The keys of one kind that have to be looked at, each in one place: `pending` (as soon as possible), `leaving` (found to
 * be removed, after all creates and updates) or `waiting` (for the end of a backoff). A failure is remembered until its key
 * is right or wanted otherwise.
 */
export class DirtyKeys {
  readonly #onWork: () => void;
  readonly #pending = new Set<Key>();
  readonly #leaving = new Set<Key>();
  readonly #waiting = new Set<Key>();
  readonly #failures = new Map<Key, Failure>();

  /** `onWork` is called whenever a key becomes pending. */
  constructor(onWork: () => void) {
    this.#onWork = onWork;
  }

  get pending(): Iterable<Key> {
    return this.#pending;
  }
  get hasPending(): boolean {
    return this.#pending.size > 0;
  }
  get leaving(): Iterable<Key> {
    return this.#leaving;
  }
  get waiting(): Iterable<Key> {
    return this.#waiting;
  }
  get failures(): ReadonlyMap<Key, Failure> {
    return this.#failures;
  }
  get size(): number {
    return this.#pending.size + this.#leaving.size + this.#waiting.size;
  }

  has(key: Key): boolean {
    return this.#pending.has(key) || this.#leaving.has(key) || this.#waiting.has(key);
  }

  /** Something else is wanted: earlier failures no longer count. */
  renew(key: Key): void {
    this.#failures.delete(key);
    this.#moveToPending(key);
  }

  /** The kernel may have changed: look again, but not before the end of a backoff. */
  touch(key: Key): void {
    if (!this.#waiting.has(key)) this.#moveToPending(key);
  }

  /** What made it fail may be gone: look again, whatever its backoff. Should it fail once more, it is one time more. */
  hurry(key: Key): void {
    this.#moveToPending(key);
  }

  leave(key: Key): void {
    this.take(key);
    this.#leaving.add(key);
  }

  /** Out of all places; its failure is kept. */
  take(key: Key): void {
    this.#pending.delete(key);
    this.#leaving.delete(key);
    this.#waiting.delete(key);
  }

  forgive(key: Key): void {
    this.#failures.delete(key);
  }

  /** Records a failed attempt; the key waits, unless it became pending since the attempt began. */
  fail(key: Key, error: Error, nextTryMs: (attempts: number) => number): void {
    const attempts = (this.#failures.get(key)?.attempts ?? 0) + 1;
    this.#failures.set(key, { error, attempts, nextTryMs: nextTryMs(attempts) });
    if (!this.has(key)) this.#waiting.add(key);
  }

  /** Makes pending what has waited long enough. */
  releaseDue(nowMs: number): void {
    if (this.#waiting.size === 0) return;
    for (const key of this.#waiting) {
      if ((this.#failures.get(key)?.nextTryMs ?? 0) <= nowMs) this.#moveToPending(key);
    }
  }

  /** When the first backoff ends; Infinity if none runs. */
  nextTryMs(): number {
    let next = Infinity;
    for (const key of this.#waiting) next = Math.min(next, this.#failures.get(key)?.nextTryMs ?? 0);
    return next;
  }

  #moveToPending(key: Key): void {
    if (!this.#pending.has(key)) {
      this.take(key);
      this.#pending.add(key);
    }
    this.#onWork();
  }
}
