/** Lets so many of each key pass in a second: what strangers can cause is bounded, whatever they send. */
export class PerSecond {
  readonly #most: number;
  readonly #clock: () => number;
  readonly #counts = new Map<number, number>();
  #sinceMs = Number.NEGATIVE_INFINITY;

  /** `clock`: milliseconds that only go forward. */
  constructor(most: number, clock: () => number = () => performance.now()) {
    this.#most = most;
    this.#clock = clock;
  }

  allows(key = 0): boolean {
    const now = this.#clock();
    if (now - this.#sinceMs >= 1000) {
      this.#sinceMs = now;
      this.#counts.clear();
    }
    const count = this.#counts.get(key) ?? 0;
    if (count >= this.#most) return false;
    this.#counts.set(key, count + 1);
    return true;
  }
}
