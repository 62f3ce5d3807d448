/**
 * Work on all Nodes of a cluster that may pause: whoever runs it decides at each `yield` whether it goes on at once. Inputs
 * are immutable values, so it does not matter what happens meanwhile.
 */
export type Steps<T> = Generator<void, T>;

/** Without a pause. */
export function finish<T>(steps: Steps<T>): T {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}
