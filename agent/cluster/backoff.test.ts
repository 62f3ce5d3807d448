import test from 'ava';
import { Backoff } from './backoff.ts';

test('Backoff doubles up to its maximum and starts again after a reset', (t) => {
  const backoff = new Backoff({ minMs: 100, maxMs: 30_000, random: () => 0 });
  const times = Array.from({ length: 11 }, () => backoff.next());
  t.deepEqual(times, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
  backoff.reset();
  t.is(backoff.next(), 100);
});

test('Backoff shortens by up to half, and never past that in an outage without end', (t) => {
  const backoff = new Backoff({ minMs: 100, maxMs: 30_000, random: () => 0.999 });
  t.true(backoff.next() >= 50);
  for (let i = 0; i < 5000; i++) backoff.next();
  const last = backoff.next();
  t.true(last >= 15_000 && last < 15_100);
});
