import test from 'ava';
import { deleteQueueName } from '../../cni/protocol.ts';
import { ip } from '../../test/support/cluster-values.ts';
import type { PodLink } from '../model/items.ts';
import { podLinkAlias, podLinkName } from '../model/kernel-names.ts';
import { livePods, type PodEvidence } from './live-pods.ts';
import type { PodRecord } from './records.ts';

const record = (containerId: string): PodRecord => ({
  containerId,
  ifName: 'eth0',
  network: 'tulle',
  netns: { path: `/run/netns/${containerId}`, device: '4', inode: '1' },
  podNamespace: 'default',
  podName: containerId,
  ips: [ip('10.84.0.2')],
  mtuBytes: 1500,
  routeMtuBytes: 1450,
  createdMs: 1,
});
const link = (containerId: string, isDown = false) =>
  ({ name: podLinkName(containerId, 'eth0'), alias: podLinkAlias(`default/${containerId}`), isDown }) as PodLink & {
    isDown: boolean;
  };
const live = (evidence: Partial<PodEvidence>) =>
  livePods({ records: [], links: [], queued: [], hasNamespace: () => false, ...evidence });

test('a recorded pod lives by its link or by its namespace, until its runtime deletes it', (t) => {
  const records = [record('web')];
  t.deepEqual(live({ records, links: [link('web')] }), ['default/web']);
  t.deepEqual(live({ records, links: [link('web', true)] }), ['default/web'], 'down, but not by a DEL');
  t.deepEqual(live({ records, hasNamespace: () => true }), ['default/web']);
  t.deepEqual(live({ records }), []);
  t.deepEqual(live({ records, links: [link('web')], queued: [deleteQueueName('web', 'eth0')] }), []);
});

test('a link without a record is a pod by its alias, unless a DEL left it down', (t) => {
  t.deepEqual(live({ links: [link('b'), link('a'), link('deleted', true)] }), ['default/a', 'default/b']);
});
