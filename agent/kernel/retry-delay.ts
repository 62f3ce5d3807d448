/** Milliseconds to wait after `attempts` (1 or more) failures in a row of something that must not be given up. */
export const retryDelayMs = (attempts: number): number => Math.min(10_000, 100 * 2 ** (attempts - 1));
