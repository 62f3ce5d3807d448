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
  #content: Map<string, T> = new Map();
  /** A copy of the content, made when somebody asks: a burst of events costs one copy and not one each. */
  #objects: ReadonlyMap<string, T> | undefined;
  /** By key, or by sentence where there is no key. */
  readonly #problems = new Map<string, readonly string[]>();

  constructor(options: ObjectCacheOptions<T>) {
    this.#options = options;
  }

  /** Never altered; the same map until something changes. */
  get objects(): ReadonlyMap<string, T> {
    this.#objects ??= new Map(this.#content);
    return this.#objects;
  }

  get size(): number {
    return this.#content.size;
  }

  /** What could not be used of the objects, with their names; at most `limit` sentences. */
  problems(limit = 20): readonly string[] {
    const sentences = [...this.#problems].flatMap(([key, list]) => list.map((text) => `${key}: ${text}`));
    return sentences.slice(0, limit);
  }

  /** Applies events in order, as one change. */
  apply(events: readonly ObjectEvent[]): void {
    const before = new Map<string, T | undefined>();
    for (const { type, object } of events) {
      const key = this.#options.keyOf(object);
      if (key === undefined) {
        this.#noteNameless(object);
        continue;
      }
      if (!before.has(key)) before.set(key, this.#content.get(key));
      if (type === 'set') this.#take(key, object, before.get(key));
      else this.#drop(key);
    }
    this.#announce(before);
  }

  startReplacement(): Replacement {
    const next = new Map<string, T>();
    const problems = new Map<string, readonly string[]>();
    return {
      add: (objects) => {
        for (const object of objects) {
          const { value, problems: found } = this.#options.narrow(object);
          const key = this.#options.keyOf(object);
          if (key !== undefined && value !== undefined) next.set(key, keepIdentity(value, this.#content.get(key)));
          if (found.length > 0) problems.set(key ?? NAMELESS, found);
        }
      },
      commit: () => {
        this.#problems.clear();
        for (const [key, found] of problems) this.#problems.set(key, found);
        const before = this.#content;
        this.#content = next;
        this.#announce(new Map([...[...next.keys()].map((key) => [key, undefined] as const), ...before]));
      },
    };
  }

  #take(key: string, object: unknown, before: T | undefined): void {
    const { value, problems } = this.#options.narrow(object);
    if (value === undefined) this.#content.delete(key);
    else this.#content.set(key, keepIdentity(value, before));
    if (problems.length > 0) this.#problems.set(key, problems);
    else this.#problems.delete(key);
  }

  #drop(key: string): void {
    this.#content.delete(key);
    this.#problems.delete(key);
  }

  /** Cannot be followed from event to event, so the last one stands for all until the next list. */
  #noteNameless(object: unknown): void {
    this.#problems.set(NAMELESS, this.#options.narrow(object).problems);
  }

  /** `before` has what every key stood for that may have changed. */
  #announce(before: ReadonlyMap<string, T | undefined>): void {
    const changed = new Set<string>();
    for (const [key, value] of before) if (this.#content.get(key) !== value) changed.add(key);
    if (changed.size === 0) return;
    this.#objects = undefined;
    this.#options.changed(changed);
  }
}

const NAMELESS = '(no usable name)';

const keepIdentity = <T>(value: T, former: T | undefined): T =>
  former !== undefined && isDeepStrictEqual(former, value) ? former : value;
