/** Something did not answer in time. Whether it took effect is unknown. */
export class DeadlineError extends Error {
  override readonly name = 'DeadlineError';
  readonly operation: string;
  readonly deadlineMs: number;

  constructor(operation: string, deadlineMs: number) {
    super(`cannot ${operation}: expected an answer within ${deadlineMs} ms, got none; it will be tried again`);
    this.operation = operation;
    this.deadlineMs = deadlineMs;
  }
}

/**
 * Bounds what somebody does one thing after the other, until `outer` aborts. It listens to that signal once: setting up and
 * taking away a listener for each small piece of work costs more than the work.
 */
export class Deadlines implements Disposable {
  readonly #outer: AbortSignal;
  readonly #onAbort = (): void => this.#stop(this.#current, this.#outer.reason);
  #current: Work | undefined;

  constructor(outer: AbortSignal) {
    this.#outer = outer;
    outer.addEventListener('abort', this.#onAbort, { once: true });
  }

  /**
   * The result of `work`, or a rejection as soon as the outer signal aborts (its reason) or the time is over (DeadlineError),
   * even if work ignores the signal that it was given. Not again before it has ended.
   */
  run<T>(deadlineMs: number, operation: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#outer.aborted) return Promise.reject(this.#outer.reason);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const timer = setTimeout(() => this.#stop(current, new DeadlineError(operation, deadlineMs)), deadlineMs);
    const current: Work = { inner: new AbortController(), timer, reject };
    this.#current = current;
    work(current.inner.signal).then(
      (value) => {
        this.#end(current);
        resolve(value);
      },
      (error) => {
        this.#end(current);
        reject(error);
      },
    );
    return promise;
  }

  [Symbol.dispose](): void {
    this.#outer.removeEventListener('abort', this.#onAbort);
  }

  #stop(work: Work | undefined, reason: unknown): void {
    if (!work) return;
    this.#end(work);
    work.inner.abort(reason);
    work.reject(reason);
  }

  #end(work: Work): void {
    clearTimeout(work.timer);
    if (this.#current === work) this.#current = undefined;
  }
}

interface Work {
  readonly inner: AbortController;
  readonly timer: NodeJS.Timeout;
  readonly reject: (reason: unknown) => void;
}

/** The same for one thing. Leaves no timer and no listener behind. */
export async function withDeadline<T>(
  outer: AbortSignal,
  deadlineMs: number,
  operation: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  using deadlines = new Deadlines(outer);
  return await deadlines.run(deadlineMs, operation, work);
}
