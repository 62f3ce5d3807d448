import test from 'ava';
import fc from 'fast-check';
import { backoffMs } from './backoff.ts';

const limits = { minMs: 100, maxMs: 30_000 };

test('backoffMs: doubles to the cap when jitter takes nothing away', (t) => {
  const almostOne = (): number => 1;
  const delays = [1, 2, 3, 8, 9, 10, 5_000].map((attempts) => backoffMs(attempts, limits, almostOne));
  t.deepEqual(delays, [100, 200, 400, 12_800, 25_600, 30_000, 30_000]);
});

test('backoffMs: jitter takes at most a half away', (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 2_000 }),
      fc.double({ min: 0, max: 0.999, noNaN: true }),
      (attempts, random) => {
        const full = Math.min(limits.maxMs, limits.minMs * 2 ** (attempts - 1));
        const delay = backoffMs(attempts, limits, () => random);
        return delay >= full / 2 && delay <= full;
      },
    ),
  );
  t.pass();
});
