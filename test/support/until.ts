import { setTimeout as sleep } from 'node:timers/promises';

/** Waits for something that happens elsewhere. The bound only ends a test that hangs. */
export async function until(condition: () => boolean, what: string, timeoutMs = 20_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`did not happen within ${timeoutMs} ms: ${what}`);
    await sleep(5);
  }
}
