import { isDeepStrictEqual } from 'node:util';
import test from 'ava';
import fc from 'fast-check';
import { anEdit, type Edit, fragment, MERGE, route, sysctl } from '../../test/support/fragments.ts';
import type { Fragment } from '../model/fragment.ts';
import { APPLY_ORDER, type Key, kindOf } from '../model/items.ts';
import { KernelState } from './kernel-state.ts';

const stateOf = (...fragments: readonly Fragment[]): KernelState => {
  const state = new KernelState(MERGE);
  for (const made of fragments) state.replace(made.id, made);
  return state;
};

/** The whole content as one comparable text. */
const printed = (state: KernelState): string =>
  APPLY_ORDER.flatMap((kind) => [...state.keys(kind)])
    .sort()
    .map(
      (key) =>
        `${key} = ${JSON.stringify(state.wanted(key)?.value)} of ${state.claims(key).map((claim) => claim.fragment.id)}`,
    )
    .join('\n');

const allDirty = (state: KernelState): Key[] => APPLY_ORDER.flatMap((kind) => state.takeDirty(kind)).sort();

const shared = { shared: true } as const;

test('replace: returns the keys of the old and the new fragment, and dirties only those that changed', (t) => {
  const state = stateOf(fragment('a', [route(1), route(2)]));
  t.deepEqual(allDirty(state), [route(1).key, route(2).key]);
  const touched = state.replace('a', fragment('a', [route(2), route(3)]));
  t.deepEqual([...touched].sort(), [route(1).key, route(2).key, route(3).key]);
  t.deepEqual(allDirty(state), [route(1).key, route(3).key]);
  t.deepEqual([...state.keys('route')], [route(2).key, route(3).key]);
});

test('replace: the same object is a no-op, an equal one dirties nothing', (t) => {
  const made = fragment('a', [route(1)]);
  const state = stateOf(made);
  allDirty(state);
  t.deepEqual(state.replace('a', made), []);
  t.deepEqual(state.replace('a', fragment('a', [route(1)])), [route(1).key]);
  t.deepEqual(allDirty(state), []);
});

test('replace: other needs under an equal value are a change', (t) => {
  const state = stateOf(fragment('a', [route(1)]));
  allDirty(state);
  state.replace('a', fragment('a', [route(1, 'a', [sysctl(1).key])]));
  t.deepEqual(allDirty(state), [route(1).key]);
});

test('replace: refuses a fragment under an id that is not its own', (t) => {
  t.throws(() => new KernelState(MERGE).replace('a', fragment('b', [])), { instanceOf: TypeError });
});

test('a shared fragment is in effect only while a root requires it', (t) => {
  const state = stateOf(fragment('base', [sysctl(1)], shared));
  t.is(state.wanted(sysctl(1).key), undefined);
  const touched = state.replace('root', fragment('root', [route(1)], { requires: ['middle'] }));
  t.deepEqual(touched, [route(1).key]);
  state.replace('middle', fragment('middle', [], { ...shared, requires: ['base'] }));
  t.truthy(state.wanted(sysctl(1).key));
  t.deepEqual([...state.replace('root', undefined)].sort(), [route(1).key, sysctl(1).key]);
  t.is(state.wanted(sysctl(1).key), undefined);
});

test('shared fragments that require each other do not keep themselves in effect', (t) => {
  const state = stateOf(
    fragment('x', [sysctl(1)], { ...shared, requires: ['y'] }),
    fragment('y', [sysctl(2)], { ...shared, requires: ['x'] }),
    fragment('root', [], { requires: ['x'] }),
  );
  t.is([...state.keys('sysctl')].length, 2);
  state.replace('root', undefined);
  t.is([...state.keys('sysctl')].length, 0);
});

test('a contested key of one owner goes to the smallest rank, and on to the loser when the winner goes', (t) => {
  const state = stateOf(
    fragment('young', [route(1, 'young')], { rank: '2', problems: ['is late'] }),
    fragment('old', [route(1, 'old')], { rank: '1' }),
  );
  t.is(state.wanted(route(1).key)?.value, state.fragment('old')?.items[0]?.value);
  t.deepEqual(
    state.contested().map(({ key, winner, losers }) => [key, winner.id, losers.map(({ id }) => id)]),
    [[route(1).key, 'old', ['young']]],
  );
  t.deepEqual(state.problems(), [
    { fragment: 'young', cause: 'cause young', problem: 'is late' },
    {
      fragment: 'young',
      cause: 'cause young',
      problem:
        'cause young cannot have route 10.0.1.0/24 metric 0: expected to be the only claim, but cause old has the older one; ' +
        'give one of the two another value, or remove it',
    },
  ]);
  allDirty(state);
  state.replace('old', undefined);
  t.deepEqual(allDirty(state), [route(1).key]);
  t.is(state.wanted(route(1).key)?.value, state.fragment('young')?.items[0]?.value);
  t.deepEqual(state.contested(), []);
});

test('problems are those of fragments in effect, as they are now', (t) => {
  const state = stateOf(
    fragment('branch', [], { ...shared, problems: ['is narrow'] }),
    fragment('root', [], { requires: ['branch'], problems: ['is late'] }),
  );
  const told = () => state.problems().map(({ fragment: of, problem }) => `${of} ${problem}`);
  t.deepEqual(told().sort(), ['branch is narrow', 'root is late']);
  state.replace('root', fragment('root', [], { problems: ['is later', 'is lost'] }));
  t.deepEqual(told(), ['root is later', 'root is lost'], 'nothing requires the branch any more');
  state.replace('root', fragment('root', [], { requires: ['branch'] }));
  t.deepEqual(told(), ['branch is narrow']);
  state.replace('root', undefined);
  t.deepEqual(told(), []);
});

test('equal values share a key of a kind that may be shared, and only there', (t) => {
  const state = stateOf(
    fragment('a', [sysctl(1), route(1)], { rank: '1' }),
    fragment('b', [sysctl(1), route(1)], { rank: '2' }),
    fragment('c', [sysctl(1, 'other')], { rank: '3' }),
  );
  t.deepEqual(
    state.contested().map(({ key, losers }) => [key, losers.map(({ id }) => id)]),
    [
      [route(1).key, ['b']],
      [sysctl(1).key, ['c']],
    ],
  );
  allDirty(state);
  state.replace('a', undefined);
  t.deepEqual(allDirty(state), [], 'the heir wants the same value');
});

test('markDirty and onDirty: listeners hear the kind, once for each replace', (t) => {
  const state = new KernelState(MERGE);
  const heard: string[] = [];
  state.onDirty((kind) => heard.push(kind));
  state.replace('a', fragment('a', [route(1), route(2), sysctl(1)]));
  t.deepEqual(heard.sort(), ['route', 'sysctl']);
  state.takeDirty('route');
  state.markDirty(route(1).key);
  t.deepEqual(state.takeDirty('route'), [route(1).key]);
});

test('wasWanted: remembers until history is forgotten, and holds for all keys from then on', (t) => {
  const state = stateOf(fragment('a', [route(1)]));
  state.replace('a', undefined);
  t.deepEqual([state.wasWanted(route(1).key), state.wasWanted(route(2).key)], [true, false]);
  state.forgetHistory();
  t.true(state.wasWanted(route(2).key));
});

/** Reachability and the contest, as plainly as they can be said. */
function oracle(edits: readonly Edit[]): { wanted: Map<Key, unknown>; contested: string[] } {
  const fragments = new Map(edits.map(({ id, fragment: made }) => [id, made] as const));
  const live = new Set<string>();
  const visit = (id: string): void => {
    if (live.has(id) || !fragments.get(id)) return;
    live.add(id);
    for (const required of fragments.get(id)?.requires ?? []) visit(required);
  };
  for (const [id, made] of fragments) if (made && !made.shared) visit(id);
  const claims = [...live]
    .map((id) => fragments.get(id) as Fragment)
    .sort((a, b) => (`${a.rank} ${a.id}` < `${b.rank} ${b.id}` ? -1 : 1))
    .flatMap((owner) => owner.items.map((item) => ({ owner, item })));
  const wanted = new Map<Key, unknown>();
  const contested: string[] = [];
  for (const { owner, item } of claims) {
    if (!wanted.has(item.key)) wanted.set(item.key, item.value);
    else if (MERGE[kindOf(item.key)] === 'one' || !isDeepStrictEqual(item.value, wanted.get(item.key))) {
      contested.push(`${item.key} ${owner.id}`);
    }
  }
  return { wanted, contested: contested.sort() };
}

test('property: liveness, winners and losers are those of a naive oracle, after every edit', (t) => {
  fc.assert(
    fc.property(fc.array(anEdit, { maxLength: 25 }), (edits) => {
      const state = new KernelState(MERGE);
      const before = new Map<Key, unknown>();
      for (const [i, { id, fragment: made }] of edits.entries()) {
        const touched = new Set(state.replace(id, made));
        const dirty = new Set(allDirty(state));
        const { wanted, contested } = oracle(edits.slice(0, i + 1));
        const keys = APPLY_ORDER.flatMap((kind) => [...state.keys(kind)]);
        t.deepEqual(
          new Map(keys.sort().map((key) => [key, state.wanted(key)?.value as unknown])),
          new Map([...wanted].sort()),
        );
        t.deepEqual(
          state
            .contested()
            .flatMap(({ key, losers }) => losers.map((loser) => `${key} ${loser.id}`))
            .sort(),
          contested,
        );
        for (const key of new Set([...wanted.keys(), ...before.keys()])) {
          if (isDeepStrictEqual(wanted.get(key), before.get(key))) continue;
          t.true(dirty.has(key) && touched.has(key), `${key} changed and is dirty`);
        }
        before.clear();
        for (const [key, value] of wanted) before.set(key, value);
      }
    }),
    { numRuns: 300 },
  );
});

test('property: any order of the same events ends in the same state', (t) => {
  const distinct = fc.uniqueArray(anEdit, { selector: ({ id }) => id });
  fc.assert(
    fc.property(
      distinct.chain((edits) => fc.tuple(fc.constant(edits), fc.shuffledSubarray(edits, { minLength: edits.length }))),
      fc.array(anEdit, { maxLength: 8 }),
      ([edits, shuffled], noise) => {
        const one = new KernelState(MERGE);
        const other = new KernelState(MERGE);
        for (const { id, fragment: made } of edits) one.replace(id, made);
        for (const { id, fragment: made } of noise) other.replace(id, made);
        for (const { id } of noise) other.replace(id, undefined);
        for (const { id, fragment: made } of shuffled) other.replace(id, made);
        t.is(printed(other), printed(one));
      },
    ),
  );
});

/** A fragment that counts how often its items are read, each of them or as a list. */
function counted(n: number, reads: { count: number }): Fragment {
  const made = fragment(`n${n}`, [route(n % 250, `${n}`), sysctl(n)], {
    rank: String(n).padStart(6, '0'),
    requires: ['base'],
  });
  return new Proxy(made, {
    get(target, property, receiver) {
      if (property === 'items' || property === 'requires') reads.count++;
      return Reflect.get(target, property, receiver) as unknown;
    },
  });
}

test('replacing one fragment among 10,000 reads no other one', (t) => {
  const reads = { count: 0 };
  const state = stateOf(fragment('base', [sysctl(100_000)], shared));
  for (let n = 0; n < 10_000; n++) state.replace(`n${n}`, counted(n, reads));
  allDirty(state);
  reads.count = 0;
  state.replace(
    'n777',
    fragment('n777', [route(27, 'new'), sysctl(777, 'new')], { rank: '000777', requires: ['base'] }),
  );
  t.true(reads.count <= 4, `the old fragment was read, and no other: ${reads.count} reads`);
  t.deepEqual(allDirty(state), [sysctl(777).key], 'the contested route still belongs to another');
  reads.count = 0;
  state.replace('n777', undefined);
  t.is(reads.count, 0);
});
