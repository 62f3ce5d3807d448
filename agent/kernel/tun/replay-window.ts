/** How far behind the newest one a counter may come, in datagrams: what a path that reorders has under way. */
export const REPLAY_WINDOW = 8192;

/** One word more than the window, so that a word that is left can be cleared as a whole (RFC 6479 section 2.2). */
const WORDS = REPLAY_WINDOW / 32 + 1;

/** Which counters were seen, in the shape of RFC 6479: bits in a ring of words. Counters are whole numbers below 2^53. */
export class ReplayWindow {
  readonly #seen = new Int32Array(WORDS);
  /** Every counter from here on is new. */
  #next = 0;

  /** Whether this counter was not seen, as far as that is known. */
  isNew(counter: number): boolean {
    if (counter >= this.#next) return true;
    if (counter < this.#next - REPLAY_WINDOW) return false;
    const word = Math.floor(counter / 32) % WORDS;
    return ((this.#seen[word] as number) & (1 << (counter % 32))) === 0;
  }

  /** Call it only with what was authenticated, and is new. */
  mark(counter: number): void {
    const word = Math.floor(counter / 32);
    if (counter >= this.#next) {
      // The word of the newest one so far may have bits that hold; those between are of counters long gone.
      const newest = this.#next === 0 ? -1 : Math.floor((this.#next - 1) / 32);
      for (let i = Math.max(newest + 1, word - WORDS + 1); i <= word; i++) this.#seen[i % WORDS] = 0;
      this.#next = counter + 1;
    }
    this.#seen[word % WORDS] = (this.#seen[word % WORDS] as number) | (1 << (counter % 32));
  }
}
