/** Every object of the cluster, in memory. All writes are synchronous, so that each one is a transaction. */

import { History } from './history.ts';
import { apiVersionOf, KINDS, type KindRow, kinds } from './kinds.ts';
import {
  bornObject,
  checkPreconditions,
  dyingObject,
  newObject,
  nextObject,
  type Part,
  parseObject,
} from './lifecycle.ts';
import { type ApiObject, deepFreeze, keyOfRef, type ObjectRef, refOf } from './objects.ts';
import { alreadyExists, notFound, tooLargeResourceVersion } from './status.ts';

/** One version of an object, with its text, which is made once however many lists and watches send it. */
export class Stored {
  readonly object: ApiObject;
  readonly revision: number;
  #body: Buffer | undefined;

  constructor(object: ApiObject, revision: number) {
    this.revision = revision;
    this.object = deepFreeze({ ...object, metadata: { ...object.metadata, resourceVersion: String(revision) } });
  }

  /** JSON without the opening brace, kind and apiVersion: the items of a real server's lists have neither. */
  get body(): Buffer {
    if (this.#body) return this.#body;
    const { kind: _, apiVersion: __, ...rest } = this.object;
    this.#body = Buffer.from(JSON.stringify(rest).slice(1));
    return this.#body;
  }
}

export type ChangeType = 'ADDED' | 'MODIFIED' | 'DELETED';

/** One write: `before` is absent for a creation, `after` for a deletion. */
export class Change {
  readonly revision: number;
  readonly before: Stored | undefined;
  readonly after: Stored | undefined;
  #gone: Stored | undefined;

  constructor(revision: number, before: Stored | undefined, after: Stored | undefined) {
    this.revision = revision;
    this.before = before;
    this.after = after;
  }

  /** What a watcher is told that no longer sees the object: its last state, at the version of this change. */
  get gone(): Stored {
    if (!this.before) throw new TypeError(`nothing went at ${this.revision}: the object was created there`);
    this.#gone ??= new Stored(this.before.object, this.revision);
    return this.#gone;
  }
}

export interface Snapshot {
  readonly revision: number;
  /** Sorted by namespace and name. */
  readonly objects: readonly Stored[];
}

/** Gives objects what only one of them can have, such as an address. */
export interface Allocator {
  /** The object with what it is given; nothing is taken yet. Throws StatusError 422 for a wish that cannot be met. */
  allocate(object: ApiObject, previous: ApiObject | undefined): ApiObject;
  /** After a write: what `before` had is free, what `after` has is taken. */
  record(before: ApiObject | undefined, after: ApiObject | undefined): void;
}

export interface StoreOptions {
  readonly allocators?: ReadonlyMap<KindRow, Allocator>;
  /**
   * Where resourceVersions begin. By default the time in ms: a server that is started again then counts on above the
   * versions that clients hold from the former one, and answers those with 410 as it should.
   */
  readonly firstRevision?: number;
  /** Events kept of each kind. */
  readonly historyLimit?: number;
  /** Of a Pod whose deletion names none; 0 deletes at once. */
  readonly podGraceSeconds?: number;
}

export interface WriteOptions {
  /** Answer as if the write had been done. */
  readonly dryRun?: boolean;
}

export interface UpdateOptions extends WriteOptions {
  readonly part?: Part;
}

export interface DeleteOptions extends WriteOptions {
  readonly graceSeconds?: number;
  readonly preconditions?: { readonly resourceVersion?: unknown; readonly uid?: unknown };
}

interface Collection {
  readonly objects: Map<string, Stored>;
  readonly history: History<Change>;
  readonly listeners: Set<() => void>;
  /** Keys in the order of lists; undefined after a creation or a deletion. */
  order: readonly string[] | undefined;
  /** What they stand for; undefined after any write. */
  sorted: readonly Stored[] | undefined;
}

export class Store {
  readonly #collections: ReadonlyMap<KindRow, Collection>;
  readonly #podGraceSeconds: number;
  readonly #allocators: ReadonlyMap<KindRow, Allocator>;
  #revision: number;

  constructor({
    historyLimit = 10_000,
    podGraceSeconds = 0,
    firstRevision = Date.now(),
    allocators = new Map(),
  }: StoreOptions = {}) {
    this.#allocators = allocators;
    this.#podGraceSeconds = podGraceSeconds;
    this.#revision = firstRevision;
    this.#collections = new Map(kinds.map((row) => [row, emptyCollection(historyLimit, firstRevision)]));
    for (const name of ['default', 'kube-system']) this.create(KINDS.namespace, { metadata: { name } });
  }

  /** The resourceVersion of the last write, one counter for all kinds. */
  get revision(): number {
    return this.#revision;
  }

  find(row: KindRow, ref: ObjectRef): Stored | undefined {
    return this.#of(row).objects.get(keyOfRef(ref));
  }

  /** Throws StatusError 404. */
  get(row: KindRow, ref: ObjectRef): Stored {
    const found = this.find(row, ref);
    if (!found) throw notFound(row, ref.name);
    return found;
  }

  list(row: KindRow): Snapshot {
    const collection = this.#of(row);
    collection.order ??= [...collection.objects.keys()].sort();
    collection.sorted ??= collection.order.map((key) => collection.objects.get(key) as Stored);
    return { revision: this.#revision, objects: collection.sorted };
  }

  /**
   * The list as it was, made by taking back what was written since; so old lists live exactly as long as the history.
   * Throws StatusError 410 beyond it, 504 for a version that is yet to come.
   */
  listAt(row: KindRow, revision: number): Snapshot {
    if (revision > this.#revision) throw tooLargeResourceVersion(revision, this.#revision);
    const { objects, history } = this.#of(row);
    const first = history.positionAfter(revision);
    if (first === history.next) return { ...this.list(row), revision };
    const then = new Map(objects);
    for (let position = history.next - 1; position >= first; position--) {
      const { before, after } = history.at(position);
      if (before) then.set(keyOfRef(refOf(before.object)), before);
      else if (after) then.delete(keyOfRef(refOf(after.object)));
    }
    return { revision, objects: [...then.keys()].sort().map((key) => then.get(key) as Stored) };
  }

  history(row: KindRow): History<Change> {
    return this.#of(row).history;
  }

  /** Calls after every write to a kind, synchronously; returns what ends it. */
  onChange(row: KindRow, listener: () => void): () => void {
    const { listeners } = this.#of(row);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /** Throws StatusError 400, 404 (namespace), 409 AlreadyExists, 422. */
  create(row: KindRow, sent: unknown, namespace = '', { dryRun = false }: WriteOptions = {}): Stored {
    const object = newObject(row, parseObject(row, sent, { namespace, name: '' }), new Date());
    const ref = refOf(object);
    if (row.namespaced) this.get(KINDS.namespace, { namespace: '', name: namespace });
    if (this.find(row, ref)) throw alreadyExists(row, ref.name);
    return this.#write(row, undefined, this.#allocated(row, object, undefined), dryRun);
  }

  /** Replaces an object by what `change` makes of it. Throws StatusError 400, 404, 409 Conflict, 422. */
  update(row: KindRow, ref: ObjectRef, change: (current: ApiObject) => unknown, options: UpdateOptions = {}): Stored {
    const before = this.get(row, ref);
    const sent = parseObject(row, change(before.object), ref);
    const next = nextObject(row, before.object, sent, options.part ?? 'all');
    if (next === before.object) return before;
    return this.#write(row, before, this.#allocated(row, next, before.object), options.dryRun ?? false);
  }

  /**
   * Removes an object, or marks it when a grace period is asked for. Returns the marked object, or undefined when it is
   * gone. Throws StatusError 404, 409.
   */
  delete(row: KindRow, ref: ObjectRef, options: DeleteOptions = {}): Stored | undefined {
    const before = this.get(row, ref);
    checkPreconditions(row, before.object, options.preconditions ?? {});
    const graceSeconds = row.graceful ? (options.graceSeconds ?? this.#podGraceSeconds) : 0;
    if (graceSeconds > 0) {
      const dying = dyingObject(before.object, graceSeconds, new Date());
      return dying ? this.#write(row, before, dying, options.dryRun ?? false) : before;
    }
    if (!options.dryRun) this.#commit(row, before, undefined, this.#revision + 1);
    return undefined;
  }

  /**
   * Stores an object as it is sent, new or in the place of one of the name, past every default, check and allocation: what
   * only a faulty server or one of another version would serve. Its spec has the types of the kind all the same, as
   * controllers read it. Throws StatusError 400.
   */
  putUnchecked(row: KindRow, sent: unknown, namespace = ''): Stored {
    const object = parseObject(row, sent, { namespace, name: '' });
    const before = this.find(row, refOf(object));
    return this.#write(row, before, bornObject(object, before?.object, new Date()), false);
  }

  /** Forgets all history: whoever asks for an older version hears 410. */
  compact(): void {
    for (const { history } of this.#collections.values()) history.compact(this.#revision);
  }

  #allocated(row: KindRow, object: ApiObject, previous: ApiObject | undefined): ApiObject {
    return this.#allocators.get(row)?.allocate(object, previous) ?? object;
  }

  #write(row: KindRow, before: Stored | undefined, object: ApiObject, dryRun: boolean): Stored {
    const revision = this.#revision + 1;
    const after = new Stored(object, revision);
    if (!dryRun) this.#commit(row, before, after, revision);
    return after;
  }

  #commit(row: KindRow, before: Stored | undefined, after: Stored | undefined, revision: number): void {
    const collection = this.#of(row);
    const key = keyOfRef(refOf((after ?? before)?.object as ApiObject));
    if (after) collection.objects.set(key, after);
    else collection.objects.delete(key);
    if (!before || !after) collection.order = undefined;
    collection.sorted = undefined;
    this.#allocators.get(row)?.record(before?.object, after?.object);
    this.#revision = revision;
    collection.history.append(new Change(revision, before, after));
    for (const listener of collection.listeners) listener();
  }

  #of(row: KindRow): Collection {
    const collection = this.#collections.get(row);
    if (!collection) throw new TypeError(`no such kind: ${apiVersionOf(row)} ${row.kind}`);
    return collection;
  }
}

const emptyCollection = (historyLimit: number, firstRevision: number): Collection => ({
  objects: new Map(),
  history: new History(historyLimit, firstRevision),
  listeners: new Set(),
  order: undefined,
  sorted: undefined,
});
