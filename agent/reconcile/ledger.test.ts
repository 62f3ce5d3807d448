import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { fragment, route, sysctl } from '../../test/support/fragments.ts';
import { asleep, bound, listsOf, makeRig, printed, quiet, startRig } from '../../test/support/reconcile.ts';
import { until } from '../../test/support/until.ts';
import type { BatchReport } from './reconciler.ts';

test('what the driver calls equal is not written', async (t) => {
  const rig = await startRig(t, {
    routes: { store: new Map([[route(1).key, route(1, 'other').value]]), equal: () => true },
    fragments: [fragment('a', [route(1)])],
  });
  await rig.reconciler.settle([route(1).key], bound());
  t.is(rig.routes.applies, 0);
});

test('a half-made object of a failed create is found by a list and removed when it is no longer wanted', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.routes.failNext({ key: route(1).key, action: 'create' });
  rig.put(fragment('a', [route(1)]));
  await t.throwsAsync(rig.reconciler.settle([route(1).key], bound()), { name: 'SettleError' });
  rig.routes.tamper(route(1).key, route(1, 'half').value, { notice: false });
  await rig.reconciler.settle(rig.state.replace('a', undefined), bound());
  t.is(rig.routes.store.size, 0);
  t.is(rig.routes.lists, 2);
});

test('a failed update is written again even if the old value is wanted again', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1, 'a')])] });
  await quiet(rig.reconciler);
  rig.routes.failNext({ key: route(1).key });
  rig.put(fragment('a', [route(1, 'b')]));
  await t.throwsAsync(rig.reconciler.settle([route(1).key], bound()), { name: 'SettleError' });
  rig.routes.tamper(route(1).key, route(1, 'half').value, { notice: false });
  rig.put(fragment('a', [route(1, 'a')]));
  await rig.reconciler.settle([route(1).key], bound());
  t.is(rig.routes.store.get(route(1).key)?.link, 'a');
});

test('sweep: before it only what this process once wanted is removed, after it everything unwanted', async (t) => {
  const log: string[] = [];
  const rig = makeRig({
    routes: { store: new Map([1, 2, 3].map((n) => [route(n).key, route(n).value])) },
    sysctls: { store: new Map([[sysctl(9).key, sysctl(9).value]]) },
    fragments: [fragment('a', [route(1), route(2)])],
    options: { onBatch: ({ changes }: BatchReport) => log.push(...printed(changes)) },
  });
  t.teardown(() => rig.controller.abort());
  rig.put(fragment('a', [route(1)]));
  rig.reconciler.start(rig.controller.signal);
  await rig.reconciler.listed;
  await quiet(rig.reconciler);
  t.deepEqual(log.splice(0), [`remove ${route(2).key}`]);
  rig.reconciler.resync();
  await until(() => listsOf(rig, 'route') === 2 && listsOf(rig, 'sysctl') === 2, 'a resync');
  await quiet(rig.reconciler);
  t.deepEqual(log, []);
  rig.put(fragment('b', [route(4)]));
  rig.reconciler.enableSweep();
  await until(() => rig.sysctls.store.size === 0, 'the sweep');
  await quiet(rig.reconciler);
  t.deepEqual(log, [`create ${route(4).key}`, `remove ${route(3).key}`, `remove ${sysctl(9).key}`]);
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
  await rig.reconciler.settle([route(1).key], bound());
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
  await rig.reconciler.settle([route(1).key], bound());
  t.true(rig.routes.store.has(route(1).key));
  t.is(rig.routes.lists, 2);
});

for (const [name, echo] of [
  ['final', 'final'],
  ['half-done values', { halfDone: (value: ReturnType<typeof route>['value']) => ({ ...value, link: 'half' }) }],
  ['a deletion in between', { halfDone: () => undefined }],
] as const) {
  test(`own echoes (${name}) are no drift and end in what was written`, async (t) => {
    const rig = await startRig(t, { routes: { echo } });
    rig.put(fragment('a', [route(1), route(2)]));
    await rig.reconciler.settle([route(1).key], bound());
    rig.put(fragment('a', [route(1, 'b')]));
    await rig.reconciler.settle([route(1).key, route(2).key], bound());
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

test('what is freed does not wait for the end of its backoff, and nothing else is tried', async (t) => {
  const attempts: string[] = [];
  const onBatch = ({ changes }: BatchReport) => attempts.push(...printed(changes));
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 }, onBatch } });
  for (const n of [1, 2]) rig.routes.failNext({ key: route(n).key }, 2);
  rig.put(fragment('a', [route(1, 'a'), route(2, 'b')]));
  await until(() => rig.reconciler.failures([route(1).key, route(2).key]).length === 2, 'two failures');
  attempts.length = 0;
  rig.routes.free(({ link }) => link === 'a');
  await until(() => attempts.length === 1, 'another attempt');
  rig.routes.free(({ link }) => link === 'a');
  await rig.reconciler.settle([route(1).key], bound());
  t.deepEqual(attempts, [`create ${route(1).key}`, `create ${route(1).key}`]);
});

test('what is freed while an attempt is under way that fails is tried once more', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.routes.failNext({ key: route(1).key });
  const { reached, release } = rig.routes.hold();
  rig.put(fragment('a', [route(1)]));
  await reached;
  rig.routes.free(() => true);
  release();
  await until(() => rig.routes.store.size === 1, 'the route');
  t.is(rig.routes.applies, 2);
});

test('a change by somebody else while the key is being written is not lost', async (t) => {
  const rig = await startRig(t);
  rig.put(fragment('a', [route(1)]));
  const { reached, release } = rig.routes.hold();
  await reached;
  rig.routes.tell(route(1).key, route(1, 'foreign').value);
  release();
  await rig.reconciler.settle([route(1).key], bound());
  t.is(rig.routes.visited.length, 2, 'written again: nobody knows which change was last');
  t.is(rig.routes.store.get(route(1).key)?.link, 'a');
});

test('a change by somebody else that was overwritten is not taken for the outcome, even if it is wanted by then', async (t) => {
  const rig = await startRig(t);
  rig.put(fragment('a', [route(1, 'ours')]));
  const { reached, release } = rig.routes.hold();
  await reached;
  rig.routes.tamper(route(1).key, route(1, 'theirs').value, { notice: true });
  rig.put(fragment('a', [route(1, 'theirs')]));
  release();
  await quiet(rig.reconciler);
  t.is(rig.routes.store.get(route(1).key)?.link, 'theirs');

  const again = rig.routes.hold();
  rig.put(fragment('a', [route(1, 'ours')]));
  await again.reached;
  rig.routes.tamper(route(1).key, undefined, { notice: true });
  rig.drop('a');
  again.release();
  await quiet(rig.reconciler);
  t.is(rig.routes.store.size, 0);
});

test('a write that fails while a list goes on is in doubt after it: the list may have passed there before', async (t) => {
  const rig = await startRig(t, {
    routes: { listsAside: true },
    fragments: [fragment('a', [route(1, 'a')])],
    options: { backoff: { minMs: 60_000, maxMs: 60_000 } },
  });
  await quiet(rig.reconciler);
  const { reached, release } = rig.routes.hold('list');
  rig.reconciler.resync('route');
  await reached;
  rig.routes.failNext({ key: route(1).key });
  rig.put(fragment('a', [route(1, 'b')]));
  await t.throwsAsync(rig.reconciler.settle([route(1).key], bound()), { name: 'SettleError' });
  rig.routes.tamper(route(1).key, route(1, 'half').value, { notice: false });
  release();
  await until(() => listsOf(rig, 'route') === 2, 'the list');
  rig.put(fragment('a', [route(1, 'a')]));
  await rig.reconciler.settle([route(1).key], bound());
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

test('what changes while it is being written is written again', async (t) => {
  const rig = await startRig(t);
  const { reached, release } = rig.routes.hold();
  rig.put(fragment('a', [route(1, 'a')]));
  await reached;
  rig.put(fragment('a', [route(1, 'b')]));
  const settled = rig.reconciler.settle([route(1).key], bound());
  release();
  await settled;
  t.is(rig.routes.store.get(route(1).key)?.link, 'b');
});
