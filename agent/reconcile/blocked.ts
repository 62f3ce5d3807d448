import type { Key } from '../model/items.ts';

const NOBODY: readonly Key[] = Object.freeze([]);

/** Which keys wait for which need, both ways, so that a need that came true wakes exactly those that wait for it. */
export class Blocked {
  readonly #needs = new Map<Key, Key>();
  readonly #waiters = new Map<Key, Set<Key>>();

  /** What the key waits for. */
  needOf(key: Key): Key | undefined {
    return this.#needs.get(key);
  }

  /** A copy: waking a waiter changes the index. */
  waitersFor(need: Key): readonly Key[] {
    const waiters = this.#waiters.get(need);
    return waiters ? [...waiters] : NOBODY;
  }

  needs(): readonly Key[] {
    return [...this.#waiters.keys()];
  }

  entries(): Iterable<readonly [key: Key, need: Key]> {
    return this.#needs;
  }

  add(key: Key, need: Key): void {
    this.remove(key);
    this.#needs.set(key, need);
    const waiters = this.#waiters.get(need);
    if (waiters) waiters.add(key);
    else this.#waiters.set(need, new Set([key]));
  }

  remove(key: Key): void {
    const need = this.#needs.get(key);
    if (need === undefined) return;
    this.#needs.delete(key);
    const waiters = this.#waiters.get(need);
    waiters?.delete(key);
    if (waiters?.size === 0) this.#waiters.delete(need);
  }
}
