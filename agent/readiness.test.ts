import test from 'ava';
import { cluster, host, node, settings } from '../test/support/cluster-values.ts';
import type { ListWatchStatus } from './cluster/list-watch.ts';
import { Planner } from './plan/planner.ts';
import { vxlan } from './plan/vxlan.ts';
import { obstaclesOf, type ReadinessView } from './readiness.ts';

const watch = (resource: string, status: Partial<ListWatchStatus>) => ({
  resource,
  resourceVersion: undefined,
  lastEventMs: undefined,
  synced: false,
  connected: false,
  error: undefined,
  relists: 0,
  expired: 0,
  objects: 0,
  problems: [],
  problemCount: 0,
  troubled: [],
  ...status,
});
const synced = { synced: true };
const { underlay } = new Planner().plan({
  nodeName: 'a',
  cluster: cluster(node('a', { ips: '172.30.0.11', cidrs: '10.84.0.0/24' })),
  host: host(),
  settings,
  backend: vxlan,
});

const READY: ReadinessView = {
  cluster: () => ({ resources: [watch('nodes', synced), watch('pods', synced)] }),
  underlay,
  notInstalled: undefined,
  failures: [],
};
const told = (view: Partial<ReadinessView>) => obstaclesOf({ ...READY, ...view });
const unplanned = (...resources: readonly ReturnType<typeof watch>[]) =>
  told({ underlay: undefined, cluster: () => ({ resources }) });

test('ready: no obstacle', (t) => {
  t.deepEqual(told({}), []);
});

test('until every cache has synced once, those that have not are named, with what they were told', (t) => {
  t.deepEqual(unplanned(watch('nodes', {}), watch('pods', synced)), ['the cluster API has not answered yet (nodes)']);
  t.deepEqual(unplanned(watch('nodes', synced), watch('pods', { error: 'forbidden' })), [
    'the cluster API cannot be read (pods): forbidden',
  ]);
  t.deepEqual(unplanned(watch('nodes', synced), watch('pods', synced)), ['the agent is starting']);
});

test('what is wrong with the Node comes first, then what fails in the kernel, each once', (t) => {
  const suspended = { ...underlay, suspended: true as const, problems: ['no Node named a'] };
  const failures = [new Error('no such device'), new Error('not installed')];
  t.deepEqual(told({ underlay: suspended, notInstalled: 'not installed', failures }), [
    'no Node named a',
    'not installed',
    'no such device',
  ]);
  t.is(told({ failures: Array.from({ length: 99 }, (_, n) => new Error(`failure ${n}`)) }).length, 10);
});

test('a problem of the Node that keeps no pod from starting is no obstacle', (t) => {
  t.deepEqual(told({ underlay: { ...underlay, problems: ['a podCIDR that is refused'] } }), []);
});
