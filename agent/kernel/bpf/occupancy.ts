/** How many entries each owner has in a map: by the last list, and by what was written since, also while a list goes on. */
export class Occupancy<Owner> {
  #counts = new Map<Owner, number>();
  #total = 0;
  /** Owners that were written while a list goes on. */
  #since: Set<Owner> | undefined;

  /** Undefined for an owner that is not there, or not whole. */
  of(owner: Owner): number | undefined {
    return this.#counts.get(owner);
  }

  get total(): number {
    return this.#total;
  }

  set(owner: Owner, count: number | undefined): void {
    this.#since?.add(owner);
    this.#put(owner, count);
  }

  /** `list` tells of each owner that it found whole; what it does not tell of is forgotten when it has ended. */
  async relist<T>(list: (found: (owner: Owner, count: number) => void) => Promise<T>): Promise<T> {
    const [before, since] = [this.#counts, new Set<Owner>()];
    const listed = new Map<Owner, number>();
    this.#since = since;
    try {
      const result = await list((owner, count) => listed.set(owner, count));
      this.#counts = listed;
      this.#total = listed.values().reduce((sum, count) => sum + count, 0);
      for (const owner of since) this.#put(owner, before.get(owner));
      return result;
    } finally {
      this.#since = undefined;
    }
  }

  #put(owner: Owner, count: number | undefined): void {
    this.#total += (count ?? 0) - (this.#counts.get(owner) ?? 0);
    if (count === undefined) this.#counts.delete(owner);
    else this.#counts.set(owner, count);
  }
}
