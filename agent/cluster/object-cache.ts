import { isDeepStrictEqual } from 'node:util';
import { Draft, type PersistentMap, persistentMap } from '../model/persistent-map.ts';
import type { Narrowed } from './fields.ts';

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
  #objects: PersistentMap<T> = persistentMap();
  /** By key. */
  readonly #problems = new Map<string, readonly string[]>();
  /** What is said of objects without a key, which is all that tells one from another. */
  #nameless = new Set<string>();

  constructor(options: ObjectCacheOptions<T>) {
    this.#options = options;
  }

  /** Never altered; the same map until something changes. */
  get objects(): PersistentMap<T> {
    return this.#objects;
  }

  get size(): number {
    return this.#objects.size;
  }

  /** What could not be used of the objects, with their names. */
  problems(): readonly string[] {
    const ofNamed = [...this.#problems].flatMap(([key, list]) => list.map((text) => `${key}: ${text}`));
    return [...ofNamed, ...this.#nameless];
  }

  /** The named ones among them, with how much is said of each. */
  *troubled(): Generator<readonly [key: string, problems: number]> {
    for (const [key, list] of this.#problems) yield [key, list.length];
  }

  /** Applies events in order, as one change. */
  apply(events: readonly ObjectEvent[]): void {
    const changes = new Map<string, T | undefined>();
    for (const { type, object } of events) {
      const key = this.#options.keyOf(object);
      if (key === undefined) this.#noteNameless(type, object);
      else if (type === 'set') changes.set(key, this.#take(key, object));
      else {
        changes.set(key, undefined);
        this.#problems.delete(key);
      }
    }
    this.#become(this.#objects.with(changes));
  }

  startReplacement(): Replacement {
    const next = new Draft<T>(persistentMap());
    const problems = new Map<string, readonly string[]>();
    const nameless = new Set<string>();
    return {
      add: (objects) => {
        for (const object of objects) {
          const { value, problems: found } = this.#options.narrow(object);
          const key = this.#options.keyOf(object);
          if (key !== undefined && value !== undefined) next.set(key, keepIdentity(value, this.#objects.get(key)));
          if (key === undefined) for (const text of found) nameless.add(text);
          else if (found.length > 0) problems.set(key, found);
        }
      },
      commit: () => {
        this.#problems.clear();
        for (const [key, found] of problems) this.#problems.set(key, found);
        this.#nameless = nameless;
        this.#become(next.done());
      },
    };
  }

  /** What the object stands for now, and its problems noted. */
  #take(key: string, object: unknown): T | undefined {
    const { value, problems } = this.#options.narrow(object);
    if (problems.length > 0) this.#problems.set(key, problems);
    else this.#problems.delete(key);
    return value === undefined ? undefined : keepIdentity(value, this.#objects.get(key));
  }

  #noteNameless(type: ObjectEvent['type'], object: unknown): void {
    for (const text of this.#options.narrow(object).problems) {
      if (type === 'set') this.#nameless.add(text);
      else this.#nameless.delete(text);
    }
  }

  #become(objects: PersistentMap<T>): void {
    const changed = new Set(objects.changedSince(this.#objects));
    if (changed.size === 0) return;
    this.#objects = objects;
    this.#options.changed(changed);
  }
}

const keepIdentity = <T>(value: T, former: T | undefined): T =>
  former !== undefined && isDeepStrictEqual(former, value) ? former : value;
