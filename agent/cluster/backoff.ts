export interface BackoffOptions {
  readonly minMs: number;
  readonly maxMs: number;
  /** From 0 to 1, as Math.random, which is the default. */
  readonly random?: () => number;
}

/** Waiting times that double from `minMs` to `maxMs`, each shortened at random by up to half, so that many agents part. */
export class Backoff {
  readonly #options: BackoffOptions;
  #attempt = 0;

  constructor(options: BackoffOptions) {
    this.#options = options;
  }

  /** Milliseconds to wait before the next attempt. */
  next(): number {
    const { minMs, maxMs, random = Math.random } = this.#options;
    const wholeMs = Math.min(maxMs, minMs * 2 ** Math.min(this.#attempt, 30));
    this.#attempt++;
    return wholeMs * (1 - random() / 2);
  }

  reset(): void {
    this.#attempt = 0;
  }
}
