import test from 'ava';
import type { Node } from '../model/cluster.ts';
import { nameKey } from './fields.ts';
import { narrowNode } from './narrow.ts';
import { ObjectCache } from './object-cache.ts';

const raw = (name: string, podCIDR = '10.0.0.0/24', heartbeat = 0) => ({
  metadata: { name },
  spec: { podCIDR },
  status: { heartbeat },
});
const set = (object: unknown) => ({ type: 'set', object }) as const;
const remove = (object: unknown) => ({ type: 'delete', object }) as const;

function newCache() {
  const changes: string[][] = [];
  const cache = new ObjectCache<Node>({
    keyOf: nameKey,
    narrow: narrowNode,
    changed: (keys) => changes.push([...keys].sort()),
  });
  const replace = (...objects: readonly unknown[]) => {
    const replacement = cache.startReplacement();
    replacement.add(objects);
    replacement.commit();
  };
  return { cache, changes, replace };
}

test('apply makes one change and one new map of all events that it is given', (t) => {
  const { cache, changes } = newCache();
  const before = cache.objects;
  cache.apply([set(raw('a')), set(raw('b')), set(raw('a', '10.0.1.0/24')), remove(raw('b'))]);
  t.deepEqual(changes, [['a']]);
  t.deepEqual([...cache.objects.keys()].sort(), ['a']);
  t.deepEqual<unknown, unknown>(cache.objects.get('a')?.podCidrs, ['10.0.1.0/24']);
  t.is(before.size, 0);
});

test('an equal value keeps its identity and changes nothing, in an event and in a list', (t) => {
  const { cache, changes, replace } = newCache();
  replace(raw('a'), raw('b'));
  const { objects } = cache;
  const a = objects.get('a');
  cache.apply([set(raw('a', '10.0.0.0/24', 1)), remove(raw('unknown'))]);
  replace(raw('b', '10.0.0.0/24', 2), raw('a', '10.0.0.0/24', 2));
  t.is(cache.objects, objects);
  replace(raw('a'), raw('b', '10.0.1.0/24'));
  t.is(cache.objects.get('a'), a as Node);
  t.deepEqual(changes, [['a', 'b'], ['b']]);
});

test('a replacement shows additions, changes and removals at its commit and nothing before', (t) => {
  const { cache, changes, replace } = newCache();
  replace(raw('same'), raw('changed'), raw('gone'));
  const replacement = cache.startReplacement();
  replacement.add([raw('same'), raw('changed', '10.0.9.0/24')]);
  replacement.add([raw('new')]);
  t.deepEqual([...cache.objects.keys()].sort(), ['changed', 'gone', 'same']);
  replacement.commit();
  t.deepEqual(changes.at(-1), ['changed', 'gone', 'new']);
  t.deepEqual([...cache.objects.keys()].sort(), ['changed', 'new', 'same']);
});

test('an object that cannot be narrowed is absent and a problem; the others are not affected', (t) => {
  const changes: string[][] = [];
  const cache = new ObjectCache<{ readonly size: number }>({
    keyOf: nameKey,
    narrow: (object) => {
      const { size } = object as { size?: number };
      return size === undefined ? { problems: ['no size'] } : { value: { size }, problems: [] };
    },
    changed: (keys) => changes.push([...keys].sort()),
  });
  const sized = (name: string, size?: number) => ({ metadata: { name }, size });
  cache.apply([set(sized('a', 1)), set(sized('bad')), set(sized('b', 2)), set({ metadata: {} })]);
  t.deepEqual([...cache.objects.keys()].sort(), ['a', 'b']);
  t.deepEqual(cache.problems(), ['bad: no size', 'no size']);
  cache.apply([set(sized('a')), set(sized('bad', 3))]);
  t.deepEqual([...cache.objects.keys()].sort(), ['b', 'bad']);
  t.deepEqual(changes, [
    ['a', 'b'],
    ['a', 'bad'],
  ]);
  t.deepEqual(cache.problems(), ['a: no size', 'no size']);
  cache.apply([remove(sized('a'))]);
  t.deepEqual(cache.problems(), ['no size']);
  cache.apply([remove({ metadata: {} })]);
  t.deepEqual(cache.problems(), []);
});

test('problems of a list take the place of all former ones', (t) => {
  const { cache, replace } = newCache();
  replace(raw('a', 'nonsense'), { metadata: { name: 'B A D' } });
  t.deepEqual(cache.problems(), [
    'a: spec.podCIDRs has "nonsense": expected a CIDR',
    'Node ""/"B A D" is left out: expected a name and namespace of DNS form',
  ]);
  t.deepEqual([...cache.objects.keys()].sort(), ['a']);
  replace(raw('a'));
  t.deepEqual(cache.problems(), []);
});
