import { isDeepStrictEqual } from 'node:util';
import type { Narrowed } from './narrow.ts';

/** An object as an event of a watch gives it. */
export interface ObjectEvent {
  readonly type: 'set' | 'delete';
  readonly object: unknown;
}

/** A complete list under way. Nothing shows before `commit`; dropping it without `commit` changes nothing. */
export interface Replacement {
  add(objects: readonly unknown[]): void;
  commit(): void;
}

interface ObjectCacheOptions<T> {
  /** Undefined for what has no usable name. */
  readonly keyOf: (raw: unknown) => string | undefined;
  readonly narrow: (raw: unknown) => Narrowed<T>;
  /** Called once after each change, with the keys whose objects came, changed or went; never with none. */
  readonly changed: (keys: ReadonlySet<string>) => void;
}

/**
 * Narrowed objects by key. A new value that equals the old one keeps the old one's identity and is no change, so that a
 * heartbeat or a relist dirties nothing. An object that cannot be narrowed counts as absent, also when it was good before:
 * its former content is no longer what the API says. It costs the others nothing and stands among the problems.
 */
export class ObjectCache<T> {
  readonly #options: ObjectCacheOptions<T>;
  #objects: ReadonlyMap<string, T> = new Map();
  /** By key, or by sentence where there is no key. */
  readonly #problems = new Map<string, readonly string[]>();

  constructor(options: ObjectCacheOptions<T>) {
    this.#options = options;
  }

  /** Never altered: a change makes a new map. */
  get objects(): ReadonlyMap<string, T> {
    return this.#objects;
  }

  /** What could not be used of the objects, with their names; at most `limit` sentences. */
  problems(limit = 20): readonly string[] {
    const sentences = [...this.#problems].flatMap(([key, list]) => list.map((text) => `${key}: ${text}`));
    return sentences.slice(0, limit);
  }

  /** Applies events in order, as one change. */
  apply(events: readonly ObjectEvent[]): void {
    const next = new Map(this.#objects);
    const touched = new Set<string>();
    for (const { type, object } of events) {
      const key = this.#options.keyOf(object);
      if (key === undefined) {
        this.#noteNameless(object);
        continue;
      }
      touched.add(key);
      if (type === 'set') this.#take(next, key, object);
      else {
        next.delete(key);
        this.#problems.delete(key);
      }
    }
    this.#show(next, touched);
  }

  startReplacement(): Replacement {
    const next = new Map<string, T>();
    const problems = new Map<string, readonly string[]>();
    return {
      add: (objects) => {
        for (const object of objects) {
          const { value, problems: found } = this.#options.narrow(object);
          const key = this.#options.keyOf(object);
          if (key !== undefined && value !== undefined) next.set(key, this.#same(key, value));
          if (found.length > 0) problems.set(key ?? NAMELESS, found);
        }
      },
      commit: () => {
        this.#problems.clear();
        for (const [key, found] of problems) this.#problems.set(key, found);
        this.#show(next, new Set([...this.#objects.keys(), ...next.keys()]));
      },
    };
  }

  #take(next: Map<string, T>, key: string, object: unknown): void {
    const { value, problems } = this.#options.narrow(object);
    if (value === undefined) next.delete(key);
    else next.set(key, this.#same(key, value));
    if (problems.length > 0) this.#problems.set(key, problems);
    else this.#problems.delete(key);
  }

  /** Cannot be followed from event to event, so the last one stands for all until the next list. */
  #noteNameless(object: unknown): void {
    this.#problems.set(NAMELESS, this.#options.narrow(object).problems);
  }

  #same(key: string, value: T): T {
    const former = this.#objects.get(key);
    return former !== undefined && isDeepStrictEqual(former, value) ? former : value;
  }

  #show(next: ReadonlyMap<string, T>, touched: Iterable<string>): void {
    const changed = new Set<string>();
    for (const key of touched) if (next.get(key) !== this.#objects.get(key)) changed.add(key);
    if (changed.size === 0) return;
    this.#objects = next;
    this.#options.changed(changed);
  }
}

const NAMELESS = '(no usable name)';
