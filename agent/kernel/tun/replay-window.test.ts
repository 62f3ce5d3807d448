import test from 'ava';
import fc from 'fast-check';
import { REPLAY_WINDOW, ReplayWindow } from './replay-window.ts';

/** Steps back and forth of all sizes, so that words and the whole ring are passed. */
const someCounters = fc
  .array(
    fc.oneof(
      fc.integer({ min: -40, max: 40 }),
      fc.integer({ min: -REPLAY_WINDOW - 70, max: REPLAY_WINDOW + 70 }),
      fc.integer({ min: 0, max: 3 * REPLAY_WINDOW }),
    ),
    { minLength: 1, maxLength: 300 },
  )
  .chain((steps) => fc.constantFrom(0, 2 ** 31 - 50, 2 ** 32 - 50, 2 ** 45).map((first) => ({ first, steps })));

test('a counter is new once, and only within the window', (t) => {
  fc.assert(
    fc.property(someCounters, ({ first, steps }) => {
      const window = new ReplayWindow();
      const seen = new Set<number>();
      let [newest, counter] = [-1, first];
      for (const step of steps) {
        counter = Math.max(0, counter + step);
        const isNew = !seen.has(counter) && counter > newest - REPLAY_WINDOW;
        t.is(window.isNew(counter), isNew, `${counter} after ${newest}`);
        if (!isNew) continue;
        window.mark(counter);
        seen.add(counter);
        newest = Math.max(newest, counter);
      }
    }),
  );
});

test('everything is new to an empty window, and nothing twice', (t) => {
  const window = new ReplayWindow();
  for (const counter of [0, 1, REPLAY_WINDOW - 1, 5]) {
    t.true(window.isNew(counter));
    window.mark(counter);
    t.false(window.isNew(counter));
  }
  t.true(window.isNew(2));
  window.mark(REPLAY_WINDOW + 2);
  t.false(window.isNew(2), 'too old to be known');
});
