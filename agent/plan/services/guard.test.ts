import test from 'ava';
import fc from 'fast-check';
import { cidr, ip, node, settings } from '../../../test/support/cluster-values.ts';
import { selfNode } from '../../../test/support/service-values.ts';
import { containsIp } from '../../model/ip.ts';
import type { Frontend, FrontendKind } from '../../model/services.ts';
import { addressOfUrl, cidrAround, differences, nodePortIps, planGuard, refusalOf } from './guard.ts';
import type { ServiceSettings } from './settings.ts';

const nodes = [selfNode, node('b', { ips: '172.30.0.12', cidrs: '10.84.1.0/24', creationMs: 1 })];
const guardWith = (more: Partial<ServiceSettings> = {}) =>
  planGuard(nodes, new Map(), [{ ip: ip('172.30.0.1'), port: 6444 }], { ...settings, ...more });
const guard = guardWith({
  clusterCidrs: [cidr('10.200.0.0/16')],
  'services.externalAddresses': [cidr('192.0.2.0/24'), cidr('172.30.0.0/16'), cidr('10.0.0.0/8')],
});

const refusal = (
  kind: FrontendKind,
  address: string,
  port = 80,
  protocol: Frontend['protocol'] = 'TCP',
  owner?: string,
) => refusalOf({ ip: ip(address), port, protocol, kind }, owner, guard);

test('no frontend covers what the cluster itself needs', (t) => {
  t.is(refusal('external', '192.0.2.1'), undefined);
  t.is(refusal('external', '172.30.0.12'), undefined, "a node's address may be an external one");
  t.regex(refusal('external', '172.30.0.12', 10_250) ?? '', /10250\/TCP is for the node itself/);
  t.regex(refusal('external', '172.30.0.11', 8472, 'UDP') ?? '', /8472\/UDP is for the node itself/);
  t.is(refusal('external', '172.30.0.11', 8472, 'TCP'), undefined);
  t.regex(refusal('external', '172.30.0.1', 6444) ?? '', /the API server answers at its port 6444/);
  t.is(refusal('external', '172.30.0.1', 443), undefined);
  t.regex(refusal('external', '10.84.1.7') ?? '', /it is in the pods' 10\.84\.1\.0\/24/);
  t.regex(refusal('load-balancer', '10.200.9.9') ?? '', /it is in the pods' 10\.200\.0\.0\/16/);
  t.regex(
    refusal('external', '192.0.2.1', 80, 'TCP', 'kube-system/dns') ?? '',
    /cluster address of Service kube-system\/dns/,
  );
  t.regex(refusal('node-port', '172.30.0.11', 6443) ?? '', /for the node itself/);
  t.regex(refusal('cluster', '172.30.0.12') ?? '', /the address of a node/);
  t.regex(refusal('cluster', '172.30.0.1', 0, 'any') ?? '', /of the API server/);
  t.regex(refusal('cluster', '10.84.0.1') ?? '', /it is in the pods'/);
  t.is(refusal('cluster', '10.96.0.1', 443), undefined);
  for (const special of ['127.0.0.1', '::1', '169.254.169.254', 'fe80::1', '224.0.0.1', 'ff02::1', '0.0.0.0', '::'])
    t.regex(refusal('external', special) ?? '', /^it is a .* address$/, special);
});

test('external addresses need services.externalAddresses; those of load balancers only if it is set', (t) => {
  const of = (kind: FrontendKind, address: string, allowed: readonly string[]) =>
    refusalOf(
      { ip: ip(address), port: 80, protocol: 'TCP', kind },
      undefined,
      guardWith({ 'services.externalAddresses': allowed.map(cidr) }),
    );
  t.regex(of('external', '192.0.2.1', []) ?? '', /not in services\.externalAddresses: add its range/);
  t.is(of('load-balancer', '192.0.2.1', []), undefined);
  t.regex(of('load-balancer', '192.0.2.1', ['198.51.100.0/24']) ?? '', /not in services\.externalAddresses/);
  t.is(of('load-balancer', '192.0.2.1', ['192.0.2.0/24']), undefined);
  t.is(of('external', '2001:db8::1', ['2001:db8::/32']), undefined);
});

test('a CIDR that contains an address is found as by asking each', (t) => {
  const cidrs = ['10.84.0.0/24', '10.84.0.0/16', '10.0.0.0/8', 'fd00::/8', 'fd84::/64', '172.30.0.0/31'].map(cidr);
  const addresses = ['10.84.0.1', '10.84.1.1', '10.1.1.1', '11.0.0.1', 'fd84::1', 'fd00::1', 'fe00::1', '172.30.0.2'];
  fc.assert(
    fc.property(fc.subarray(cidrs), fc.constantFrom(...addresses), (some, text) => {
      const { podCidrs } = planGuard([], new Map(), [], { ...settings, clusterCidrs: some });
      const found = cidrAround(podCidrs, ip(text));
      t.is(
        found !== undefined,
        some.some((each) => containsIp(each, ip(text))),
      );
      t.true(found === undefined || containsIp(found, ip(text)));
    }),
  );
});

test('differences tells which cluster addresses two guards may judge differently', (t) => {
  const more = planGuard([...nodes, node('c', { ips: '172.30.0.13', cidrs: '10.84.2.0/24' })], new Map(), [], settings);
  const isDifferent = differences(guardWith(), more);
  const of = (text: string) => isDifferent(ip(text));
  t.deepEqual(['172.30.0.13', '10.84.2.9', '172.30.0.1'].map(of), [true, true, true]);
  t.deepEqual(['10.96.0.1', '10.84.1.9', '172.30.0.12'].map(of), [false, false, false]);
});

test("node ports are at the Node's InternalIPs, or at the host's addresses inside the setting, never on loopback", (t) => {
  const hostIps = ['127.0.0.1', '::1', 'fe80::1', '172.30.0.11', '192.0.2.9', '10.84.0.1', 'fd30::11'].map(ip);
  const places = { hostIps, underlayIps: ['172.30.0.11', '172.30.0.12'].map(ip) };
  const at = (...inside: string[]) =>
    nodePortIps(selfNode, places, guardWith(), { ...settings, 'services.nodePortAddresses': inside.map(cidr) });
  t.deepEqual<readonly string[], string[]>(at(), ['172.30.0.11', 'fd30::11']);
  t.deepEqual<readonly string[], string[]>(at('0.0.0.0/0', '::/0'), ['172.30.0.11', '192.0.2.9', 'fd30::11']);
  t.deepEqual<readonly string[], string[]>(at('192.0.2.0/24'), ['192.0.2.9']);
  const away = nodePortIps(undefined, places, guardWith(), settings);
  t.deepEqual<readonly string[], string[]>(away, ['172.30.0.11'], 'of a Node that is away: what the host still has');
});

test('the address of a URL', (t) => {
  t.deepEqual<unknown, unknown>(addressOfUrl('https://192.0.2.1:6443'), { ip: '192.0.2.1', port: 6443 });
  t.deepEqual<unknown, unknown>(addressOfUrl('https://[fd00::1]'), { ip: 'fd00::1', port: 443 });
  t.deepEqual([addressOfUrl('https://api.example'), addressOfUrl('')], [undefined, undefined]);
});
