/** A time limit that can be renewed, joined with an outer signal: `signal` aborts with whichever comes first. */
export class Deadline implements Disposable {
  readonly outer: AbortSignal;
  readonly #controller = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #ms = 0;
  #passed = false;

  constructor(ms: number, outer: AbortSignal) {
    this.outer = outer;
    if (outer.aborted) this.#controller.abort(outer.reason);
    outer.addEventListener('abort', this.#abort);
    this.renew(ms);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** True when the time was up, false when the outer signal aborted first or nothing did. */
  get passed(): boolean {
    return this.#passed;
  }

  /** The limit in force, in milliseconds. */
  get ms(): number {
    return this.#ms;
  }

  /** Starts the time again, perhaps with another limit. */
  renew(ms: number): void {
    if (this.#timer !== undefined && ms === this.#ms) {
      this.#timer.refresh();
      return;
    }
    clearTimeout(this.#timer);
    this.#ms = ms;
    this.#timer = setTimeout(() => {
      this.#passed = true;
      this.#controller.abort(new DOMException('the time was up', 'TimeoutError'));
    }, ms);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.outer.removeEventListener('abort', this.#abort);
  }

  readonly #abort = (): void => this.#controller.abort(this.outer.reason);
}
