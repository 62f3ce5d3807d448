import { type BackoffLimits, backoffMs } from './backoff.ts';

export interface ListTiming {
  readonly resyncIntervalMs: number;
  readonly backoff: BackoffLimits;
  /** Milliseconds on a clock that never goes back. */
  readonly now: () => number;
  /** [0, 1) */
  readonly random: () => number;
}

export const FAILING_AFTER = 3;
/** The most of the time that lists of one kind without a reason may take, if they take so long that others have to wait. */
const LISTING_SHARE = 0.005;
/** A small node's lists take less even on a busy machine, and are repeated as the settings say. */
const LONG_MS = 1_000;

/** When a kind is listed next, and whether what its last list said can still be trusted. Requests coalesce. */
export class ListSchedule {
  readonly #timing: ListTiming;
  #stale: string | undefined = 'never listed';
  /** Became stale (again) after the running list began. */
  #staleDuringList = false;
  #requested = true;
  /** Lists that failed, in a row. */
  #failures = 0;
  /** Failures, or contradictions, in a row. */
  #attempts = 0;
  #dueMs = 0;
  #beganMs = 0;

  constructor(timing: ListTiming) {
    this.#timing = timing;
  }

  /** Why the last list cannot be trusted; undefined when it can. */
  get stale(): string | undefined {
    return this.#stale;
  }

  /** Why lists fail, once so many did in a row that it is no passing disturbance. */
  get failing(): string | undefined {
    return this.#failures >= FAILING_AFTER ? this.#stale : undefined;
  }

  /** Milliseconds on the clock; -Infinity for at once. */
  get dueMs(): number {
    return this.#requested && this.#attempts === 0 ? -Infinity : this.#dueMs;
  }

  /** Asks for a list soon, without distrusting what is known. Does not cut a backoff short. */
  request(): void {
    this.#requested = true;
  }

  markStale(reason: string): void {
    this.#stale = reason;
    this.#staleDuringList = true;
    this.#requested = true;
  }

  begin(): void {
    this.#beganMs = this.#timing.now();
    this.#requested = false;
    this.#staleDuringList = false;
  }

  /** `contradicted`: notices during the list said otherwise, so it is done again after a while. */
  succeeded({ contradicted }: { contradicted: boolean }): void {
    if (!this.#staleDuringList) this.#stale = undefined;
    this.#failures = 0;
    this.#attempts = contradicted ? this.#attempts + 1 : 0;
    this.#dueMs = this.#timing.now() + (contradicted ? this.#backoffMs() : this.#resyncMs());
  }

  failed(reason: string): void {
    this.#stale = reason;
    this.#failures++;
    this.#attempts++;
    this.#dueMs = this.#timing.now() + this.#backoffMs();
  }

  /**
   * Spread from half to one and a half intervals, so that kinds which were listed together drift apart; longer for what takes
   * long to list, as nothing of the lane is written meanwhile, or all the rest goes on more slowly (Driver.listsAside).
   */
  #resyncMs(): number {
    const durationMs = this.#timing.now() - this.#beganMs;
    const leastMs = durationMs < LONG_MS ? 0 : durationMs / LISTING_SHARE;
    return Math.max(this.#timing.resyncIntervalMs, leastMs) * (0.5 + this.#timing.random());
  }

  #backoffMs(): number {
    return backoffMs(this.#attempts, this.#timing.backoff, this.#timing.random);
  }
}
