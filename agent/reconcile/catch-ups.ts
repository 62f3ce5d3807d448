import type { Key } from '../model/items.ts';

/** What one cause dirties. */
export interface Followed {
  /** Keys that were just touched; those that are settled already do not count. */
  add(keys: Iterable<Key>): void;
  /** There will be no more of them. */
  end(): void;
}

interface Round {
  readonly sinceMs: number;
  /** Keys that the kernel does not hold yet, and one more until the end is told. */
  left: number;
  hasKeys: boolean;
}

/**
 * How long it takes until the kernel holds what an event asked for. A key that an earlier round still waits for stays with
 * that round, so the time is always that of the oldest wish; at most one entry a key, whatever fails and for how long.
 */
export class CatchUps {
  readonly #isSettled: (key: Key) => boolean;
  readonly #onDone: (sinceMs: number) => void;
  readonly #rounds = new Map<Key, Round>();
  readonly #open = new Set<Round>();

  /** `onDone` is told of every round that dirtied anything. */
  constructor(isSettled: (key: Key) => boolean, onDone: (sinceMs: number) => void) {
    this.#isSettled = isSettled;
    this.#onDone = onDone;
  }

  begin(sinceMs: number): Followed {
    const round: Round = { sinceMs, left: 1, hasKeys: false };
    this.#open.add(round);
    return {
      add: (keys) => {
        for (const key of keys) this.#add(key, round);
      },
      end: () => this.#countDown(round),
    };
  }

  /** Something was learned of this key. Costs one look-up when nobody follows it. */
  check(key: Key): void {
    const round = this.#rounds.get(key);
    if (!round || !this.#isSettled(key)) return;
    this.#rounds.delete(key);
    this.#countDown(round);
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

  #add(key: Key, round: Round): void {
    if (this.#rounds.has(key) || this.#isSettled(key)) return;
    this.#rounds.set(key, round);
    round.left++;
    round.hasKeys = true;
  }

  #countDown(round: Round): void {
    round.left--;
    if (round.left > 0) return;
    this.#open.delete(round);
    if (round.hasKeys) this.#onDone(round.sinceMs);
  }
}
