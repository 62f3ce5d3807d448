import test from 'ava';
import { host, ip, settings as standard } from '../../../test/support/cluster-values.ts';
import { selfNode } from '../../../test/support/service-values.ts';
import { type HostPortPod, hostPortsId } from '../../model/attachment.ts';
import type { AnyItem } from '../../model/items.ts';
import type { PortMapping } from '../../model/port-mapping.ts';
import { frontendId } from '../../model/services.ts';
import { planGuard } from './guard.ts';
import { hostPortIps, planHostPorts } from './host-ports.ts';

const settings = { ...standard, 'services.mode': 'ebpf' } as const;
const guard = planGuard([selfNode], new Map(), [], settings);
const links = host({ ips: '172.30.0.11 192.0.2.9 fd30::11 127.0.0.1 ::1 fe80::1 10.84.0.1' });
const ips = hostPortIps(links, guard);

const pod = (name: string, createdMs: number, ...portMappings: PortMapping[]): HostPortPod => ({
  containerId: name,
  ifName: 'eth0',
  netns: { path: `/run/netns/${name}`, device: '1', inode: '1' },
  podNamespace: 'default',
  podName: name,
  podUid: `uid-${name}`,
  createdMs,
  ips: ['10.84.0.5', 'fd84::5'].map(ip),
  portMappings,
});
const web: PortMapping = { hostPort: 8080, containerPort: 80, protocol: 'TCP' };

/** `8080/TCP at IP -> backend`, of what sockets would look up. */
function linesOf(items: readonly AnyItem[]): readonly string[] {
  const backends = new Map(
    items.flatMap(({ kind, value }) => (kind === 'backend-set' ? [[value.id as string, value.backends]] : [])),
  );
  return items.flatMap((each) => {
    if (each.kind !== 'frontend') return [];
    const to = backends.get(each.value.target)?.map(({ ip: address, port }) => `${address} ${port}`);
    return [`${frontendId(each.value)} -> ${to?.join()}`];
  });
}

function planned(...pods: readonly HostPortPod[]) {
  const fragments = planHostPorts(pods, { ips, guard, settings });
  return new Map(fragments.map(({ id, items, problems, rank }) => [id, { lines: linesOf(items), problems, rank }]));
}
const planOf = (...mappings: PortMapping[]) =>
  planned(pod('web', 7, ...mappings)).get('host-ports web/eth0') ?? { lines: [], problems: [], rank: '' };

test('a host port leads to the pod at every address of the node that others reach, in both families', (t) => {
  const { lines, problems, rank } = planOf(web);
  t.deepEqual(problems, []);
  t.deepEqual(lines, [
    'internal 172.30.0.11:8080/TCP -> 10.84.0.5 80',
    'internal 192.0.2.9:8080/TCP -> 10.84.0.5 80',
    'internal [fd30::11]:8080/TCP -> fd84::5 80',
  ]);
  t.is(rank, '000000000000007/uid-web', 'by its age a Service may have the place instead');
});

test('a host IP narrows it down: to one address, or to a family', (t) => {
  const at = (hostIp: string) => planOf({ ...web, hostIp: ip(hostIp) });
  t.deepEqual(at('192.0.2.9').lines, ['internal 192.0.2.9:8080/TCP -> 10.84.0.5 80']);
  t.deepEqual(at('::').lines, ['internal [fd30::11]:8080/TCP -> fd84::5 80']);
  t.is(at('0.0.0.0').lines.length, 2);
});

for (const [hostIp, reason] of [
  ['203.0.113.1', /host port 203\.0\.113\.1:8080\/TCP: this node has no such address/],
  ['127.0.0.1', /at a loopback address; name another/],
  ['fe80::1', /at a link-local address/],
  ['10.84.0.1', /this node has no such address for it/],
] as const)
  test(`served nowhere, with the reason: ${hostIp}`, (t) => {
    const { lines, problems } = planOf({ ...web, hostIp: ip(hostIp) });
    t.deepEqual(lines, []);
    t.regex(problems.join(), reason);
  });

test('a pod without an address of the family cannot be reached over it, which matters where that one was asked for', (t) => {
  const ipv4Only = (mapping: PortMapping) => ({ ...pod('web', 7, mapping), ips: [ip('10.84.0.5')] });
  const both = planned(ipv4Only(web)).get('host-ports web/eth0');
  t.deepEqual([both?.lines.length, both?.problems], [2, []]);
  const other = planned(ipv4Only({ ...web, hostIp: ip('fd30::11') })).get('host-ports web/eth0');
  t.regex(`${other?.problems}`, /the pod has no ipv6 address/);
});

test("the node's own ports are not given away, and a port asked for twice leads to one place", (t) => {
  const kubelet = planOf({ hostPort: 10_250, containerPort: 1, protocol: 'TCP' });
  t.regex(kubelet.problems.join(), /10250\/TCP: at 172\.30\.0\.11, .* for the node itself/);
  const twice = planOf({ ...web, hostIp: ip('192.0.2.9') }, { ...web, containerPort: 81 });
  t.true(twice.lines.includes('internal 192.0.2.9:8080/TCP -> 10.84.0.5 80'));
  t.deepEqual([twice.lines.length, twice.problems.length], [3, 1]);
});

test('of two pods the younger has the port, whatever the order: the older is on its way out', (t) => {
  const [old, young] = [pod('old', 1, web), pod('young', 2, { ...web, hostIp: ip('192.0.2.9') })];
  const plan = planned(old, young);
  t.deepEqual(plan, planned(young, old));
  t.deepEqual(plan.get(hostPortsId(young))?.lines, ['internal 192.0.2.9:8080/TCP -> 10.84.0.5 80']);
  t.is(plan.get(hostPortsId(old))?.lines.length, 2);
  t.regex(`${plan.get(hostPortsId(old))?.problems}`, /at 192\.0\.2\.9, default\/young, which came later, has it/);
});

test('in the mode iptables it is rules, and brings the chains that lead to it', (t) => {
  const fragments = planHostPorts([pod('web', 7, web)], {
    ips,
    guard,
    settings: { ...settings, 'services.mode': 'iptables' },
  });
  const own = fragments.filter(({ shared }) => !shared);
  t.deepEqual(
    own.map(({ id }) => id),
    ['host-ports web/eth0'],
  );
  const rules = own.flatMap(({ items }) =>
    items.flatMap((each) => (each.kind === 'chain-part' ? each.value.rules : [])),
  );
  const targets = rules.flatMap(({ args }) => (args.includes('DNAT') ? [args.at(-1)] : []));
  t.deepEqual(new Set(targets), new Set(['10.84.0.5:80', '[fd84::5]:80']));
  const marking = rules.filter(({ args }) => args.includes('--set-xmark'));
  t.deepEqual(marking, [], 'who comes from outside keeps the source address');
  t.true(fragments.length > 1);
});
