/** Numbers of which each is held by one at a time, such as ports or places in a CIDR. */

export interface NumberRange {
  readonly first: number;
  readonly last: number;
  /** Numbers below are for those who ask for one by number, and handed out only when nothing above is left (KEP-3070). */
  readonly handedOutFrom: number;
}

/** Hands out numbers in turn, so that one given back rests as long as possible. */
export class NumberPool {
  readonly #range: NumberRange;
  readonly #taken = new Set<number>();
  #next: number;

  constructor(range: NumberRange) {
    this.#range = range;
    this.#next = range.handedOutFrom;
  }

  includes(number: number): boolean {
    return number >= this.#range.first && number <= this.#range.last;
  }

  isTaken(number: number): boolean {
    return this.#taken.has(number);
  }

  /** A free number that is not among `others`, not yet claimed; undefined when none is left. */
  pick(others: ReadonlySet<number> = new Set()): number | undefined {
    const { first, last, handedOutFrom } = this.#range;
    const found =
      this.#firstFree(this.#next, last, others) ??
      this.#firstFree(handedOutFrom, this.#next - 1, others) ??
      this.#firstFree(first, handedOutFrom - 1, others);
    if (found !== undefined && found >= handedOutFrom) this.#next = found === last ? handedOutFrom : found + 1;
    return found;
  }

  claim(number: number): void {
    this.#taken.add(number);
  }

  release(number: number): void {
    this.#taken.delete(number);
  }

  #firstFree(from: number, to: number, others: ReadonlySet<number>): number | undefined {
    for (let number = from; number <= to; number++) {
      if (!this.#taken.has(number) && !others.has(number)) return number;
    }
    return undefined;
  }
}
