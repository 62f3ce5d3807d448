import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { fragment, route, sysctl } from '../../test/support/fragments.ts';
import { makeRig, quiet, type Rig, startRig } from '../../test/support/reconcile.ts';
import { until } from '../../test/support/until.ts';
import type { Key, Kind } from '../model/items.ts';
import type { BatchReport } from './reconciler.ts';
import type { Change } from './types.ts';

const text = (changes: readonly Change[]): string[] => changes.map(({ action, key }) => `${action} ${key}`);
const r = (n: number): string => `route 10.0.${n}.0/24 metric 0`;
const s = (n: number): string => `sysctl net/test/${n}`;
/** Lists that were booked. */
const listsOf = (rig: Rig, kind: Kind): number => rig.reconciler.status().kinds[kind]?.lists ?? 0;
/** Until no lane has begun a cycle for so many turns that it must be waiting. */
async function asleep({ reconciler }: Rig): Promise<void> {
  for (let before = -1, turns = 0; turns < 20; turns++) {
    const now = Object.values(reconciler.status().cycles).reduce((sum, cycles) => sum + cycles, 0);
    if (now !== before) turns = 0;
    before = now;
    await nextTurn();
  }
}
const signal = (): AbortSignal => AbortSignal.timeout(20_000);

test('creates and updates run in apply order, removals after them in reverse', async (t) => {
  const log: string[] = [];
  const rig = await startRig(t, {
    fragments: [fragment('old', [sysctl(1), route(1), sysctl(2), route(2)])],
    options: { onBatch: ({ changes }: BatchReport) => log.push(...text(changes)) },
  });
  await quiet(rig.reconciler);
  t.deepEqual(log.splice(0), [`create ${s(1)}`, `create ${s(2)}`, `create ${r(1)}`, `create ${r(2)}`]);
  rig.put(fragment('old', [route(2, 'b'), sysctl(2)]), fragment('new', [route(3)]));
  await quiet(rig.reconciler);
  t.deepEqual(log, [`update ${r(2)}`, `create ${r(3)}`, `remove ${r(1)}`, `remove ${s(1)}`]);
});

test('a fresh reconciler over the same kernel writes nothing', async (t) => {
  const fragments = [fragment('a', [sysctl(1), route(1)])];
  const first = await startRig(t, { fragments });
  await quiet(first.reconciler);
  const second = await startRig(t, {
    fragments,
    routes: { store: first.routes.store },
    sysctls: { store: first.sysctls.store },
  });
  await quiet(second.reconciler);
  t.is(second.routes.applies + second.sysctls.applies, 0);
  t.deepEqual(second.reconciler.known(route(1).key), route(1).value);
});

test('batches are bounded', async (t) => {
  const items = Array.from({ length: 25 }, (_, n) => route(n));
  const rig = await startRig(t, { fragments: [fragment('a', items)], options: { batchSize: 10 } });
  await quiet(rig.reconciler);
  t.deepEqual([rig.routes.applies, rig.routes.largestBatch, rig.routes.store.size], [3, 10, 25]);
});

test('a change among 10,000 fragments visits and compares its own keys only', async (t) => {
  const rig = await startRig(t, {
    fragments: Array.from({ length: 10_000 }, (_, n) => fragment(`f${n}`, [sysctl(n)])),
  });
  await quiet(rig.reconciler);
  rig.sysctls.visited.length = 0;
  rig.sysctls.compares = 0;
  rig.put(fragment('f7', [sysctl(7, 'b'), route(7)]));
  await rig.reconciler.settle([sysctl(7).key, route(7).key], signal());
  t.deepEqual(rig.sysctls.visited, [sysctl(7).key]);
  t.true(rig.sysctls.compares <= 10, `${rig.sysctls.compares} comparisons`);
  t.is(rig.sysctls.lists, 1);
});

test('what the driver calls equal is not written', async (t) => {
  const rig = await startRig(t, {
    routes: { store: new Map([[route(1).key, route(1, 'other').value]]), equal: () => true },
    fragments: [fragment('a', [route(1)])],
  });
  await rig.reconciler.settle([route(1).key], signal());
  t.is(rig.routes.applies, 0);
});

test('an object that cannot be compared is written, and stops nothing else', async (t) => {
  const rig = await startRig(t, {
    routes: {
      store: new Map([[route(1).key, route(1).value]]),
      equal: (wanted, found) => {
        if (wanted.destination === route(1).value.destination && found.link === 'a') throw new Error('odd');
        return wanted.link === found.link;
      },
    },
    fragments: [fragment('a', [route(1, 'b'), route(2)])],
  });
  await quiet(rig.reconciler);
  t.deepEqual(text(rig.routes.written), [`update ${r(1)}`, `create ${r(2)}`]);
});

test('needs: blocked until the need is in the kernel, in another lane too, then woken at once', async (t) => {
  const rig = await startRig(t, {
    sysctls: { lane: 'bpf' },
    fragments: [fragment('a', [route(1, 'a', [sysctl(1).key])])],
  });
  await quiet(rig.reconciler);
  t.deepEqual(rig.reconciler.status().blocked, [{ key: route(1).key, by: sysctl(1).key }]);
  t.is(rig.routes.applies, 0);
  rig.put(fragment('b', [sysctl(1)]));
  await rig.reconciler.settle([route(1).key], signal());
  t.deepEqual(rig.reconciler.status().blocked, []);
});

test('needs: what is no longer wanted is no longer blocked', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1, 'a', [sysctl(1).key])])] });
  await quiet(rig.reconciler);
  rig.drop('a');
  await until(() => rig.reconciler.status().blocked.length === 0, 'nothing blocked');
  await quiet(rig.reconciler);
  t.is(rig.reconciler.status().kinds.route?.dirty, 0);
});

test('needs: a need with another value than wanted, or a failing one, blocks', async (t) => {
  const rig = await startRig(t, { sysctls: { store: new Map([[sysctl(1).key, sysctl(1, 'old').value]]) } });
  rig.sysctls.failNext({ key: sysctl(1).key }, Infinity);
  rig.put(fragment('a', [sysctl(1), route(1, 'a', [sysctl(1).key]), route(2)]));
  await rig.reconciler.settle([route(2).key], signal());
  await until(() => rig.reconciler.status().failing.some(({ attempts }) => attempts > 2), 'some attempts');
  t.false(rig.routes.store.has(route(1).key));
  rig.sysctls.heal();
  await quiet(rig.reconciler);
  t.true(rig.routes.store.has(route(1).key));
});

test('needs: a need that is wanted as it is already frees what waits for it without a write', async (t) => {
  const rig = await startRig(t, { sysctls: { store: new Map([[sysctl(1).key, sysctl(1).value]]) } });
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key])]));
  await quiet(rig.reconciler);
  t.is(rig.routes.applies, 0);
  rig.put(fragment('b', [sysctl(1)]));
  await quiet(rig.reconciler);
  t.deepEqual([rig.routes.applies, rig.sysctls.applies], [1, 0]);
});

test('one bad object does not stop the others, and shows in the status', async (t) => {
  const rig = await startRig(t);
  rig.routes.failNext({ key: route(1).key }, Infinity, new Error('no such device'));
  rig.put(fragment('a', [route(1), route(2), sysctl(1)]));
  await rig.reconciler.settle([route(2).key, sysctl(1).key], signal());
  await until(() => rig.reconciler.status().failing.length > 0, 'a failure');
  const status = rig.reconciler.status();
  t.like(status.failing[0], { key: route(1).key, error: 'no such device' });
  t.is(status.kinds.route?.failing, 1);
  t.deepEqual(JSON.parse(JSON.stringify(status)), status, 'plain JSON');
  rig.routes.heal();
  await quiet(rig.reconciler);
  t.deepEqual(rig.reconciler.status().failing, []);
});

test('backoff: attempts are spaced out, and start over when something else is wanted', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.routes.failNext({ key: route(1).key }, 1);
  rig.put(fragment('a', [route(1)]));
  await until(() => rig.reconciler.status().failing.length === 1, 'a failure');
  const [failure] = rig.reconciler.status().failing;
  t.true(failure !== undefined && failure.nextTryMs > 20_000);
  rig.state.replace('b', fragment('b', [route(2)]));
  await rig.reconciler.settle([route(2).key], signal());
  t.is(rig.routes.visited.filter((key) => key === route(1).key).length, 1, 'others do not end its backoff');
  rig.put(fragment('a', [route(1, 'b')]));
  await quiet(rig.reconciler);
  t.is(rig.routes.store.get(route(1).key)?.link, 'b');
});

test('backoff: neither notices nor other work cut it short', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.routes.failNext({ key: route(1).key }, 1);
  rig.put(fragment('a', [route(1)]));
  await until(() => rig.reconciler.status().failing.length === 1, 'a failure');
  rig.routes.tell(route(1).key, route(1, 'foreign').value);
  rig.put(fragment('b', [route(2)]));
  await rig.reconciler.settle([route(2).key], signal());
  await sleep(5);
  t.is(rig.reconciler.status().failing[0]?.attempts, 1);
  rig.routes.tell(route(1).key, route(1).value);
  t.deepEqual(rig.reconciler.status().failing, [], 'but it ends when somebody else has put it right');
});

test('backoff: does not apply to what was changed while the failing attempt ran', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  const { reached, release } = rig.routes.hold();
  rig.routes.failNext({ key: route(1).key }, 1);
  rig.put(fragment('a', [route(1)]));
  await reached;
  rig.put(fragment('a', [route(1, 'b')]));
  t.is(rig.reconciler.status().kinds.route?.dirty, 2, 'in flight, and pending again');
  release();
  await quiet(rig.reconciler);
  t.is(rig.routes.store.get(route(1).key)?.link, 'b');
});

for (const thrown of [new Error('lost'), 'a string', undefined]) {
  test(`apply() that throws ${String(thrown)} fails the batch and ends nothing`, async (t) => {
    const rig = await startRig(t);
    rig.routes.throwNext(thrown);
    rig.put(fragment('a', [route(1), route(2)]));
    await quiet(rig.reconciler);
    t.is(rig.routes.store.size, 2);
    t.is(rig.reconciler.status().kinds.route?.failures, 2);
  });
}

test('apply() that never returns is given up, and the lane goes on', async (t) => {
  for (const manner of ['obedient', 'deaf'] as const) {
    const rig = await startRig(t, { options: { deadlineMs: 200 } });
    rig.routes.hangNext(manner);
    rig.put(fragment('a', [route(1)]));
    const error = await t.throwsAsync(rig.reconciler.settle([route(1).key], signal()), { name: 'SettleError' });
    t.like(error?.cause, { name: 'DeadlineError', operation: 'apply 1 changes of route', deadlineMs: 200 });
    await quiet(rig.reconciler);
    t.true(rig.routes.store.has(route(1).key));
    rig.routes.violations.length = 0; // the deaf one still counts as busy
  }
});

test('a kind that cannot be listed is not written; others are', async (t) => {
  const rig = makeRig({ fragments: [fragment('a', [route(1), sysctl(1)])] });
  t.teardown(() => rig.controller.abort());
  rig.routes.failLists(5);
  rig.reconciler.start(rig.controller.signal);
  await rig.reconciler.settle([sysctl(1).key], signal());
  t.is(rig.routes.applies, 0);
  await until(() => rig.reconciler.status().kinds.route?.stale === 'injected list failure', 'a failed list');
  await rig.reconciler.listed;
  await quiet(rig.reconciler);
  t.true(rig.routes.lists >= 6 && rig.routes.store.has(route(1).key));
});

test('a list that hangs is given up and tried again', async (t) => {
  const rig = makeRig({ options: { deadlineMs: 200 }, fragments: [fragment('a', [route(1)])] });
  t.teardown(() => rig.controller.abort());
  rig.routes.hangNextList();
  rig.reconciler.start(rig.controller.signal);
  await rig.reconciler.listed;
  await quiet(rig.reconciler);
  t.true(rig.routes.store.has(route(1).key));
});

test('what waited for a list is written after it, also when that list comes in the middle of a cycle', async (t) => {
  let nowMs = 0;
  const rig = makeRig({
    fragments: [fragment('a', [route(1), sysctl(1)])],
    options: { now: () => nowMs, backoff: { minMs: 60_000, maxMs: 60_000 } },
  });
  t.teardown(() => rig.controller.abort());
  rig.sysctls.failLists(1);
  rig.reconciler.start(rig.controller.signal);
  await rig.reconciler.settle([route(1).key], signal());
  await asleep(rig); // so that the notice alone wakes the lane
  const { reached, release } = rig.routes.hold();
  rig.routes.tamper(route(1).key, undefined, { notice: true });
  await reached;
  nowMs = 60_000; // the backoff of the failed list is over
  release();
  await until(() => rig.sysctls.store.has(sysctl(1).key), 'the write');
  t.pass();
});

test('settle: resolves once all keys are as wanted, present or absent', async (t) => {
  const rig = await startRig(t);
  await rig.reconciler.settle([route(1).key], signal());
  rig.put(fragment('a', [route(1), sysctl(1)]));
  await rig.reconciler.settle([route(1).key, sysctl(1).key], signal());
  t.true(rig.routes.store.has(route(1).key) && rig.sysctls.store.has(sysctl(1).key));
  const touched = rig.state.replace('a', undefined);
  await rig.reconciler.settle(touched, signal());
  t.is(rig.routes.store.size + rig.sysctls.store.size, 0);
});

test('settle: rejects at the first failed attempt at a key or at what it needs, with the cause', async (t) => {
  const rig = await startRig(t);
  const cause = new Error('refused');
  rig.sysctls.failNext({ key: sysctl(1).key }, 1, cause);
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key]), sysctl(1)]));
  const error = await t.throwsAsync(rig.reconciler.settle([route(1).key], signal()), { name: 'SettleError' });
  t.like(error, { key: sysctl(1).key, message: `cannot settle ${s(1)}: refused` });
  t.is(error?.cause, cause);
  await rig.reconciler.settle([route(1).key], signal());
});

test('settle: ends the backoff of its keys and of what they need', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.sysctls.failNext({ key: sysctl(1).key });
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key]), sysctl(1)]));
  await until(() => rig.reconciler.status().failing.length === 1, 'a failure');
  await rig.reconciler.settle([route(1).key], signal());
  t.true(rig.routes.store.has(route(1).key));
});

test('settle: what is merely blocked waits', async (t) => {
  const rig = await startRig(t);
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key])]));
  const settled = rig.reconciler.settle([route(1).key], signal());
  await quiet(rig.reconciler);
  t.is(rig.reconciler.status().blocked.length, 1);
  rig.put(fragment('b', [sysctl(1)]));
  await settled;
  t.true(rig.routes.store.has(route(1).key));
});

test('settle: rejects with the reason of an abort, its own or the reconciler’s', async (t) => {
  const rig = await startRig(t);
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key])]));
  const own = new AbortController();
  const waiting = rig.reconciler.settle([route(1).key], own.signal);
  own.abort(new Error('the caller left'));
  await t.throwsAsync(waiting, { message: 'the caller left' });
  const other = rig.reconciler.settle([route(1).key], signal());
  rig.controller.abort(new Error('shutdown'));
  await t.throwsAsync(other, { message: 'shutdown' });
  await t.throwsAsync(rig.reconciler.settle([], signal()), { message: 'shutdown' });
  await t.throwsAsync(rig.reconciler.settle([], own.signal), { message: 'the caller left' });
});

test('settle: refuses a key of a kind without a driver, which would wait for ever', async (t) => {
  const rig = await startRig(t);
  await t.throwsAsync(rig.reconciler.settle(['link x'], signal()), { instanceOf: TypeError });
});

test('settle: gets its turn between two batches of a large load', async (t) => {
  const rig = await startRig(t, { options: { batchSize: 10 } });
  const { reached, release } = rig.routes.hold();
  rig.put(
    fragment(
      'load',
      Array.from({ length: 200 }, (_, n) => route(n)),
    ),
  );
  await reached;
  rig.put(fragment('pod', [route(250, 'a', [sysctl(1).key]), sysctl(1)]));
  const settled = rig.reconciler.settle([route(250).key], signal());
  release();
  await settled;
  t.deepEqual([rig.routes.visited.indexOf(route(250).key), rig.routes.applies], [10, 2]);
  await quiet(rig.reconciler);
});

test('settle: of a kind whose list fails rejects, and the next one tries the list at once', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.routes.failLists(1);
  rig.routes.overrun();
  rig.put(fragment('a', [route(1)]));
  const error = await t.throwsAsync(rig.reconciler.settle([route(1).key], signal()), { name: 'SettleError' });
  t.like(error?.cause, { message: 'injected list failure' });
  await rig.reconciler.settle([route(1).key], signal());
});

test('settle: a failed attempt at what is no longer wanted does not reject', async (t) => {
  const rig = await startRig(t);
  const { reached, release } = rig.routes.hold();
  rig.routes.failNext({ key: route(1).key, action: 'create' });
  rig.put(fragment('a', [route(1)]));
  await reached;
  const gone = rig.reconciler.settle(rig.state.replace('a', undefined), signal());
  release();
  await gone;
  t.false(rig.routes.store.has(route(1).key));
});

test('a half-made object of a failed create is found by a list and removed when it is no longer wanted', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.routes.failNext({ key: route(1).key, action: 'create' });
  rig.put(fragment('a', [route(1)]));
  await t.throwsAsync(rig.reconciler.settle([route(1).key], signal()), { name: 'SettleError' });
  rig.routes.tamper(route(1).key, route(1, 'half').value, { notice: false });
  await rig.reconciler.settle(rig.state.replace('a', undefined), signal());
  t.is(rig.routes.store.size, 0);
  t.is(rig.routes.lists, 2);
});

test('a failed update is written again even if the old value is wanted again', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1, 'a')])] });
  await quiet(rig.reconciler);
  rig.routes.failNext({ key: route(1).key });
  rig.put(fragment('a', [route(1, 'b')]));
  await t.throwsAsync(rig.reconciler.settle([route(1).key], signal()), { name: 'SettleError' });
  rig.routes.tamper(route(1).key, route(1, 'half').value, { notice: false });
  rig.put(fragment('a', [route(1, 'a')]));
  await rig.reconciler.settle([route(1).key], signal());
  t.is(rig.routes.store.get(route(1).key)?.link, 'a');
});

test('sweep: before it only what this process once wanted is removed, after it everything unwanted', async (t) => {
  const log: string[] = [];
  const rig = makeRig({
    routes: { store: new Map([1, 2, 3].map((n) => [route(n).key, route(n).value])) },
    sysctls: { store: new Map([[sysctl(9).key, sysctl(9).value]]) },
    fragments: [fragment('a', [route(1), route(2)])],
    options: { onBatch: ({ changes }: BatchReport) => log.push(...text(changes)) },
  });
  t.teardown(() => rig.controller.abort());
  rig.put(fragment('a', [route(1)]));
  rig.reconciler.start(rig.controller.signal);
  await rig.reconciler.listed;
  await quiet(rig.reconciler);
  t.deepEqual(log.splice(0), [`remove ${r(2)}`]);
  rig.reconciler.resync();
  await until(() => listsOf(rig, 'route') === 2 && listsOf(rig, 'sysctl') === 2, 'a resync');
  await quiet(rig.reconciler);
  t.deepEqual(log, []);
  rig.put(fragment('b', [route(4)]));
  rig.reconciler.enableSweep();
  await until(() => rig.sysctls.store.size === 0, 'the sweep');
  await quiet(rig.reconciler);
  t.deepEqual(log, [`create ${r(4)}`, `remove ${r(3)}`, `remove ${s(9)}`]);
});

test('sweep: asked for before the first list it comes with that list', async (t) => {
  const rig = makeRig({ routes: { store: new Map([[route(3).key, route(3).value]]) } });
  t.teardown(() => rig.controller.abort());
  rig.reconciler.enableSweep();
  rig.reconciler.start(rig.controller.signal);
  await rig.reconciler.listed;
  await quiet(rig.reconciler);
  t.deepEqual([rig.routes.store.size, rig.routes.lists], [0, 1]);
});

test('drift: a notice is repaired at once, a silent change at the next list', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1), route(2), route(3)])] });
  await quiet(rig.reconciler);
  t.is(rig.reconciler.status().kinds.route?.drift, 0);
  rig.routes.tamper(route(1).key, undefined, { notice: true });
  await rig.reconciler.settle([route(1).key], signal());
  t.true(rig.routes.store.has(route(1).key));
  rig.routes.tamper(route(2).key, route(2, 'x').value, { notice: false });
  rig.routes.tamper(route(3).key, undefined, { notice: false });
  rig.routes.tamper(route(4).key, route(4).value, { notice: false });
  rig.reconciler.resync('route');
  await until(() => listsOf(rig, 'route') === 2, 'a list');
  await quiet(rig.reconciler);
  t.is(rig.routes.store.get(route(2).key)?.link, 'a');
  t.true(rig.routes.store.has(route(3).key));
  t.is(rig.reconciler.status().kinds.route?.drift, 3);
  t.is(rig.sysctls.lists, 1);
});

test('stale: the kind is listed again before anybody relies on it', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1)])] });
  await quiet(rig.reconciler);
  rig.routes.tamper(route(1).key, undefined, { notice: false });
  rig.routes.overrun();
  await rig.reconciler.settle([route(1).key], signal());
  t.true(rig.routes.store.has(route(1).key));
  t.is(rig.routes.lists, 2);
});

test('lists are repeated at the resync interval', async (t) => {
  const rig = await startRig(t, { options: { resyncIntervalMs: 10 } });
  await until(() => rig.routes.lists >= 3 && rig.sysctls.lists >= 3, 'resyncs');
  t.pass();
});

for (const [name, echo] of [
  ['final', 'final'],
  ['half-done values', { halfDone: (value: ReturnType<typeof route>['value']) => ({ ...value, link: 'half' }) }],
  ['a deletion in between', { halfDone: () => undefined }],
] as const) {
  test(`own echoes (${name}) are no drift and end in what was written`, async (t) => {
    const rig = await startRig(t, { routes: { echo } });
    rig.put(fragment('a', [route(1), route(2)]));
    await rig.reconciler.settle([route(1).key], signal());
    rig.put(fragment('a', [route(1, 'b')]));
    await rig.reconciler.settle([route(1).key, route(2).key], signal());
    await quiet(rig.reconciler);
    const { applies } = rig.routes;
    await sleep(20);
    t.is(rig.routes.applies, applies, 'no echo of an echo');
    t.deepEqual([...rig.routes.store.values()], [route(1, 'b').value]);
    t.deepEqual(rig.reconciler.known(route(1).key), route(1, 'b').value);
    t.is(rig.reconciler.status().kinds.route?.drift, 0);
  });
}

test('a notice that equals what is known wakes nobody', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1)])] });
  await asleep(rig);
  const { cycles } = rig.reconciler.status();
  rig.routes.tell(route(1).key, route(1).value);
  rig.routes.tell(route(2).key, undefined);
  await sleep(10);
  t.deepEqual(rig.reconciler.status().cycles, cycles);
});

test('a change by somebody else while the key is being written is not lost', async (t) => {
  const rig = await startRig(t);
  rig.put(fragment('a', [route(1)]));
  const { reached, release } = rig.routes.hold();
  await reached;
  rig.routes.tell(route(1).key, route(1, 'foreign').value);
  release();
  await rig.reconciler.settle([route(1).key], signal());
  t.is(rig.routes.visited.length, 2, 'written again: nobody knows which change was last');
  t.is(rig.routes.store.get(route(1).key)?.link, 'a');
});

test('a notice during a list wins over the list, which is done again', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1)])] });
  await quiet(rig.reconciler);
  const { reached, release } = rig.routes.hold('list');
  rig.reconciler.resync('route');
  await reached;
  rig.routes.tamper(route(1).key, undefined, { notice: true });
  release();
  await until(() => rig.routes.lists >= 3, 'another list');
  await quiet(rig.reconciler);
  t.true(rig.routes.store.has(route(1).key));
});

test('a notice during a list is acted on before the next list', async (t) => {
  const rig = await startRig(t, {
    fragments: [fragment('a', [route(1)])],
    options: { backoff: { minMs: 60_000, maxMs: 60_000 } },
  });
  await quiet(rig.reconciler);
  const { reached, release } = rig.routes.hold('list');
  rig.reconciler.resync('route');
  await reached;
  rig.routes.tamper(route(1).key, undefined, { notice: true });
  release();
  await until(() => rig.routes.store.has(route(1).key), 'the repair');
  t.is(rig.routes.lists, 2);
});

test('what is wanted back while something else is being written is not settled yet', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1, 'a')])] });
  await quiet(rig.reconciler);
  const { reached, release } = rig.routes.hold();
  rig.put(fragment('a', [route(1, 'b')]));
  await reached;
  rig.put(fragment('a', [route(1, 'a')]));
  const settled = rig.reconciler.settle([route(1).key], signal()).then(() => rig.routes.store.get(route(1).key)?.link);
  await nextTurn();
  release();
  t.is(await settled, 'a');
  t.deepEqual(text(rig.routes.written), [`create ${r(1)}`, `update ${r(1)}`, `update ${r(1)}`]);
});

test('what changes while it is being written is written again', async (t) => {
  const rig = await startRig(t);
  const { reached, release } = rig.routes.hold();
  rig.put(fragment('a', [route(1, 'a')]));
  await reached;
  rig.put(fragment('a', [route(1, 'b')]));
  const settled = rig.reconciler.settle([route(1).key], signal());
  release();
  await settled;
  t.is(rig.routes.store.get(route(1).key)?.link, 'b');
});

test('diff: says what would change, by fresh lists, and changes nothing', async (t) => {
  const rig = await startRig(t, {
    fragments: [fragment('a', [route(1), sysctl(1), route(2)])],
    sysctls: { store: new Map([[sysctl(7).key, sysctl(7).value]]) },
  });
  await quiet(rig.reconciler);
  t.deepEqual(await rig.reconciler.diff(signal()), []);
  rig.routes.tamper(route(1).key, undefined, { notice: false });
  rig.routes.tamper(route(2).key, route(2, 'x').value, { notice: false });
  rig.sysctls.tamper(sysctl(1).key, undefined, { notice: false });
  const expected = [`create ${s(1)}`, `create ${r(1)}`, `update ${r(2)}`];
  t.deepEqual(text(await rig.reconciler.diff(signal())), expected);
  t.deepEqual(text(await rig.reconciler.diff(signal())), expected);
  t.is(rig.routes.store.size, 1);
  rig.routes.failLists(1);
  await t.throwsAsync(rig.reconciler.diff(signal()), { message: 'injected list failure' });
  rig.reconciler.enableSweep();
  await until(() => rig.sysctls.store.get(sysctl(7).key) === undefined, 'the sweep');
  await quiet(rig.reconciler);
  t.deepEqual(await rig.reconciler.diff(signal()), []);
});

test('diff: without a running loop, and cut short by either abort', async (t) => {
  const idle = makeRig({ fragments: [fragment('a', [route(1)])] });
  t.deepEqual(text(await idle.reconciler.diff(signal())), [`create ${r(1)}`]);

  const rig = await startRig(t);
  const own = new AbortController();
  rig.routes.hangNextList();
  const hanging = rig.reconciler.diff(own.signal);
  await until(() => rig.routes.lists === 2, 'the list');
  own.abort(new Error('enough'));
  await t.throwsAsync(hanging, { message: 'enough' });
  rig.routes.hangNextList();
  const other = rig.reconciler.diff(signal());
  rig.controller.abort(new Error('shutdown'));
  await t.throwsAsync(other, { message: 'shutdown' });
  await t.throwsAsync(rig.reconciler.diff(signal()), { message: 'shutdown' });
  await rig.reconciler.stopped;
});

test('idle means idle', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1), sysctl(1), route(2, 'a', [sysctl(5).key])])] });
  await quiet(rig.reconciler);
  await asleep(rig);
  const before = rig.reconciler.status();
  await sleep(60);
  t.deepEqual(rig.reconciler.status(), before);
});

test('after the abort nothing is written any more', async (t) => {
  const rig = makeRig({ options: { batchSize: 1 } });
  rig.reconciler.start(rig.controller.signal);
  await rig.reconciler.listed;
  const { reached, release } = rig.routes.hold();
  rig.put(fragment('a', [route(1), route(2), route(3)]));
  await reached;
  rig.controller.abort(new Error('stop'));
  release();
  await rig.reconciler.stopped;
  rig.put(fragment('b', [route(4)]));
  await sleep(10);
  t.is(rig.routes.store.size, 0);
  t.is(rig.routes.applies, 1);
});

test('listed: rejects with the reason of an abort that comes first, and need not be awaited', async (t) => {
  const rig = makeRig();
  rig.routes.failLists(1_000);
  rig.reconciler.start(rig.controller.signal);
  rig.controller.abort(new Error('stop'));
  await rig.reconciler.stopped;
  await t.throwsAsync(rig.reconciler.listed, { message: 'stop' });
  t.throws(() => rig.reconciler.start(signal()), { message: /expected a new one/ });
});

test('onBatch and the counters tell what was done', async (t) => {
  const reports: BatchReport[] = [];
  const rig = await startRig(t, { options: { onBatch: (report) => reports.push(report) } });
  rig.routes.failNext({ key: route(1).key });
  rig.put(fragment('a', [route(1), route(2)]));
  await quiet(rig.reconciler);
  t.deepEqual(
    reports.map(({ kind, changes, failed }) => [kind, changes.length, failed.map(({ change }) => change.key as Key)]),
    [
      ['route', 2, [route(1).key]],
      ['route', 1, []],
    ],
  );
  t.like(rig.reconciler.status().kinds.route, {
    wanted: 2,
    known: 2,
    dirty: 0,
    changes: 2,
    failures: 1,
    lists: 1,
    drift: 0,
  });
});
