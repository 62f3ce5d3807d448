import { type Key, type Kind, kindOf } from '../model/items.ts';
import type { KernelState } from './kernel-state.ts';
import type { FailedChange } from './ledger.ts';

/** A key that somebody waits for, or one that it needs, could not be written. The cause is the driver's error. */
export class SettleError extends Error {
  override readonly name = 'SettleError';
  readonly key: Key;

  constructor(key: Key, cause: unknown) {
    super(`cannot settle ${key}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
    this.key = key;
  }
}

interface Request {
  readonly keys: readonly Key[];
  finish(error?: unknown): void;
}

/** Those who wait until certain keys are in the kernel as wanted. */
export class Settles {
  readonly #state: KernelState;
  readonly #isSettled: (key: Key) => boolean;
  readonly #requests = new Set<Request>();
  #aborted: { readonly reason: unknown } | undefined;

  constructor(state: KernelState, isSettled: (key: Key) => boolean) {
    this.#state = state;
    this.#isSettled = isSettled;
  }

  /** Resolves when all keys are settled at once. Rejects with SettleError, or the reason of whichever abort comes first. */
  async wait(keys: Iterable<Key>, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#aborted) throw this.#aborted.reason;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const request: Request = {
      keys: [...keys],
      finish: (error) => (error === undefined ? resolve() : reject(error)),
    };
    // Not check(): many may wait, and nothing has happened that could concern the others.
    if (request.keys.every(this.#isSettled)) return;
    const onAbort = (): void => reject(signal.reason);
    this.#requests.add(request);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      await promise;
    } finally {
      this.#requests.delete(request);
      signal.removeEventListener('abort', onAbort);
    }
  }

  get isAwaited(): boolean {
    return this.#requests.size > 0;
  }

  /** What goes first: the keys waited for, and what they need. A set of the caller's own. */
  demand(): Set<Key> {
    const keys = new Set<Key>();
    for (const request of this.#requests) for (const key of this.#closure(request)) keys.add(key);
    return keys;
  }

  /** Answers those whose keys are all settled now. */
  check(): void {
    for (const request of this.#requests) {
      if (!request.keys.every(this.#isSettled)) continue;
      this.#requests.delete(request);
      request.finish();
    }
  }

  /** Rejects those that failed attempts concern. An attempt at what is no longer wanted concerns nobody. */
  failed(changes: readonly FailedChange[]): void {
    if (this.#requests.size === 0) return;
    const errors = new Map(
      changes.filter((failure) => this.#isCurrent(failure)).map(({ change, error }) => [change.key, error]),
    );
    this.#reject((key) => errors.get(key));
  }

  /** Rejects those that wait for something of a kind which cannot be listed, and so not be written. */
  kindFailed(kind: Kind, error: Error): void {
    this.#reject((key) => (kindOf(key) === kind ? error : undefined));
  }

  /** Rejects all, now and later. */
  abort(reason: unknown): void {
    this.#aborted = { reason };
    for (const request of this.#requests) request.finish(reason);
    this.#requests.clear();
  }

  #isCurrent({ change }: FailedChange): boolean {
    return this.#state.wanted(change.key) === (change.action === 'remove' ? undefined : change.item);
  }

  #reject(errorOf: (key: Key) => Error | undefined): void {
    for (const request of this.#requests) {
      for (const key of this.#closure(request)) {
        const cause = errorOf(key);
        if (!cause) continue;
        this.#requests.delete(request);
        request.finish(new SettleError(key, cause));
        break;
      }
    }
  }

  #closure({ keys }: Request): Set<Key> {
    const closure = new Set(keys);
    // A Set visits what is added while it is walked.
    for (const key of closure) for (const need of this.#state.wanted(key)?.needs ?? []) closure.add(need);
    return closure;
  }
}
