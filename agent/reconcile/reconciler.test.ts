import test from 'ava';
import { fragment, route, sysctl } from '../../test/support/fragments.ts';
import { bound, makeRig, printed, quiet, startRig } from '../../test/support/reconcile.ts';
import { until } from '../../test/support/until.ts';
import type { IpAddress } from '../model/ip.ts';
import { item, type Key } from '../model/items.ts';
import type { BatchReport } from './reconciler.ts';

test('creates and updates run in apply order, removals after them in reverse', async (t) => {
  const log: string[] = [];
  const rig = await startRig(t, {
    fragments: [fragment('old', [sysctl(1), route(1), sysctl(2), route(2)])],
    options: { onBatch: ({ changes }: BatchReport) => log.push(...printed(changes)) },
  });
  await quiet(rig.reconciler);
  t.deepEqual(log.splice(0), [
    `create ${sysctl(1).key}`,
    `create ${sysctl(2).key}`,
    `create ${route(1).key}`,
    `create ${route(2).key}`,
  ]);
  rig.put(fragment('old', [route(2, 'b'), sysctl(2)]), fragment('new', [route(3)]));
  await quiet(rig.reconciler);
  t.deepEqual(log, [
    `update ${route(2).key}`,
    `create ${route(3).key}`,
    `remove ${route(1).key}`,
    `remove ${sysctl(1).key}`,
  ]);
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

test('a change among 10,000 fragments visits and compares its own keys only', async (t) => {
  const rig = await startRig(t, {
    fragments: Array.from({ length: 10_000 }, (_, n) => fragment(`f${n}`, [sysctl(n)])),
  });
  await quiet(rig.reconciler);
  rig.sysctls.visited.length = 0;
  rig.sysctls.compares = 0;
  rig.put(fragment('f7', [sysctl(7, 'b'), route(7)]));
  await rig.reconciler.settle([sysctl(7).key, route(7).key], bound());
  t.deepEqual(rig.sysctls.visited, [sysctl(7).key]);
  t.true(rig.sysctls.compares <= 10, `${rig.sysctls.compares} comparisons`);
  t.is(rig.sysctls.lists, 1);
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
  await rig.reconciler.settle([route(1).key], bound());
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
  await rig.reconciler.settle([route(2).key], bound());
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

test('diff: says what would change, by fresh lists, and changes nothing', async (t) => {
  const rig = await startRig(t, {
    fragments: [fragment('a', [route(1), sysctl(1), route(2)])],
    sysctls: { store: new Map([[sysctl(7).key, sysctl(7).value]]) },
  });
  await quiet(rig.reconciler);
  t.deepEqual(await rig.reconciler.diff(bound()), []);
  rig.routes.tamper(route(1).key, undefined, { notice: false });
  rig.routes.tamper(route(2).key, route(2, 'x').value, { notice: false });
  rig.sysctls.tamper(sysctl(1).key, undefined, { notice: false });
  const expected = [`create ${sysctl(1).key}`, `create ${route(1).key}`, `update ${route(2).key}`];
  t.deepEqual(printed(await rig.reconciler.diff(bound())), expected);
  t.deepEqual(printed(await rig.reconciler.diff(bound())), expected);
  t.is(rig.routes.store.size, 1);
  rig.routes.failLists(1);
  await t.throwsAsync(rig.reconciler.diff(bound()), { message: 'injected list failure' });
  rig.reconciler.enableSweep();
  await until(() => rig.sysctls.store.get(sysctl(7).key) === undefined, 'the sweep');
  await quiet(rig.reconciler);
  t.deepEqual(await rig.reconciler.diff(bound()), []);
});

test('inspect: what is under given keys, by fresh lists of their kinds alone', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1), route(2), route(3), sysctl(1)])] });
  await quiet(rig.reconciler);
  rig.routes.tamper(route(2).key, route(2, 'x').value, { notice: false });
  rig.routes.tamper(route(3).key, undefined, { notice: false });
  const before = rig.sysctls.lists;
  const keys = [route(1), route(2), route(3), route(4)].map(({ key }) => key);
  t.deepEqual(
    [...(await rig.reconciler.inspect(keys, bound()))],
    [
      [route(1).key, { found: route(1).value, isRight: true }],
      [route(2).key, { found: route(2, 'x').value, isRight: false }],
      [route(3).key, { isRight: false }],
      [route(4).key, { isRight: true }],
    ],
  );
  t.is(rig.sysctls.lists, before);
  rig.routes.failLists(1);
  await t.throwsAsync(rig.reconciler.inspect(keys, bound()), { message: 'injected list failure' });
});

test('diff: without a running loop, and cut short by either abort', async (t) => {
  const idle = makeRig({ fragments: [fragment('a', [route(1)])] });
  t.deepEqual(printed(await idle.reconciler.diff(bound())), [`create ${route(1).key}`]);

  const rig = await startRig(t);
  const own = new AbortController();
  rig.routes.hangNextList();
  const hanging = rig.reconciler.diff(own.signal);
  await until(() => rig.routes.lists === 2, 'the list');
  own.abort(new Error('enough'));
  await t.throwsAsync(hanging, { message: 'enough' });
  rig.routes.hangNextList();
  const other = rig.reconciler.diff(bound());
  rig.controller.abort(new Error('shutdown'));
  await t.throwsAsync(other, { message: 'shutdown' });
  await t.throwsAsync(rig.reconciler.diff(bound()), { message: 'shutdown' });
  await rig.reconciler.stopped;
});

test('listed: rejects with the reason of an abort that comes first, and need not be awaited', async (t) => {
  const rig = makeRig();
  rig.routes.failLists(1_000);
  rig.reconciler.start(rig.controller.signal);
  rig.controller.abort(new Error('stop'));
  await rig.reconciler.stopped;
  await t.throwsAsync(rig.reconciler.listed, { message: 'stop' });
  t.throws(() => rig.reconciler.start(bound()), { message: /expected a new one/ });
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
    actions: { create: 2, update: 0, remove: 0 },
    failures: 1,
    lists: 1,
    listFailures: 0,
    drift: 0,
  });
});

test('a kind without a driver is shown and contested like others, and nobody waits for it', async (t) => {
  const caughtUp: number[] = [];
  const rig = await startRig(t, { options: { onCaughtUp: (durationMs) => caughtUp.push(durationMs) } });
  const at = { scope: 'internal', ip: '10.96.0.1' as IpAddress, port: 80, protocol: 'TCP', kind: 'cluster' } as const;
  const frontend = (service: string) => item('frontend', { ...at, target: 'refuse', service });
  const followed = rig.reconciler.follow(0);
  followed.add(rig.state.replace('a', fragment('a', [frontend('a'), sysctl(1)], { rank: '1' })));
  followed.add(rig.state.replace('b', fragment('b', [frontend('b')], { rank: '2' })));
  followed.end();
  await quiet(rig.reconciler);
  t.is(caughtUp.length, 1);
  t.is(rig.reconciler.status().behindMs, 0);
  t.deepEqual(rig.reconciler.status().contested, [{ key: frontend('a').key, winner: 'a', losers: ['b'] }]);
  t.deepEqual(rig.state.takeDirty('frontend'), []);
});
