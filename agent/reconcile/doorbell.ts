/** setTimeout() fires at once beyond this. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** A one-slot trigger for one waiter: any number of rings before it looks are one. */
export class Doorbell {
  #rung = false;
  #answer: (() => void) | undefined;

  ring(): void {
    this.#rung = true;
    this.#answer?.();
  }

  /** Returns after `timeoutMs` at the latest (Infinity: no timer), at once if it rang since the last wait. */
  async wait(timeoutMs: number): Promise<void> {
    if (!this.#rung && timeoutMs > 0) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#answer = resolve;
      const timer = timeoutMs === Infinity ? undefined : setTimeout(resolve, Math.min(timeoutMs, LONGEST_TIMER_MS));
      await promise;
      clearTimeout(timer);
      this.#answer = undefined;
    }
    this.#rung = false;
  }
}
