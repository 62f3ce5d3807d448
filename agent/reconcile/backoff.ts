export interface BackoffLimits {
  /** Delay after the first failure, before jitter. */
  readonly minMs: number;
  /** Cap of the doubling, before jitter. */
  readonly maxMs: number;
}

/**
 * How long to wait after `attempts` (1 or more) failures in a row: doubling from minMs to maxMs, of which jitter takes up
 * to a half away, so that things that failed together do not come back together. `random` returns [0, 1).
 */
export function backoffMs(attempts: number, { minMs, maxMs }: BackoffLimits, random: () => number): number {
  const full = Math.min(maxMs, minMs * 2 ** (attempts - 1));
  return full * (0.5 + random() / 2);
}
