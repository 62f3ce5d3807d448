import type { Key } from '../model/items.ts';

/** What one cause dirtied and the kernel does not hold yet. */
interface Round {
  readonly sinceMs: number;
  left: number;
}

/**
 * How long it takes until the kernel holds what an event asked for. A key that an earlier round still waits for stays with
 * that round, so the time is always that of the oldest wish; at most one entry a key, whatever fails and for how long.
 */
export class CatchUps {
  readonly #isSettled: (key: Key) => boolean;
  readonly #onDone: (sinceMs: number) => void;
  readonly #rounds = new Map<Key, Round>();
  /** In the order in which they began to be followed. */
  readonly #open = new Set<Round>();

  constructor(isSettled: (key: Key) => boolean, onDone: (sinceMs: number) => void) {
    this.#isSettled = isSettled;
    this.#onDone = onDone;
  }

  /** Keys that are settled already do not count; without any other nothing is reported. */
  follow(keys: Iterable<Key>, sinceMs: number): void {
    const round: Round = { sinceMs, left: 0 };
    for (const key of keys) {
      if (this.#rounds.has(key) || this.#isSettled(key)) continue;
      this.#rounds.set(key, round);
      round.left++;
    }
    if (round.left > 0) this.#open.add(round);
  }

  /** Something was learned of this key. Costs one look-up when nobody follows it. */
  check(key: Key): void {
    const round = this.#rounds.get(key);
    if (!round || !this.#isSettled(key)) return;
    this.#rounds.delete(key);
    round.left--;
    if (round.left > 0) return;
    this.#open.delete(round);
    this.#onDone(round.sinceMs);
  }

  /** A list may have settled any key, such as one that was written while its kind was stale. */
  checkAll(): void {
    for (const key of this.#rounds.keys()) this.check(key);
  }

  /** When the oldest event came that is not in the kernel yet. */
  oldestMs(): number | undefined {
    let oldest: number | undefined;
    for (const { sinceMs } of this.#open) oldest = Math.min(oldest ?? sinceMs, sinceMs);
    return oldest;
  }
}
