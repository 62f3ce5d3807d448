import test from 'ava';
import { Counters, INBOUND, OUTBOUND, ROWS } from './counters.ts';

for (const columns of [OUTBOUND, INBOUND]) {
  test(`what one thread counts the other reads, each row and column for itself: ${columns.length} columns`, (t) => {
    const counters = new Counters<(typeof columns)[number]>(columns);
    const elsewhere = new Counters<(typeof columns)[number]>(columns, counters.shared);
    const rows = [0, 1, 2, ROWS - 1];
    const countOf = (row: number, column: number): number => 1 + row * 100 + column;
    for (const row of rows) {
      for (const [i, name] of columns.entries()) counters.add(row, counters.column(name), countOf(row, i));
    }
    const expected = (row: number): Record<string, number> =>
      Object.fromEntries(columns.map((name, i) => [name, countOf(row, i)]));
    for (const row of rows) t.deepEqual({ ...elsewhere.read(row) } as Record<string, number>, expected(row));
    elsewhere.clear(1);
    t.deepEqual([...new Set(Object.values(counters.read(1)))], [0]);
    for (const row of [0, 2, ROWS - 1]) t.deepEqual({ ...counters.read(row) } as Record<string, number>, expected(row));
  });
}

test('bytes of a day at 100 Gbit/s are still counted one by one', (t) => {
  const counters = new Counters(OUTBOUND);
  const column = counters.column('bytes');
  counters.add(3, column, 12.5e9 * 86_400);
  counters.add(3, column, 1);
  t.is(counters.read(3).bytes, 1_080_000_000_000_001);
});
