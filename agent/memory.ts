import { setFlagsFromString } from 'node:v8';

/**
 * Gives back what the start took: among 10,000 Services a third of the memory is garbage then, and V8 keeps the room for
 * more of it, which an agent does not make again. Stops the event loop for some milliseconds per megabyte that lives (two
 * seconds among 50,000 Services on a busy machine). Does nothing without --expose-gc, which the executable `tulle` sets.
 *
 * The young generation, too, shrinks to its least and stays there. While it is that small everything that a start reads and
 * plans is copied twice and promoted as garbage, an eighth to a quarter of the start's processor time among 50,000 Services; at
 * rest a large one would grow with the first pods and never be of use.
 */
export function giveMemoryBack(): void {
  if (!globalThis.gc) return;
  setFlagsFromString('--semi-space-growth-factor=1');
  globalThis.gc({ type: 'major', execution: 'sync', flavor: 'last-resort' });
}
