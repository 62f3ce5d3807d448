import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';

/** Of the time, in which an agent at rest does anything. */
const QUIET_SHARE = 0.1;
const WINDOW_MS = 1_000;
/** Somebody is always busy somewhere: then it has to be. */
const PATIENCE_MS = 60_000;

/**
 * Gives back what the start took: among 10,000 Services a third of the memory is garbage then, and V8 keeps the room for
 * more of it, which an agent does not make again. That stops the event loop for some milliseconds per megabyte that lives
 * (two seconds among 50,000 Services on a busy machine), so it waits until the agent has had hardly anything to do for a
 * second. Does nothing without --expose-gc, which the executable `tulle` sets.
 *
 * The young generation, too, shrinks to its least and stays there. While it is that small everything that a start reads and
 * plans is copied twice and promoted as garbage, an eighth to a quarter of the start's processor time among 50,000 Services; at
 * rest a large one would grow with the first pods and never be of use.
 */
export async function giveMemoryBack(signal: AbortSignal): Promise<void> {
  if (!globalThis.gc) return;
  setFlagsFromString('--semi-space-growth-factor=1');
  if (await isQuietIn(signal)) globalThis.gc({ type: 'major', execution: 'sync', flavor: 'last-resort' });
}

/** True once it is quiet, or should not be waited for any longer; false when the signal aborts before. */
async function isQuietIn(signal: AbortSignal): Promise<boolean> {
  for (let waitedMs = 0; waitedMs < PATIENCE_MS; waitedMs += WINDOW_MS) {
    const before = performance.eventLoopUtilization();
    await delay(WINDOW_MS, undefined, { ref: false, signal }).catch(() => undefined);
    if (signal.aborted) return false;
    if (performance.eventLoopUtilization(before).utilization < QUIET_SHARE) return true;
  }
  return true;
}
