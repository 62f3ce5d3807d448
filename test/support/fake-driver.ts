/** A driver over a Map that stands for the kernel: it behaves like one, fails on request, and counts what is asked of it. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { Key, Kind, Objects } from '../../agent/model/items.ts';
import type { Change, Driver, Lane, Notice } from '../../agent/reconcile/types.ts';

export type Action = Change['action'];

export interface FakeDriverOptions<K extends Kind> {
  readonly lane?: Lane;
  readonly merge?: 'one' | 'same';
  /** Then a list reads one key a turn, as the kernel is by then. */
  readonly listsAside?: true;
  /** The kernel's content: hand the same Map to a second driver to stand for a restarted process. */
  readonly store?: Map<Key<K>, Objects[K]>;
  readonly equal?: (wanted: Objects[K], found: Objects[K]) => boolean;
  /**
   * Which notices own writes cause: none; one with the result; or first one of a half-done object, made by this function,
   * while the write runs, and the result after it is acknowledged.
   */
  readonly echo?: 'none' | 'final' | { readonly halfDone: (value: Objects[K]) => Objects[K] | undefined };
}

interface Fault {
  readonly matches: (change: Change) => boolean;
  readonly error: Error;
  left: number;
}

interface Gate {
  readonly opened: Promise<void>;
  reached(): void;
}

export class FakeDriver<K extends Kind> implements Driver<K> {
  readonly kind: K;
  readonly lane: Lane;
  readonly merge: 'one' | 'same';
  readonly listsAside?: true;
  readonly store: Map<Key<K>, Objects[K]>;
  /** Calls, and the keys of all changes that were asked for, in order. */
  lists = 0;
  applies = 0;
  compares = 0;
  readonly visited: Key<K>[] = [];
  readonly written: Change<K>[] = [];
  /** Breaches of the driver contract by whoever calls. */
  readonly violations: string[] = [];
  largestBatch = 0;
  /** Changes that found in the kernel what they were to bring there. */
  needless = 0;

  readonly #equal: (wanted: Objects[K], found: Objects[K]) => boolean;
  readonly #echo: NonNullable<FakeDriverOptions<K>['echo']>;
  readonly #faults: Fault[] = [];
  readonly #listErrors: Error[] = [];
  readonly #throwNext: unknown[] = [];
  /** Rejects when those that hang should end. */
  #healed = healing();
  #hangs: ('obedient' | 'deaf')[] = [];
  #listHangs = 0;
  readonly #busy = new Set<string>();
  #notice: Notice<K> | undefined;
  readonly #gates = new Map<'apply' | 'list', Gate>();

  constructor(kind: K, options: FakeDriverOptions<K> = {}) {
    this.kind = kind;
    this.lane = options.lane ?? 'netlink';
    this.merge = options.merge ?? 'one';
    this.store = options.store ?? new Map();
    if (options.listsAside) this.listsAside = true;
    this.#equal = options.equal ?? isDeepStrictEqual;
    this.#echo = options.echo ?? 'none';
  }

  /** The next `times` changes of this key, action or both fail; what would have been done is not done. */
  failNext(what: { readonly key?: Key<K>; readonly action?: Action }, times = 1, error = new Error('injected')): void {
    const matches = (change: Change): boolean =>
      (what.key === undefined || what.key === change.key) &&
      (what.action === undefined || what.action === change.action);
    this.#faults.push({ matches, error, left: times });
  }

  /** No injected fault is left or applies any more; who hangs obediently fails. */
  heal(): void {
    this.#hangs.length = 0;
    this.#healed.reject(new Error('healed'));
    this.#healed = healing();
    this.#faults.length = 0;
    this.#listErrors.length = 0;
    this.#throwNext.length = 0;
  }

  failLists(times: number, error = new Error('injected list failure')): void {
    for (let i = 0; i < times; i++) this.#listErrors.push(error);
  }

  /** The next apply() rejects as a whole. */
  throwNext(error: unknown = new Error('injected throw')): void {
    this.#throwNext.push(error);
  }

  /** The next apply() never returns; an obedient one rejects when its signal aborts. */
  hangNext(manner: 'obedient' | 'deaf' = 'obedient'): void {
    this.#hangs.push(manner);
  }

  hangNextList(): void {
    this.#listHangs++;
  }

  /**
   * From now on apply() stops before it writes, or list() after it has read, until the returned function is called.
   * `reached` resolves when one does.
   */
  hold(what: 'apply' | 'list' = 'apply'): { readonly reached: Promise<void>; release: () => void } {
    const opened = Promise.withResolvers<void>();
    const reached = Promise.withResolvers<void>();
    this.#gates.set(what, { opened: opened.promise, reached: reached.resolve });
    const release = (): void => {
      this.#gates.delete(what);
      opened.resolve();
    };
    return { reached: reached.promise, release };
  }

  /** Changes the kernel behind the reconciler's back. */
  tamper(key: Key<K>, value: Objects[K] | undefined, { notice }: { readonly notice: boolean }): void {
    this.#put(key, value);
    if (notice) this.#notice?.found(key, value);
  }

  /** A notice as it is, whatever the kernel holds. */
  tell(key: Key<K>, value: Objects[K] | undefined): void {
    this.#notice?.found(key, value);
  }

  /** A notice that these may succeed now. */
  free(isMeant: (wanted: Objects[K]) => boolean): void {
    this.#notice?.freed(isMeant);
  }

  overrun(reason = 'injected overrun'): void {
    this.#notice?.stale(reason);
  }

  equal(wanted: Objects[K], found: Objects[K]): boolean {
    this.compares++;
    return this.#equal(wanted, found);
  }

  watch(notice: Notice<K>, signal: AbortSignal): void {
    this.#notice = notice;
    signal.addEventListener('abort', () => (this.#notice = undefined), { once: true });
  }

  async list(signal: AbortSignal): Promise<ReadonlyMap<Key<K>, Objects[K]>> {
    this.lists++;
    return this.#alone('list', async () => {
      signal.throwIfAborted();
      if (this.#listHangs > 0) {
        this.#listHangs--;
        await untilAborted(signal);
      }
      const snapshot = await this.#read();
      await this.#pass('list');
      await nextTurn();
      const error = this.#listErrors.shift();
      if (error) throw error;
      return snapshot;
    });
  }

  async apply(batch: readonly Change<K>[], signal: AbortSignal): Promise<ReadonlyMap<Key<K>, Error>> {
    this.applies++;
    this.#inspect(batch, signal);
    return this.#alone('apply', async () => {
      await this.#pass('apply');
      const manner = this.#hangs.shift();
      if (manner === 'deaf') await new Promise(() => {});
      if (manner === 'obedient') await Promise.race([untilAborted(signal), this.#healed.promise]);
      await nextTurn();
      signal.throwIfAborted();
      if (this.#throwNext.length > 0) throw this.#throwNext.shift();
      const failures = new Map<Key<K>, Error>();
      for (const change of batch) this.#write(change, failures);
      await nextTurn();
      return failures;
    });
  }

  async #read(): Promise<Map<Key<K>, Objects[K]>> {
    if (!this.listsAside) return new Map(this.store);
    const found = new Map<Key<K>, Objects[K]>();
    for (const [key, value] of this.store) {
      found.set(key, value);
      await nextTurn();
    }
    return found;
  }

  async #pass(what: 'apply' | 'list'): Promise<void> {
    this.#gates.get(what)?.reached();
    await this.#gates.get(what)?.opened;
  }

  #inspect(batch: readonly Change<K>[], signal: AbortSignal): void {
    this.largestBatch = Math.max(this.largestBatch, batch.length);
    this.visited.push(...batch.map(({ key }) => key as Key<K>));
    if (batch.length === 0) this.violations.push('an empty batch');
    if (batch.some(({ kind }) => kind !== this.kind)) this.violations.push('a batch of another kind');
    if (new Set(batch.map(({ action }) => action === 'remove')).size > 1) this.violations.push('a mixed batch');
    if (new Set(batch.map(({ key }) => key)).size < batch.length) this.violations.push('a key twice in a batch');
    if (signal.aborted) this.violations.push('an apply after the abort');
  }

  async #alone<T>(name: string, work: () => Promise<T>): Promise<T> {
    const others = this.listsAside ? this.#busy.intersection(new Set([name])) : this.#busy;
    for (const other of others) this.violations.push(`${name} during ${other}`);
    this.#busy.add(name);
    try {
      return await work();
    } finally {
      this.#busy.delete(name);
    }
  }

  #write(change: Change<K>, failures: Map<Key<K>, Error>): void {
    const key = change.key as Key<K>;
    const fault = this.#faults.find(({ matches, left }) => left > 0 && matches(change as Change));
    if (fault) {
      fault.left--;
      failures.set(key, fault.error);
      return;
    }
    const value = change.action === 'remove' ? undefined : (change.item.value as Objects[K]);
    this.written.push(change);
    if (isDeepStrictEqual(this.store.get(key), value)) this.needless++;
    this.#put(key, value);
    this.#report(key, value);
  }

  #report(key: Key<K>, value: Objects[K] | undefined): void {
    if (this.#echo === 'none') return;
    if (typeof this.#echo === 'object') this.#notice?.found(key, value && this.#echo.halfDone(value));
    // After the acknowledgement, as from another socket.
    const late = async (): Promise<void> => {
      for (let turn = 0; turn < 4; turn++) await nextTurn();
      this.#notice?.found(key, this.store.get(key));
    };
    if (this.#echo === 'final') this.#notice?.found(key, value);
    else void late();
  }

  #put(key: Key<K>, value: Objects[K] | undefined): void {
    if (value) this.store.set(key, value);
    else this.store.delete(key);
  }
}

function untilAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
}

function healing(): PromiseWithResolvers<never> {
  const healed = Promise.withResolvers<never>();
  healed.promise.catch(() => {});
  return healed;
}
