import test from 'ava';
import { PerSecond } from './per-second.ts';

test('so many of each key pass in a second', (t) => {
  let now = 0;
  const budget = new PerSecond(2, () => now);
  const asked = (key?: number) => [1, 2, 3].map(() => budget.allows(key));
  t.deepEqual(
    [asked(), asked(7)],
    [
      [true, true, false],
      [true, true, false],
    ],
  );
  now = 999;
  t.false(budget.allows());
  now = 1000;
  t.deepEqual(asked(), [true, true, false]);
});
