import test from 'ava';
import { cidr, ip } from '../../test/support/cluster-values.ts';
import type { PodRecord } from './records.ts';
import { strayProblem } from './strays.ts';

const record = (podName: string, ...ips: readonly string[]): PodRecord => ({
  containerId: podName,
  ifName: 'eth0',
  network: 'tulle',
  netns: { path: '/run/netns/x', device: '4', inode: '1' },
  podNamespace: 'default',
  podName,
  ips: ips.map(ip),
  mtuBytes: 1500,
  routeMtuBytes: 1450,
  createdMs: 1,
});
const podCidrs = [cidr('10.84.5.0/24'), cidr('fd84:0:0:5::/64')];

test('pods with addresses of a former podCIDR are named, with the address that is outside', (t) => {
  t.is(strayProblem([record('in', '10.84.5.2', 'fd84:0:0:5::2')], podCidrs), undefined);
  t.is(
    strayProblem([record('in', '10.84.5.2'), record('old', '10.84.1.2', 'fd84:0:0:5::3')], podCidrs),
    "1 pod has addresses outside the node's podCIDR (10.84.5.0/24, fd84:0:0:5::/64): default/old (10.84.1.2); they keep them and reach others by the node's address, but other nodes have no route to them any more: re-create them",
  );
  const many = Array.from({ length: 12 }, (_, i) => record(`p${i}`, '10.84.1.2'));
  t.regex(strayProblem(many, podCidrs) ?? '', /^12 pods have .*default\/p9 \(10\.84\.1\.2\) and 2 more; /);
});
