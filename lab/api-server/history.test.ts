import test from 'ava';
import fc from 'fast-check';
import { History } from './history.ts';
import { StatusError } from './status.ts';

const historyOf = (limit: number, revisions: readonly number[]) => {
  const history = new History<{ revision: number }>(limit, 100);
  for (const revision of revisions) history.append({ revision });
  return history;
};

test('History: a version before the beginning is expired, the beginning itself is not', (t) => {
  const history = historyOf(10, []);
  t.is(history.positionAfter(100), 0);
  t.is(t.throws(() => history.positionAfter(99), { instanceOf: StatusError })?.code, 410);
});

test('History: positions stay as they are while old events are forgotten', (t) => {
  const history = historyOf(3, [101, 102, 103, 104, 105]);
  t.deepEqual([history.oldest, history.next, history.compacted], [2, 5, 102]);
  t.is(history.at(2).revision, 103);
  t.throws(() => history.at(1), { instanceOf: RangeError });
  t.throws(() => history.at(5), { instanceOf: RangeError });
});

test('History: compacting forgets up to a version, and the version itself can still be watched from', (t) => {
  const history = historyOf(10, [101, 105]);
  history.compact(103);
  t.is(history.positionAfter(103), 1);
  t.throws(() => history.positionAfter(102), { instanceOf: StatusError });
  history.compact(200);
  t.is(history.positionAfter(200), history.next);
});

test('History: reads like an array that was cut at the front, whatever the limit', (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 8 }),
      fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 60 }),
      (limit, steps) => {
        let revision = 100;
        const revisions = steps.map((step) => (revision += step));
        const history = historyOf(limit, revisions);
        const kept = revisions.slice(Math.max(0, revisions.length - limit));
        const found = Array.from(
          { length: history.next - history.oldest },
          (_, i) => history.at(history.oldest + i).revision,
        );
        t.deepEqual(found, kept);
        for (const from of kept) t.is(history.positionAfter(from), history.oldest + kept.indexOf(from) + 1);
      },
    ),
  );
});
