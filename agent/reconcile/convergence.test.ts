import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import fc from 'fast-check';
import type { FakeDriver, FakeDriverOptions } from '../../test/support/fake-driver.ts';
import { anEdit, type Edit, fragment, route, sysctl } from '../../test/support/fragments.ts';
import { asleep, listsOf, makeRig, quiet, type Rig, type RigOptions } from '../../test/support/reconcile.ts';
import { until } from '../../test/support/until.ts';
import type { Key, Kind } from '../model/items.ts';

/** One thing that happens while a reconciler works. */
type Event = (rig: Rig) => void | Promise<void>;

const numbers = fc.nat(4);
const aDriver = fc.constantFrom<'routes' | 'sysctls'>('routes', 'sysctls');
/** The fake driver of either kind; its methods are the same but for the types of keys and values. */
const driverOf = (rig: Rig, name: 'routes' | 'sysctls'): FakeDriver<Kind> => rig[name] as unknown as FakeDriver<Kind>;
const itemOf = (name: 'routes' | 'sysctls', n: number, variant?: string) =>
  name === 'routes' ? route(n, variant) : sysctl(n, variant);

async function passTurns(turns: number): Promise<void> {
  for (let turn = 0; turn < turns; turn++) await nextTurn();
}

const edited =
  ({ id, fragment: made }: Edit): Event =>
  (rig) =>
    void rig.state.replace(id, made);

const aTamper = (notice: fc.Arbitrary<boolean>): fc.Arbitrary<Event> =>
  fc
    .tuple(aDriver, numbers, fc.constantFrom('a', 'b', 'foreign', undefined), notice)
    .map(([name, n, variant, isNoticed]) => (rig) => {
      const { key, value } = itemOf(name, n, variant);
      driverOf(rig, name).tamper(key, variant === undefined ? undefined : value, { notice: isNoticed });
    });

const aFault: fc.Arbitrary<Event> = fc.tuple(aDriver, numbers, fc.integer({ min: 1, max: 3 })).map(
  ([name, n, times]) =>
    (rig) =>
      driverOf(rig, name).failNext({ key: itemOf(name, n).key }, times),
);

const aPause: fc.Arbitrary<Event> = fc.integer({ min: 1, max: 12 }).map((turns) => () => passTurns(turns));

const onDriver = (act: (driver: FakeDriver<Kind>) => void): fc.Arbitrary<Event> =>
  aDriver.map((name) => (rig) => act(driverOf(rig, name)));

/** Everything of which the reconciler is told. */
const anAnnouncedEvent: fc.Arbitrary<Event> = fc.oneof(
  { weight: 6, arbitrary: anEdit.map(edited) },
  { weight: 4, arbitrary: aPause },
  { weight: 3, arbitrary: aTamper(fc.constant(true)) },
  { weight: 3, arbitrary: aFault },
  { weight: 1, arbitrary: onDriver((driver) => driver.throwNext()) },
  { weight: 1, arbitrary: onDriver((driver) => driver.failLists(2)) },
  { weight: 1, arbitrary: onDriver((driver) => driver.hangNext()) },
  { weight: 1, arbitrary: onDriver((driver) => driver.overrun()) },
  { weight: 1, arbitrary: fc.constant<Event>((rig) => rig.reconciler.resync()) },
  { weight: 1, arbitrary: fc.constant<Event>((rig) => rig.reconciler.enableSweep()) },
);

const anEvent = fc.oneof(
  { weight: 9, arbitrary: anAnnouncedEvent },
  { weight: 1, arbitrary: aTamper(fc.constant(false)) },
);

const anyLists = fc.constantFrom<Pick<FakeDriverOptions<Kind>, 'listsAside'>>({}, { listsAside: true });

const aRig: fc.Arbitrary<RigOptions> = fc
  .record({
    batchSize: fc.constantFrom(1, 2, 256),
    routeLists: anyLists,
    sysctlLists: anyLists,
    lane: fc.constantFrom<'netlink' | 'bpf'>('netlink', 'bpf'),
    routeEcho: fc.constantFrom<NonNullable<FakeDriverOptions<'route'>['echo']>>(
      'none',
      'final',
      { halfDone: () => undefined },
      { halfDone: (value) => ({ ...value, link: 'half' }) },
    ),
    sysctlEcho: fc.constantFrom<NonNullable<FakeDriverOptions<'sysctl'>['echo']>>('none', 'final', {
      halfDone: (value) => ({ ...value, value: 'half' }),
    }),
  })
  .map(({ batchSize, routeLists, sysctlLists, lane, routeEcho, sysctlEcho }) => ({
    options: { batchSize, backoff: { minMs: 0.2, maxMs: 1 } },
    routes: { echo: routeEcho, ...routeLists },
    sysctls: { echo: sysctlEcho, lane, ...sysctlLists },
  }));

/** Satisfies the needs of all generated routes, so that nothing stays blocked. */
const floor = fragment(
  'floor',
  [0, 1, 2, 3, 4].map((n) => sysctl(n)),
);

const wantedOf = (rig: Rig): Map<Key, unknown> =>
  new Map(
    (['route', 'sysctl'] as const)
      .flatMap((kind) => [...rig.state.keys(kind)])
      .sort()
      .map((key) => [key, rig.state.wanted(key)?.value]),
  );
const heldBy = (rig: Rig): Map<Key, unknown> =>
  new Map<Key, unknown>([...rig.routes.store, ...rig.sysctls.store].toSorted());

/** No more faults, and everything is swept; then nothing moves any more. `relist`: what was silent is found by a list. */
async function calm(rig: Rig, { relist = true } = {}): Promise<void> {
  rig.routes.heal();
  rig.sysctls.heal();
  rig.put(floor);
  if (relist) rig.reconciler.enableSweep();
  await rig.reconciler.listed;
  if (relist) {
    rig.routes.overrun();
    rig.sysctls.overrun();
  }
  await quiet(rig.reconciler);
  // Late echoes, which may cause one more look.
  await passTurns(8);
  await quiet(rig.reconciler);
}

async function assertSettled(t: { deepEqual(a: unknown, b: unknown): unknown }, rig: Rig): Promise<void> {
  t.deepEqual(heldBy(rig), wantedOf(rig));
  t.deepEqual(await rig.reconciler.diff(rig.controller.signal), []);
  const calls = (): number[] => [
    rig.routes.applies,
    rig.sysctls.applies,
    ...Object.values(rig.reconciler.status().cycles),
  ];
  // A list that notices contradicted is done again after a backoff, of which these are the longest; timers fire in order.
  await sleep(2);
  await asleep(rig);
  const before = calls();
  await passTurns(40);
  t.deepEqual(calls(), before);
  t.deepEqual([...rig.routes.violations, ...rig.sysctls.violations], []);
}

async function end(rig: Rig): Promise<void> {
  rig.controller.abort(new Error('over'));
  await rig.reconciler.stopped;
}

/** Ends it also when the work fails, so that the test can. */
async function withRig(options: RigOptions, work: (rig: Rig) => Promise<void>): Promise<void> {
  const rig = makeRig(options);
  rig.reconciler.start(rig.controller.signal);
  try {
    await work(rig);
  } finally {
    await end(rig);
  }
}

test('property: whatever fails or changes meanwhile, it ends in what is wanted, and is quiet then', async (t) => {
  await fc.assert(
    fc.asyncProperty(aRig, fc.array(anEvent, { maxLength: 30 }), (options, events) =>
      withRig(options, async (rig) => {
        for (const event of events) await event(rig);
        await calm(rig);
        await assertSettled(t, rig);
      }),
    ),
    { numRuns: 150 },
  );
});

test('property: known is never wrong for good where the kernel tells of changes, without another list', async (t) => {
  await fc.assert(
    fc.asyncProperty(aRig, fc.array(anAnnouncedEvent, { maxLength: 30 }), (options, events) =>
      withRig(options, async (rig) => {
        rig.reconciler.enableSweep();
        for (const event of events) await event(rig);
        await calm(rig, { relist: false });
        await assertSettled(t, rig);
      }),
    ),
    { numRuns: 150 },
  );
});

/** Of a kernel that tells nothing, with lists beside the writes, one after the other. */
const aListingRig: fc.Arbitrary<RigOptions> = fc
  .record({ batchSize: fc.constantFrom(1, 2, 256), lane: fc.constantFrom<'netlink' | 'bpf'>('netlink', 'bpf') })
  .map(({ batchSize, lane }) => ({
    options: { batchSize, resyncIntervalMs: 0 },
    routes: { listsAside: true },
    sysctls: { listsAside: true, lane },
  }));

const anEditOrPause = fc.oneof(
  { weight: 2, arbitrary: anEdit.map(edited) },
  { weight: 3, arbitrary: aPause },
  { weight: 1, arbitrary: fc.constant<Event>((rig) => rig.reconciler.enableSweep()) },
);

test('property: own writes during lists are neither undone nor repeated, whatever the list has seen of them', async (t) => {
  await fc.assert(
    fc.asyncProperty(aListingRig, fc.array(anEditOrPause, { maxLength: 40 }), (options, events) =>
      withRig(options, async (rig) => {
        for (const event of events) await event(rig);
        rig.put(floor);
        await quiet(rig.reconciler);
        t.deepEqual(heldBy(rig), wantedOf(rig));
        for (const driver of [rig.routes, rig.sysctls]) t.deepEqual([driver.needless, driver.violations], [0, []]);
        for (const { drift } of Object.values(rig.reconciler.status().kinds)) t.is(drift, 0);
      }),
    ),
    { numRuns: 150 },
  );
});

test('property: what somebody else does unheard during lists and writes is found by a list soon', async (t) => {
  const anyEvent = fc.oneof(
    { weight: 2, arbitrary: anEditOrPause },
    { weight: 1, arbitrary: aTamper(fc.constant(false)) },
  );
  await fc.assert(
    fc.asyncProperty(aListingRig, fc.array(anyEvent, { maxLength: 40 }), (options, events) =>
      withRig(options, async (rig) => {
        rig.reconciler.enableSweep();
        for (const event of events) await event(rig);
        rig.put(floor);
        const before = [listsOf(rig, 'route'), listsOf(rig, 'sysctl')] as const;
        // One may be under way, the next may have begun before the last write was acknowledged, and the third sees all.
        await until(
          () => listsOf(rig, 'route') >= before[0] + 3 && listsOf(rig, 'sysctl') >= before[1] + 3,
          'three lists of each kind',
        );
        await quiet(rig.reconciler);
        t.deepEqual(heldBy(rig), wantedOf(rig));
      }),
    ),
    { numRuns: 150 },
  );
});

test('property: every settle is answered, and rightly', async (t) => {
  const asked = fc.uniqueArray(fc.tuple(aDriver, numbers), { minLength: 1, maxLength: 3 });
  let checked = 0;
  await fc.assert(
    fc.asyncProperty(aRig, fc.array(fc.tuple(anEvent, asked), { maxLength: 15 }), (options, steps) =>
      withRig(options, async (rig) => {
        rig.reconciler.enableSweep();
        let happened = 0;
        const settle = async (keys: readonly Key[]): Promise<string> => {
          const asOf = happened;
          await rig.reconciler.settle(keys, rig.controller.signal);
          // What happened since may have made it wrong again.
          if (asOf !== happened) return 'settled';
          for (const key of keys) t.deepEqual(rig.reconciler.known(key), rig.state.wanted(key)?.value);
          checked++;
          return 'settled';
        };
        const answers: Promise<string>[] = [];
        for (const [event, names] of steps) {
          happened++;
          await event(rig);
          answers.push(settle(names.map(([name, n]) => itemOf(name, n).key)).catch((error: Error) => error.name));
          await passTurns(8);
        }
        await calm(rig);
        const names = new Set(await Promise.all(answers));
        t.true(names.isSubsetOf(new Set(['settled', 'SettleError'])), [...names].join());
      }),
    ),
    { numRuns: 100 },
  );
  t.true(checked > 100, `only ${checked} answers could be checked`);
});

test('property: killed after any batch, a fresh one over the same kernel ends in the same state', async (t) => {
  const edits = fc.array(anEdit, { minLength: 1, maxLength: 10 });
  await fc.assert(
    fc.asyncProperty(aRig, edits, edits, fc.integer({ min: 1, max: 12 }), async (options, first, second, killAfter) => {
      const killed = await runUntilKilled(options, first, second, killAfter);
      const stores = {
        routes: { ...options.routes, store: killed.routes.store },
        sysctls: { ...options.sysctls, store: killed.sysctls.store },
      };
      await withRig({ ...options, ...stores }, async (fresh) => {
        for (const edit of [...first, ...second]) await edited(edit)(fresh);
        await calm(fresh);
        await assertSettled(t, fresh);
      });
    }),
    { numRuns: 100 },
  );
});

/** Aborted as soon as so many batches are booked, or when nothing more is to be expected. */
async function runUntilKilled(
  options: RigOptions,
  first: readonly Edit[],
  second: readonly Edit[],
  killAfter: number,
): Promise<Rig> {
  let batches = 0;
  const onBatch = (): void => {
    if (++batches === killAfter) rig.controller.abort(new Error('killed'));
  };
  const rig = makeRig({ ...options, options: { ...options.options, onBatch } });
  for (const edit of first) await edited(edit)(rig);
  rig.reconciler.start(rig.controller.signal);
  for (const edit of second) {
    await edited(edit)(rig);
    await nextTurn();
  }
  for (let turn = 0; turn < 40 && !rig.controller.signal.aborted; turn++) await nextTurn();
  await end(rig);
  return rig;
}

test('property: any order of the same fragments ends in the same kernel', async (t) => {
  const orders = fc
    .uniqueArray(anEdit, { selector: ({ id }) => id, minLength: 1 })
    .chain((edits) => fc.tuple(fc.constant(edits), fc.shuffledSubarray(edits, { minLength: edits.length })));
  await fc.assert(
    fc.asyncProperty(aRig, orders, async (options, [one, other]) => {
      const ends: unknown[] = [];
      for (const edits of [one, other]) {
        await withRig(options, async (rig) => {
          for (const edit of edits) {
            await edited(edit)(rig);
            await nextTurn();
          }
          await calm(rig);
          ends.push(heldBy(rig));
        });
      }
      t.deepEqual(ends[0], ends[1]);
    }),
    { numRuns: 60 },
  );
});
