import test from 'ava';
import { ip, settings } from '../../../test/support/cluster-values.ts';
import { frontendLines, selfNode } from '../../../test/support/service-values.ts';
import { planGuard } from './guard.ts';
import { type HostPortPod, hostPortFragment, type PortMapping, planHostPorts } from './host-ports.ts';

const guard = planGuard([selfNode], new Map(), [], settings);
const hostIps = ['172.30.0.11', '192.0.2.9', 'fd30::11'].map(ip);
const pod = (...portMappings: PortMapping[]): HostPortPod => ({
  name: 'default/web',
  uid: 'u',
  creationMs: 7,
  ips: ['10.84.0.5', 'fd84::5'].map(ip),
  portMappings,
});
const plan = (...mappings: PortMapping[]) => planHostPorts(pod(...mappings), hostIps, guard);

test('a host port leads to the pod at every address of the node, in both families, and keeps the source', (t) => {
  const { frontends, sets, problems } = plan({ hostPort: 8080, containerPort: 80, protocol: 'TCP' });
  const text = frontendLines(frontends, sets);
  t.deepEqual(problems, []);
  t.is(
    text,
    ['external', 'internal']
      .flatMap((scope) => [
        `${scope} 172.30.0.11:8080/TCP -> 10.84.0.5:80`,
        `${scope} 192.0.2.9:8080/TCP -> 10.84.0.5:80`,
        `${scope} [fd30::11]:8080/TCP -> fd84::5:80`,
      ])
      .join('\n'),
  );
});

test('a host IP narrows it down; one that is not of this node is refused', (t) => {
  const { frontends } = plan({ hostPort: 53, containerPort: 53, protocol: 'UDP', hostIp: ip('192.0.2.9') });
  t.deepEqual<string[], string[]>([...new Set(frontends.map((each) => each.ip))], ['192.0.2.9']);
  const foreign = plan({ hostPort: 80, containerPort: 80, protocol: 'TCP', hostIp: ip('203.0.113.1') });
  t.deepEqual(foreign.frontends, []);
  t.regex(foreign.problems.join(), /at 203\.0\.113\.1: this node does not have the address/);
});

test("the node's own ports are not given away, and a port asked for twice has one owner", (t) => {
  t.regex(plan({ hostPort: 10250, containerPort: 1, protocol: 'TCP' }).problems.join(), /for the node itself/);
  const mapping = { hostPort: 80, protocol: 'TCP', hostIp: ip('192.0.2.9') } as const;
  const { frontends, sets, problems } = plan({ ...mapping, containerPort: 1 }, { ...mapping, containerPort: 2 });
  t.deepEqual([frontends.length, sets.length, problems.length], [2, 1, 2]);
});

test('the fragment ranks by the age of the pod', (t) => {
  const fragment = hostPortFragment(pod(), plan({ hostPort: 8080, containerPort: 80, protocol: 'TCP' }));
  t.is(fragment.rank, '000000000000007/u');
  t.deepEqual(
    fragment.items.map(({ kind }) => kind),
    ['backend-set', 'backend-set', 'frontend', 'frontend', 'frontend'],
  );
});
