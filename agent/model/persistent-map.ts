/**
 * An immutable map by text of which a changed copy shares nearly everything: 50,000 objects are copied, and two versions of
 * them compared, at the cost of what differs. Iteration follows no meaningful order.
 */

const SHARDS = 512;

/** FNV-1a over UTF-16 units. */
function shardOf(key: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193);
  return (hash ^ (hash >>> 16)) & (SHARDS - 1);
}

export class PersistentMap<T> implements ReadonlyMap<string, T> {
  /** For comparisons in depth, which see public fields only. */
  readonly shards: readonly ReadonlyMap<string, T>[];
  readonly size: number;

  /** See persistentMap. */
  constructor(shards: readonly ReadonlyMap<string, T>[], size: number) {
    this.shards = shards;
    this.size = size;
  }

  get(key: string): T | undefined {
    return this.shards[shardOf(key)]?.get(key);
  }

  has(key: string): boolean {
    return this.shards[shardOf(key)]?.has(key) ?? false;
  }

  /** The same with these values, undefined for none; itself when all of them are what it has. */
  with(changes: Iterable<readonly [key: string, value: T | undefined]>): PersistentMap<T> {
    const draft = new Draft(this);
    for (const [key, value] of changes) draft.set(key, value);
    return draft.done();
  }

  /** Keys whose values differ in identity between this and another version, absent ones included. */
  *changedSince(before: PersistentMap<T>): Generator<string, void> {
    for (const [n, shard] of this.shards.entries()) {
      const old = before.shards[n] as ReadonlyMap<string, T>;
      if (old === shard) continue;
      for (const [key, value] of shard) if (old.get(key) !== value) yield key;
      for (const key of old.keys()) if (!shard.has(key)) yield key;
    }
  }

  *entries(): MapIterator<[string, T]> {
    for (const shard of this.shards) yield* shard;
  }

  *keys(): MapIterator<string> {
    for (const shard of this.shards) yield* shard.keys();
  }

  *values(): MapIterator<T> {
    for (const shard of this.shards) yield* shard.values();
  }

  [Symbol.iterator](): MapIterator<[string, T]> {
    return this.entries();
  }

  forEach(visit: (value: T, key: string, map: ReadonlyMap<string, T>) => void): void {
    for (const [key, value] of this) visit(value, key, this);
  }
}

/** Another version under way, for those who make it in several turns. */
export class Draft<T> {
  readonly #from: PersistentMap<T>;
  readonly #copies = new Map<number, Map<string, T>>();
  #size: number;

  constructor(from: PersistentMap<T>) {
    this.#from = from;
    this.#size = from.size;
  }

  /** Undefined: none. */
  set(key: string, value: T | undefined): void {
    const n = shardOf(key);
    const former = this.#copies.get(n);
    const shard = former ?? this.#from.shards[n];
    const before = shard?.get(key);
    if (before === value) return;
    const copy = former ?? new Map(shard);
    if (!former) this.#copies.set(n, copy);
    this.#size += Number(value !== undefined) - Number(before !== undefined);
    if (value === undefined) copy.delete(key);
    else copy.set(key, value);
  }

  /** Ends it. The former version when nothing was set but what it has. */
  done(): PersistentMap<T> {
    if (this.#copies.size === 0) return this.#from;
    const shards = [...this.#from.shards];
    for (const [n, copy] of this.#copies) shards[n] = copy;
    return new PersistentMap(shards, this.#size);
  }
}

const EMPTY = new PersistentMap<never>(new Array<ReadonlyMap<string, never>>(SHARDS).fill(new Map<string, never>()), 0);

/** Of these values. */
export const persistentMap = <T>(entries: Iterable<readonly [string, T]> = []): PersistentMap<T> =>
  (EMPTY as PersistentMap<T>).with(entries);
