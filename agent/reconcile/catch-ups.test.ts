import test, { type ExecutionContext } from 'ava';
import { fragment, route, sysctl } from '../../test/support/fragments.ts';
import { quiet, startRig } from '../../test/support/reconcile.ts';
import { until } from '../../test/support/until.ts';
import type { AnyItem } from '../model/items.ts';

/** A reconciler on a clock that stands still unless told, and how old each event was when the kernel had it. */
async function stand(t: ExecutionContext) {
  const clock = { ms: 1_000 };
  const lags: number[] = [];
  const options = { now: () => clock.ms, onCaughtUp: (durationMs: number) => lags.push(durationMs) };
  const rig = await startRig(t, { options });
  const follow = (ageMs: number, ...items: readonly AnyItem[]) => {
    const followed = rig.reconciler.follow(ageMs);
    for (const { key } of items) followed.add([key]);
    followed.end();
  };
  const behindMs = () => rig.reconciler.status().behindMs;
  return { ...rig, clock, lags, follow, behindMs };
}

test('an event is in the kernel when the last of its keys is, in whatever lane', async (t) => {
  const { put, follow, routes, reconciler, clock, lags, behindMs } = await stand(t);
  routes.failNext({ key: route(2).key });
  put(fragment('a', [route(1), route(2), sysctl(1)]));
  follow(30, route(1), route(2), sysctl(1));
  await until(() => reconciler.status().failing.length === 1, 'a failure');
  t.deepEqual([lags, behindMs()], [[], 30]);
  clock.ms += 500;
  t.is(behindMs(), 530);
  await quiet(reconciler);
  t.deepEqual([lags, behindMs()], [[530], 0]);
});

test('an event counts from its arrival on, while its keys are still being told', async (t) => {
  const { put, reconciler, clock, lags, behindMs } = await stand(t);
  const followed = reconciler.follow(5);
  put(fragment('a', [route(1)]));
  followed.add([route(1).key]);
  await quiet(reconciler);
  clock.ms += 10;
  t.deepEqual([lags, behindMs()], [[], 15]);
  followed.end();
  t.deepEqual([lags, behindMs()], [[15], 0]);
});

test('an event that changes nothing in the kernel is not counted', async (t) => {
  const { put, follow, reconciler, lags } = await stand(t);
  put(fragment('a', [route(1)]));
  await quiet(reconciler);
  put(fragment('a', [route(1)]));
  follow(5, route(1));
  await quiet(reconciler);
  t.deepEqual(lags, []);
});

test('of two events that wait for one key the older one counts, and what is no longer wanted is waited for by none', async (t) => {
  const { put, drop, follow, routes, reconciler, clock, lags, behindMs } = await stand(t);
  routes.failNext({ key: route(1).key }, Infinity);
  put(fragment('a', [route(1)]));
  follow(0, route(1));
  await until(() => reconciler.status().failing.length === 1, 'a failure');
  clock.ms += 100;
  put(fragment('a', [route(1, 'b')]));
  follow(0, route(1));
  t.is(behindMs(), 100);
  drop('a');
  routes.heal();
  await until(() => lags.length > 0, 'the end of the wait');
  await quiet(reconciler);
  t.deepEqual([lags, behindMs()], [[100], 0]);
});

test('a key that was written while its kind became stale counts from the next list on', async (t) => {
  const { put, follow, routes, reconciler, lags, behindMs } = await stand(t);
  const written = routes.hold();
  put(fragment('a', [route(1)]));
  follow(7, route(1));
  await written.reached;
  routes.overrun();
  written.release();
  await quiet(reconciler);
  t.deepEqual([lags, behindMs()], [[7], 0]);
});
