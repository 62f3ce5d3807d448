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
 * The result of `work`, or a rejection as soon as `outer` aborts (its reason) or the time is over (DeadlineError), even
 * if work ignores the signal that it was given. Leaves no timer and no listener behind.
 */
export async function withDeadline<T>(
  outer: AbortSignal,
  deadlineMs: number,
  operation: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  outer.throwIfAborted();
  const inner = new AbortController();
  const { promise: stopped, reject } = Promise.withResolvers<never>();
  const stop = (reason: unknown): void => {
    inner.abort(reason);
    reject(reason);
  };
  const onAbort = (): void => stop(outer.reason);
  outer.addEventListener('abort', onAbort, { once: true });
  const timer = setTimeout(() => stop(new DeadlineError(operation, deadlineMs)), deadlineMs);
  try {
    return await Promise.race([work(inner.signal), stopped]);
  } finally {
    clearTimeout(timer);
    outer.removeEventListener('abort', onAbort);
  }
}
