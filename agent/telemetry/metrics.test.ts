import test, { type ExecutionContext } from 'ava';
import { fragment, route, sysctl } from '../../test/support/fragments.ts';
import { quiet, startRig } from '../../test/support/reconcile.ts';
import { tunPeer, tunStatus } from '../../test/support/tun-values.ts';
import { until } from '../../test/support/until.ts';
import { FAMILIES_OF_METRICS, type MetricsView } from './families.ts';
import { healthPage, stuckLanes } from './health.ts';
import { Metrics } from './metrics.ts';

const WATCH = {
  resource: 'nodes',
  objects: 2,
  synced: true,
  connected: false,
  lastEventMs: 1500,
  relists: 3,
  expired: 1,
  problemCount: 1,
  troubled: [['n2', 1]] as const,
};

/** Over a reconciler whose second route cannot be written, and whose third waits for a sysctl. */
async function stand(t: ExecutionContext) {
  const clock = { ms: 0 };
  const rig = await startRig(t, { options: { onBatch: (report) => metrics.batch(report) } });
  const view = (): Omit<MetricsView, 'process'> => ({
    version: '1.2.3',
    host: { kernel: '6.1.0', iptables: 'nft' },
    obstacles: [],
    attachments: [1, 2],
    addresses: [{ family: 'ipv4', used: 2, resting: 1, free: 250 }],
    problems: [],
    cluster: {
      resources: [
        WATCH,
        { ...WATCH, resource: 'pods', synced: false, lastEventMs: undefined, problemCount: 0, troubled: [] },
      ],
    },
    tunnel: tunStatus(
      tunPeer('b', { sent: { packets: 3, bytes: 4_000 }, dropped: { replayed: 2, forged: 0 } }),
      tunPeer('c', { state: 'refused', problem: 'nobody listens' }),
    ),
    kernel: rig.reconciler.status(),
  });
  const metrics = new Metrics(view, () => clock.ms);
  rig.routes.failNext({ key: route(2).key }, Infinity);
  rig.put(
    fragment('a', [route(1), route(2), route(3, 'a', [sysctl(1).key])]),
    fragment('b', [], { cause: 'service default/web', problems: ['one', 'another'] }),
    fragment('c', [], { cause: 'services', problems: ['of no object'] }),
  );
  await until(
    () => ['failing', 'blocked'].every((what) => rig.reconciler.status()[what as 'failing'].length > 0),
    'a failure',
  );
  const lines = async () => (await metrics.page()).body.split('\n');
  return { ...rig, metrics, lines, clock, view };
}

test('thousands of bad objects cost a hundred lines', async (t) => {
  const troubled = Array.from({ length: 100 }, (_, i) => [`default/s${i}`, 1] as const);
  const view = (await stand(t)).view();
  const resources = ['services', 'endpointslices'].map((resource) => ({ ...WATCH, resource, troubled }));
  const metrics = new Metrics(() => ({ ...view, cluster: { resources } }));
  const lines = (await metrics.page()).body.split('\n').filter((line) => line.startsWith('tulle_object_problems{'));
  t.is(lines.length, 100);
});

test('one line a value, read when somebody asks', async (t) => {
  const { metrics, lines, routes, reconciler } = await stand(t);
  metrics.call({ verb: 'ADD', code: 0, durationMs: 2.5 });
  metrics.call({ verb: 'ADD', code: 11, durationMs: 700 });
  metrics.list({ lane: 'netlink', kind: 'route', durationMs: 4 });
  metrics.list({ lane: 'netlink', kind: 'route', durationMs: 60_000, error: new Error('no answer') });
  metrics.caughtUp(30);
  const text = await lines();
  for (const line of [
    `tulle_build_info{version="1.2.3",runtime="${process.version}",kernel="6.1.0",iptables="nft"} 1`,
    'tulle_ready 1',
    'tulle_attachments 2',
    'tulle_addresses{family="ipv4",state="resting"} 1',
    'tulle_problems{about="cluster"} 1',
    'tulle_problems{about="plan"} 3',
    'tulle_object_problems{about="cluster",kind="node",namespace="",name="n2"} 1',
    'tulle_object_problems{about="plan",kind="service",namespace="default",name="web"} 2',
    'tulle_reconcile_wanted_items{lane="netlink",kind="route"} 3',
    'tulle_reconcile_held_items{lane="netlink",kind="route"} 1',
    'tulle_reconcile_dirty_items{lane="netlink",kind="route"} 2',
    'tulle_reconcile_failing_items{lane="netlink",kind="route"} 1',
    'tulle_reconcile_blocked_items{lane="netlink",kind="route"} 1',
    'tulle_reconcile_changes_total{lane="netlink",kind="route",op="create"} 1',
    'tulle_reconcile_changes_total{lane="netlink",kind="route",op="remove"} 0',
    'tulle_watch_synced{resource="pods"} 0',
    'tulle_watch_connected{resource="nodes"} 0',
    'tulle_watch_last_event_timestamp_seconds{resource="nodes"} 1.5',
    'tulle_watch_expired_total{resource="nodes"} 1',
    'tulle_cni_call_duration_seconds_bucket{le="0.003",verb="ADD",code="0"} 1',
    'tulle_cni_call_duration_seconds_count{verb="ADD",code="11"} 1',
    'tulle_reconcile_list_duration_seconds_count{lane="netlink",kind="route"} 1',
    'tulle_problems{about="tunnel"} 1',
    'tulle_tunnel_peers{state="refused"} 1',
    'tulle_tunnel_peer_agreed{node="c"} 0',
    'tulle_tunnel_peer_bytes_total{node="b",direction="sent"} 4000',
    'tulle_tunnel_peer_packets_total{node="c",direction="received"} 0',
    'tulle_tunnel_peer_dropped_total{node="b",reason="replayed"} 2',
    'tulle_api_to_kernel_duration_seconds_sum 0.03',
    'tulle_api_to_kernel_behind_seconds 0',
  ])
    t.true(text.includes(line), line);
  t.false(text.some((line) => line.startsWith('tulle_watch_last_event_timestamp_seconds{resource="pods"}')));
  t.regex(text.join('\n'), /tulle_reconcile_batch_duration_seconds_count\{lane="netlink",kind="route"\} [1-9]/);
  // Retries go on meanwhile.
  t.regex(text.join('\n'), /tulle_lane_busy_seconds\{lane="netlink"\} \d/);
  t.true(Number(/process_resident_memory_bytes (\d+)/.exec(text.join('\n'))?.[1]) > 10e6);
  routes.heal();
  reconciler.resync();
});

test('a text lasts a second, however many ask; a counter never counts twice what it read', async (t) => {
  const { lines, clock, drop, reconciler } = await stand(t);
  const first = await lines();
  drop('a');
  await quiet(reconciler);
  clock.ms += 999;
  t.is((await lines()).join('\n'), first.join('\n'));
  clock.ms += 1;
  const removed = 'tulle_reconcile_changes_total{lane="netlink",kind="route",op="remove"} 1';
  t.deepEqual([first.includes(removed), (await lines()).includes(removed)], [false, true]);
  clock.ms += 1_000;
  t.true((await lines()).includes(removed));
});

test('every metric has a help text, a unit or a count in its name, and few labels', async (t) => {
  const { lines } = await stand(t);
  const text = await lines();
  for (const { name, type, labels } of FAMILIES_OF_METRICS) {
    t.is(type === 'counter', name.endsWith('_total'), name);
    t.true(labels.length <= 4, name);
  }
  const named = text.flatMap((line) => /^# TYPE (\S+)/.exec(line)?.[1] ?? []);
  t.deepEqual(named.toSorted(), text.flatMap((line) => /^# HELP (\S+) \S/.exec(line)?.[1] ?? []).toSorted());
  t.is(new Set(named).size, named.length);
});

test('health: any reason is a 503 with all of them; a lane is stuck after a minute and a half', (t) => {
  t.like(healthPage([]), { status: 200, body: 'ok\n' });
  t.like(healthPage(['one', 'two']), { status: 503, body: 'one\ntwo\n' });
  const work = (durationMs: number) => ({ netlink: { operation: 'list route', durationMs } });
  t.deepEqual(stuckLanes(work(89_000)), []);
  t.deepEqual(stuckLanes(work(125_000)), [
    'the lane netlink is stuck: expected "list route" to end within 90 s, got nothing for 125 s; end the agent, which changes nothing in the kernel, and another one goes on',
  ]);
});
