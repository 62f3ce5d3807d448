import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { fragment, route, sysctl } from '../../test/support/fragments.ts';
import { asleep, bound, listsOf, makeRig, printed, quiet, startRig } from '../../test/support/reconcile.ts';
import { until } from '../../test/support/until.ts';

test('batches are bounded', async (t) => {
  const items = Array.from({ length: 25 }, (_, n) => route(n));
  const rig = await startRig(t, { fragments: [fragment('a', items)], options: { batchSize: 10 } });
  await quiet(rig.reconciler);
  t.deepEqual([rig.routes.applies, rig.routes.largestBatch, rig.routes.store.size], [3, 10, 25]);
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
  t.deepEqual(printed(rig.routes.written), [`update ${route(1).key}`, `create ${route(2).key}`]);
});

test('one bad object does not stop the others, and shows in the status', async (t) => {
  const rig = await startRig(t);
  rig.routes.failNext({ key: route(1).key }, Infinity, new Error('no such device'));
  rig.put(fragment('a', [route(1), route(2), sysctl(1)]));
  await rig.reconciler.settle([route(2).key, sysctl(1).key], bound());
  await until(() => rig.reconciler.status().failing.length > 0, 'a failure');
  const status = rig.reconciler.status();
  t.like(status.failing[0], { key: route(1).key, error: 'no such device' });
  t.is(status.kinds.route?.failing, 1);
  t.deepEqual(JSON.parse(JSON.stringify(status)), status, 'plain JSON');
  rig.routes.heal();
  await quiet(rig.reconciler);
  t.deepEqual(rig.reconciler.status().failing, []);
});

test('what a lane is at shows for how long, and what hangs again and again is one long operation', async (t) => {
  const clock = { ms: 0 };
  const rig = await startRig(t, { options: { now: () => clock.ms, deadlineMs: 500 } });
  t.deepEqual(rig.reconciler.work(), {});
  rig.routes.hangNext();
  rig.routes.hangNext();
  rig.put(fragment('a', [route(1)]));
  const failing = () => rig.reconciler.status().failing[0]?.attempts ?? 0;
  for (const attempts of [1, 2]) {
    clock.ms += 1_000;
    await until(() => failing() === attempts, 'an attempt that met its deadline');
  }
  t.like(rig.reconciler.work(), { netlink: { operation: 'apply 1 changes of route', durationMs: 1_000 } });
  rig.routes.heal();
  clock.ms += 1_000;
  await quiet(rig.reconciler);
  t.deepEqual(rig.reconciler.work(), {});
});

test('backoff: attempts are spaced out, and start over when something else is wanted', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.routes.failNext({ key: route(1).key }, 1);
  rig.put(fragment('a', [route(1)]));
  await until(() => rig.reconciler.status().failing.length === 1, 'a failure');
  const [failure] = rig.reconciler.status().failing;
  t.true(failure !== undefined && failure.nextTryMs > 20_000);
  rig.state.replace('b', fragment('b', [route(2)]));
  await rig.reconciler.settle([route(2).key], bound());
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
  await rig.reconciler.settle([route(2).key], bound());
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
    const error = await t.throwsAsync(rig.reconciler.settle([route(1).key], bound()), { name: 'SettleError' });
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
  await rig.reconciler.settle([sysctl(1).key], bound());
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
  await rig.reconciler.settle([route(1).key], bound());
  await asleep(rig); // so that the notice alone wakes the lane
  const { reached, release } = rig.routes.hold();
  rig.routes.tamper(route(1).key, undefined, { notice: true });
  await reached;
  nowMs = 60_000; // the backoff of the failed list is over
  release();
  await until(() => rig.sysctls.store.has(sysctl(1).key), 'the write');
  t.pass();
});

test('a list that goes aside holds up no write, of its kind or another; one of what is stale does, and a diff waits for it', async (t) => {
  const rig = await startRig(t, { routes: { listsAside: true }, sysctls: { listsAside: true } });
  const first = rig.routes.hold('list');
  rig.reconciler.resync('route');
  await first.reached;
  rig.put(fragment('a', [sysctl(1), route(1, 'a', [sysctl(1).key])]));
  await rig.reconciler.settle([route(1).key], bound());
  t.is(listsOf(rig, 'route'), 1);
  t.regex(rig.reconciler.work().netlink?.operation ?? '', /list route/);
  const diff = rig.reconciler.diff(bound());
  first.release();
  t.deepEqual(await diff, []);
  t.is(rig.routes.store.size, 1);

  const second = rig.routes.hold('list');
  rig.routes.overrun();
  await second.reached;
  rig.put(fragment('b', [sysctl(2)]));
  for (let turn = 0; turn < 50; turn++) await nextTurn();
  t.false(rig.sysctls.store.has(sysctl(2).key));
  second.release();
  await rig.reconciler.settle([sysctl(2).key], bound());
});

test('sweep: what needs nothing more goes once all kinds are listed, in reverse order', async (t) => {
  const log: string[] = [];
  const rig = await startRig(t, {
    routes: { listsAside: true, store: new Map([[route(3).key, route(3).value]]) },
    sysctls: { listsAside: true, store: new Map([[sysctl(3).key, sysctl(3).value]]) },
    options: { onBatch: ({ changes }) => log.push(...printed(changes)) },
  });
  const { reached, release } = rig.routes.hold('list');
  rig.reconciler.enableSweep();
  const rested = rig.reconciler.rest();
  await reached;
  t.is(listsOf(rig, 'sysctl'), 2);
  rig.put(fragment('a', [route(1)]));
  await rig.reconciler.settle([route(1).key], bound());
  release();
  await rested;
  t.deepEqual(log, [`create ${route(1).key}`, `remove ${route(3).key}`, `remove ${sysctl(3).key}`]);
});

test('lists are repeated at the resync interval', async (t) => {
  const rig = await startRig(t, { options: { resyncIntervalMs: 10 } });
  await until(() => rig.routes.lists >= 3 && rig.sysctls.lists >= 3, 'resyncs');
  t.pass();
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

test('whatever goes on changing, what has to go goes, later kinds are written, and the lane comes to rest', async (t) => {
  let changes = 0;
  const rig = await startRig(t, {
    options: {
      // Something else is wanted after each batch of sysctls, the first kind of the lane.
      onBatch: ({ kind }) => {
        if (kind === 'sysctl') rig.put(fragment('unsteady', [sysctl(9, String(changes++))]));
      },
    },
    fragments: [fragment('leaves', [sysctl(1)])],
  });
  await rig.reconciler.settle([sysctl(1).key], bound());
  const isSteady = () => rig.sysctls.store.has(sysctl(1).key);
  rig.drop('leaves');
  rig.put(fragment('comes', [route(1)]));
  await until(() => !isSteady() && rig.routes.store.has(route(1).key), 'both');
  const before = changes;
  await rig.reconciler.rest();
  t.true(before > 0);
});
