import { setImmediate as nextTurn } from 'node:timers/promises';

/** Nothing holds the event loop for longer; an ADD waits for no plan. */
const SLICE_MS = 10;
/** Of what nobody waits for: a change meets ten such turns and more on its way, an ADD some. */
export const ASIDE_MS = 1;

/** Runs steps to their end, and lets everybody else in whenever they took a slice of time. Rejects with the signal's reason. */
export async function inTurns<T>(steps: Generator<void, T>, signal: AbortSignal, sliceMs = SLICE_MS): Promise<T> {
  let startMs = performance.now();
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
    if (performance.now() - startMs < sliceMs) continue;
    await nextTurn();
    signal.throwIfAborted();
    startMs = performance.now();
  }
}
