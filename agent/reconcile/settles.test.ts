import { setImmediate as nextTurn } from 'node:timers/promises';
import test from 'ava';
import { fragment, route, sysctl } from '../../test/support/fragments.ts';
import { bound, printed, quiet, startRig } from '../../test/support/reconcile.ts';
import { until } from '../../test/support/until.ts';
import { KernelState } from './kernel-state.ts';
import { Settles } from './settles.ts';

test('settle: resolves once all keys are as wanted, present or absent', async (t) => {
  const rig = await startRig(t);
  await rig.reconciler.settle([route(1).key], bound());
  rig.put(fragment('a', [route(1), sysctl(1)]));
  await rig.reconciler.settle([route(1).key, sysctl(1).key], bound());
  t.true(rig.routes.store.has(route(1).key) && rig.sysctls.store.has(sysctl(1).key));
  const touched = rig.state.replace('a', undefined);
  await rig.reconciler.settle(touched, bound());
  t.is(rig.routes.store.size + rig.sysctls.store.size, 0);
});

test('settle: rejects at the first failed attempt at a key or at what it needs, with the cause', async (t) => {
  const rig = await startRig(t);
  const cause = new Error('refused');
  rig.sysctls.failNext({ key: sysctl(1).key }, 1, cause);
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key]), sysctl(1)]));
  const error = await t.throwsAsync(rig.reconciler.settle([route(1).key], bound()), { name: 'SettleError' });
  t.like(error, { key: sysctl(1).key, message: `cannot settle ${sysctl(1).key}: refused` });
  t.is(error?.cause, cause);
  await rig.reconciler.settle([route(1).key], bound());
});

test('settle: ends the backoff of its keys and of what they need', async (t) => {
  const rig = await startRig(t, { options: { backoff: { minMs: 60_000, maxMs: 60_000 } } });
  rig.sysctls.failNext({ key: sysctl(1).key });
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key]), sysctl(1)]));
  await until(() => rig.reconciler.status().failing.length === 1, 'a failure');
  await rig.reconciler.settle([route(1).key], bound());
  t.true(rig.routes.store.has(route(1).key));
});

test('settle: what is merely blocked waits', async (t) => {
  const rig = await startRig(t);
  rig.put(fragment('a', [route(1, 'a', [sysctl(1).key])]));
  const settled = rig.reconciler.settle([route(1).key], bound());
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
  const other = rig.reconciler.settle([route(1).key], bound());
  rig.controller.abort(new Error('shutdown'));
  await t.throwsAsync(other, { message: 'shutdown' });
  await t.throwsAsync(rig.reconciler.settle([], bound()), { message: 'shutdown' });
  await t.throwsAsync(rig.reconciler.settle([], own.signal), { message: 'the caller left' });
});

test('settle: refuses a key of a kind without a driver, which would wait for ever', async (t) => {
  const rig = await startRig(t);
  await t.throwsAsync(rig.reconciler.settle(['link x'], bound()), { instanceOf: TypeError });
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
  const settled = rig.reconciler.settle([route(250).key], bound());
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
  const error = await t.throwsAsync(rig.reconciler.settle([route(1).key], bound()), { name: 'SettleError' });
  t.like(error?.cause, { message: 'injected list failure' });
  await rig.reconciler.settle([route(1).key], bound());
});

test('settle: a failed attempt at what is no longer wanted does not reject', async (t) => {
  const rig = await startRig(t);
  const { reached, release } = rig.routes.hold();
  rig.routes.failNext({ key: route(1).key, action: 'create' });
  rig.put(fragment('a', [route(1)]));
  await reached;
  const gone = rig.reconciler.settle(rig.state.replace('a', undefined), bound());
  release();
  await gone;
  t.false(rig.routes.store.has(route(1).key));
});

test('what is wanted back while something else is being written is not settled yet', async (t) => {
  const rig = await startRig(t, { fragments: [fragment('a', [route(1, 'a')])] });
  await quiet(rig.reconciler);
  const { reached, release } = rig.routes.hold();
  rig.put(fragment('a', [route(1, 'b')]));
  await reached;
  rig.put(fragment('a', [route(1, 'a')]));
  const settled = rig.reconciler.settle([route(1).key], bound()).then(() => rig.routes.store.get(route(1).key)?.link);
  await nextTurn();
  release();
  t.is(await settled, 'a');
  t.deepEqual(printed(rig.routes.written), [
    `create ${route(1).key}`,
    `update ${route(1).key}`,
    `update ${route(1).key}`,
  ]);
});

test('settle: one more who waits costs a look at its own keys, however many wait', async (t) => {
  let looks = 0;
  const settles = new Settles(new KernelState({} as never), () => {
    looks++;
    return false;
  });
  const end = new AbortController();
  const waiting = Array.from({ length: 100 }, (_, n) => settles.wait([route(n).key], end.signal));
  t.is(looks, 100);
  end.abort(new Error('over'));
  await t.throwsAsync(Promise.all(waiting), { message: 'over' });
  await Promise.allSettled(waiting);
});
