import { setImmediate as nextTurn } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import { cluster, host, node, settings } from '../test/support/cluster-values.ts';
import { fragment, route } from '../test/support/fragments.ts';
import { startRig } from '../test/support/reconcile.ts';
import { clusterOf, service, slice } from '../test/support/service-values.ts';
import { until } from '../test/support/until.ts';
import type { Cluster } from './model/cluster.ts';
import { Planner } from './plan/planner.ts';
import { vxlan } from './plan/vxlan.ts';
import { Planning } from './planning.ts';

const peer = (n: number) => {
  const [high, low] = [n >> 8, n & 255];
  return node(`node-${n}`, {
    ips: `172.30.${high}.${low} fd30::${(n + 1).toString(16)}`,
    cidrs: `10.${high}.${low}.0/24 fd84:0:0:${n.toString(16)}::/64`,
    creationMs: n,
  });
};
const many = (count: number) => Array.from({ length: count }, (_, n) => peer(n));

/** A planning that looks at `current.cluster`, over a reconciler of fakes. */
async function stand(t: ExecutionContext, start: Cluster | undefined, more: Partial<typeof settings> = {}) {
  const used = { ...settings, ...more };
  const lags: number[] = [];
  const rig = await startRig(t, { options: { onCaughtUp: (durationMs) => lags.push(durationMs) } });
  const here = host();
  const current: { cluster: Cluster | undefined } = { cluster: start };
  const planning = new Planning({
    planner: new Planner(),
    state: rig.state,
    reconciler: rig.reconciler,
    input: () =>
      current.cluster && { nodeName: 'node-0', cluster: current.cluster, host: here, settings: used, backend: vxlan },
    onServices: () => undefined,
    log: pino({ enabled: false }),
  });
  let plans = 0;
  const begin = () => planning.start(() => plans++, rig.controller.signal);
  return { ...rig, current, planning, lags, begin, plans: () => plans };
}

test('a large plan takes many turns, in which a pod that is added gets its turn', async (t) => {
  const { planning, begin, put, reconciler } = await stand(t, cluster(...many(4_000)));
  begin();
  await nextTurn();
  put(fragment('pod', [route(1)]));
  await reconciler.settle([route(1).key], AbortSignal.timeout(20_000));
  t.is(planning.plan, undefined, 'the pod waited for the plan');
  let turns = 0;
  let timers = 0;
  const timer = setInterval(() => timers++, 1);
  for (; planning.plan === undefined && turns < 1_000_000; turns++) await nextTurn();
  clearInterval(timer);
  t.true(turns > 5 && timers > 5, `${turns} turns, ${timers} timers`);
});

test('one Node among thousands is planned and entered, and one that goes is withdrawn', async (t) => {
  const all = many(500);
  const { current, planning, begin, state, plans } = await stand(t, cluster(...all));
  begin();
  await until(() => plans() === 1, 'the first plan');
  t.is(planning.plan?.fragments.size, [...state.fragments()].length);
  t.true(planning.ownKeys.includes('link tulle.84'));
  const kept = state.fragment('node node-7');
  current.cluster = cluster(...all.slice(0, -1), peer(600));
  planning.request({ isEvent: false });
  await until(() => plans() === 2, 'the second plan');
  t.is(state.fragment('node node-7'), kept);
  t.deepEqual(
    ['node node-499', 'node node-600'].map((id) => state.fragment(id) !== undefined),
    [false, true],
  );
});

test('a burst of requests is one plan, and what comes during a plan is planned after it', async (t) => {
  const { planning, begin, plans, current } = await stand(t, cluster(peer(0), peer(1)));
  begin();
  await until(() => plans() === 1, 'the first plan');
  for (let i = 0; i < 100; i++) planning.request({ isEvent: true });
  await until(() => plans() === 2, 'the second plan');
  current.cluster = cluster(...many(4_000));
  planning.request({ isEvent: true });
  await nextTurn();
  await nextTurn();
  t.is(plans(), 2, 'it is still being planned');
  current.cluster = cluster(peer(0));
  planning.request({ isEvent: true });
  await until(() => plans() === 4, 'both plans');
  t.deepEqual(
    [...(planning.plan?.fragments.keys() ?? [])].filter((id) => id.startsWith('node ')),
    [],
  );
});

test('nothing is planned before the cluster is known, and then the event counts from its arrival on', async (t) => {
  const { planning, begin, plans, current, lags, state } = await stand(t, undefined);
  planning.request({ isEvent: true });
  begin();
  await nextTurn();
  await nextTurn();
  t.is(plans(), 0);
  current.cluster = cluster(peer(0), peer(1));
  planning.request({ isEvent: true });
  await until(() => plans() === 1, 'the plan');
  // Kinds without a driver here never settle; what they asked for is withdrawn.
  for (const { id } of [...state.fragments()]) state.replace(id, undefined);
  t.deepEqual(lags, []);
});

test('Services are entered after the node, and of a change only what it changed', async (t) => {
  const names = Array.from({ length: 200 }, (_, n) => `s${n}`);
  const services = names.map((name, n) => service(name, { clusterIps: `10.96.1.${n}` }));
  const slices = names.map((name, n) => slice(name, `10.84.1.${n}`));
  const { current, planning, begin, state, plans } = await stand(t, clusterOf(services, slices), {
    'services.mode': 'ebpf',
  });
  begin();
  await until(() => state.count('frontend') === 400 && state.count('backend-set') === 200, 'all Services');
  const fragments = new Map([...state.fragments()].map((each) => [each.id, each]));
  const changed = () => [...state.fragments()].filter((each) => fragments.get(each.id) !== each).map(({ id }) => id);
  const before = current.cluster as Cluster;
  const moved = slice('s7', '10.84.9.9');
  current.cluster = { ...before, endpointSlices: before.endpointSlices.with([['default/s7-1', moved]]) };
  planning.request({ isEvent: true });
  await until(() => plans() === 2 && changed().length > 0, 'the change');
  t.deepEqual(changed(), ['service default/s7']);
  current.cluster = { ...before, services: before.services.with([['default/s7', undefined]]) };
  planning.request({ isEvent: true });
  await until(() => state.count('frontend') === 398, 'the Service is gone');
  t.is(state.fragment('service default/s7'), undefined);
});

test('Services are nobody’s business while services.mode is off', async (t) => {
  const { begin, state, plans } = await stand(t, clusterOf([service('web')], [slice('web', '10.84.1.5')]));
  begin();
  await until(() => plans() === 1, 'the first plan');
  await nextTurn();
  t.is(state.count('frontend'), 0);
});
