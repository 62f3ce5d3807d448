import test from 'ava';
import { median, quantile, Samples } from './samples.ts';
import { computeTable, renderTable } from './table.ts';

test('quantile is the nearest rank, the median of an even number the mean of the middle two', (t) => {
  const hundred = Array.from({ length: 100 }, (_, i) => 100 - i);
  t.deepEqual([quantile(hundred, 0.99), quantile(hundred, 1), quantile(hundred, 0.01)], [99, 100, 1]);
  t.deepEqual([median([]), median([7]), median([9, 1]), median([10, 1, 2])], [undefined, 7, 5, 2]);
});

test('a ratio is the median of the ratios of the rounds: a round that was slow for all does not count more', (t) => {
  const samples = new Samples();
  for (const [round, [own, other]] of [
    [1, 2],
    [100, 150],
    [3, 6],
  ].entries()) {
    samples.add('ms', 'own', round, [own as number]);
    samples.add('ms', 'other', round, [other as number]);
  }
  samples.add('ms', 'own', 3, [1000]);
  t.is(samples.ratio('ms', 'own', 'other'), 0.5);
  t.is(samples.ratio('ms', 'own', 'nobody'), undefined);
  t.deepEqual(samples.all('ms', 'own'), [1, 100, 3, 1000]);
});

test('a table has a row a subject, with the figure and its ratio, and a dash for what was not measured', (t) => {
  const samples = new Samples();
  samples.add('µs', 'own', 0, [1500, 2500]);
  samples.add('µs', 'other', 0, [4000]);
  const table = computeTable(samples, {
    title: 'One',
    subjects: ['own', 'other', 'absent'],
    reference: 'other',
    columns: [
      { heading: 'p50', figure: 'µs', share: 0.5, digits: 2, per: 1000 },
      { heading: 'p99', figure: 'µs', share: 0.99, digits: 2, per: 1000 },
    ],
  });
  t.deepEqual(renderTable(table), [
    'One; in brackets: median of the ratios to other, round by round',
    '        p50          p99',
    'own     2.00 (0.50)  2.50',
    'other   4.00 (1.00)  4.00',
    'absent  -            -',
  ]);
});
