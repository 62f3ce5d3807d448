/** Waiting for what the kernel does not announce. */
import { setTimeout as delay } from 'node:timers/promises';
import { LabError } from './lab-error.ts';

export interface Wait {
  /** `the cgroup X to be empty`. */
  readonly describe: string;
  readonly deadlineMs: number;
  readonly intervalMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Asks again and again until the answer is not undefined or false, and returns it. Throws LabError at the deadline. */
export async function until<T>(
  ask: () => T | undefined | false | Promise<T | undefined | false>,
  { describe, deadlineMs, intervalMs = 10, signal }: Wait,
): Promise<T> {
  const end = performance.now() + deadlineMs;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined && answer !== false) return answer;
    if (performance.now() > end) {
      throw new LabError({
        operation: `wait for ${describe}`,
        expected: `it within ${deadlineMs} ms`,
        received: 'nothing of the kind',
      });
    }
    await delay(intervalMs, undefined, { ...(signal && { signal }) });
  }
}
