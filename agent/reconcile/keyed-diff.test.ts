import test from 'ava';
import fc from 'fast-check';
import { keyedDiff } from './keyed-diff.ts';

const aMap = fc
  .dictionary(fc.constantFrom('a', 'b', 'c', 'd', 'e'), fc.nat(2))
  .map((record) => new Map(Object.entries(record)));
const same = (a: number, b: number): boolean => a === b;

test('keyedDiff: applied to what is observed it gives what is desired, and a second one is empty', (t) => {
  fc.assert(
    fc.property(aMap, aMap, (desired, observed) => {
      const { creates, updates, removes } = keyedDiff(desired, observed, same);
      const result = new Map(observed);
      for (const { key, value } of creates) {
        if (result.has(key)) return false;
        result.set(key, value);
      }
      for (const { key, value, from } of updates) {
        if (result.get(key) !== from || from === value) return false;
        result.set(key, value);
      }
      for (const { key, from } of removes) {
        if (result.get(key) !== from) return false;
        result.delete(key);
      }
      t.deepEqual(new Map([...result].sort()), new Map([...desired].sort()));
      t.deepEqual(keyedDiff(desired, result, same), { creates: [], updates: [], removes: [] });
      return true;
    }),
  );
});

test('keyedDiff: only equal() decides what is the same', (t) => {
  const desired = new Map([['a', 1]]);
  const observed = new Map([['a', 3]]);
  t.deepEqual(keyedDiff(desired, observed, (a, b) => a % 2 === b % 2).updates, []);
  t.deepEqual(keyedDiff(desired, observed, same).updates, [{ key: 'a', value: 1, from: 3 }]);
});
