import { isDeepStrictEqual } from 'node:util';
import test from 'ava';
import fc from 'fast-check';
import { persistentMap } from './persistent-map.ts';

/** Few keys, so that they meet again. */
const someChanges = fc.array(fc.tuple(fc.stringMatching(/^[a-z]{0,2}$/), fc.option(fc.nat(3), { nil: undefined })));

test('any changes give what a Map would have, and leave the former version as it was', (t) => {
  fc.assert(
    fc.property(fc.array(someChanges, { maxLength: 6 }), (rounds) => {
      const oracle = new Map<string, number>();
      let map = persistentMap<number>();
      for (const changes of rounds) {
        const [before, oldOracle] = [map, new Map(oracle)];
        map = map.with(changes);
        for (const [key, value] of changes) {
          if (value === undefined) oracle.delete(key);
          else oracle.set(key, value);
        }
        t.true(isDeepStrictEqual(new Map(map), oracle));
        t.true(isDeepStrictEqual(new Map(before), oldOracle));
        t.is(map.size, oracle.size);
        const differing = [...oracle.keys(), ...oldOracle.keys()].filter(
          (key) => oracle.get(key) !== oldOracle.get(key),
        );
        t.deepEqual([...map.changedSince(before)].sort(), [...new Set(differing)].sort());
      }
      const again = persistentMap([...oracle].toReversed());
      for (const key of oracle.keys()) t.is(map.get(key), oracle.get(key));
      t.true(isDeepStrictEqual(map, again));
      t.false(isDeepStrictEqual(map.with([['another', 1]]), again));
    }),
  );
});

test('changes that change nothing give the same map', (t) => {
  const map = persistentMap([['a', 1]]);
  t.is(
    map.with([
      ['a', 1],
      ['b', undefined],
    ]),
    map,
  );
});

test('another version of 50,000 values shares all but one part with the former', (t) => {
  const map = persistentMap(Array.from({ length: 50_000 }, (_, n) => [`default/service-${n}`, n] as const));
  t.is(map.size, 50_000);
  const next = map.with([['default/service-7', -7]]);
  t.deepEqual([...next.changedSince(map)], ['default/service-7']);
  t.deepEqual([next.get('default/service-7'), map.get('default/service-7')], [-7, 7]);
});
