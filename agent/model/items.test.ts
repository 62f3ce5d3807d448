import test from 'ava';
import { type Cidr, type IpAddress, parseCidr } from './ip.ts';
import { APPLY_ORDER, defaultMetric, item, keyOf, kindOf, memberOf, type Objects } from './items.ts';
import type { MacAddress } from './mac.ts';
import { backendSet } from './services.ts';

const mac = '02:00:00:00:00:01' as MacAddress;
const ip = '10.244.1.2' as IpAddress;
const ip6 = 'fd00::2' as IpAddress;

/** One object of each kind, and the key that it must have. */
const objects: { readonly [K in keyof Objects]: readonly [value: Objects[K], key: string] } = {
  sysctl: [{ path: 'net/ipv4/ip_forward', value: '1' }, 'sysctl net/ipv4/ip_forward'],
  link: [
    {
      type: 'vxlan',
      name: 'tulle.84',
      alias: 'tulle:vxlan',
      mac,
      mtuBytes: 1450,
      vni: 84,
      port: 8472,
      local: '192.0.2.1' as IpAddress,
      txChecksumOffload: true,
    },
    'link tulle.84',
  ],
  address: [{ link: 'tulle.84', ip, prefixLength: 32 }, 'address tulle.84 10.244.1.2'],
  set: [{ name: 'tulle-nodes-4', type: 'hash:ip', family: 'ipv4', maxElements: 65_536 }, 'set tulle-nodes-4'],
  member: [memberOf('tulle-ready-6', ip6), 'member tulle-ready-6 fd00::2/128'],
  'chain-part': [
    { family: 'ipv4', table: 'raw', chain: 'TULLE-PREROUTING', order: '10 tunnel', rules: [] },
    'chain-part ipv4 raw TULLE-PREROUTING 10 tunnel',
  ],
  'pod-link': [
    {
      name: 'tl0123456789ab',
      alias: 'tulle:pod:default/web',
      hostMac: mac,
      podMac: mac,
      mtuBytes: 1500,
      routeMtuBytes: 1450,
      ifName: 'eth0',
      netns: { path: '/run/netns/x', device: '4', inode: '4026532000' },
      ips: [ip],
    },
    'pod-link tl0123456789ab',
  ],
  source: [{ ip, mac }, 'source 10.244.1.2 02:00:00:00:00:01'],
  filter: [{ link: 'tulle0', program: '0123456789ab' }, 'filter tulle0'],
  fdb: [{ link: 'tulle.84', mac, destination: '192.0.2.2' as IpAddress }, 'fdb tulle.84 02:00:00:00:00:01'],
  'tun-path': [
    { link: 'tulle-tun', local: '192.0.2.1' as IpAddress, port: 8285, carriage: 'segments', encryption: 'none' },
    'tun-path tulle-tun',
  ],
  'tun-peer': [{ node: 'b', end: '192.0.2.2' as IpAddress, podCidrs: ['10.244.1.0/24' as Cidr] }, 'tun-peer b'],
  neighbour: [{ link: 'tulle.84', ip, mac }, 'neighbour tulle.84 10.244.1.2'],
  route: [
    { destination: '10.244.1.0/24' as Cidr, metric: 0, type: 'unicast', link: 'tulle.84' },
    'route 10.244.1.0/24 metric 0',
  ],
  'backend-set': [backendSet([{ ip, port: 8080 }]), 'backend-set 43882206ba7b89155410811022c137c3'],
  frontend: [
    {
      scope: 'internal',
      ip: ip6,
      port: 80,
      protocol: 'TCP',
      kind: 'cluster',
      target: 'refuse',
      service: 'default/web:http',
    },
    'frontend internal [fd00::2]:80/TCP',
  ],
  attachment: [{ hook: 'connect4', build: '0123456789ab' }, 'attachment connect4'],
};

for (const kind of APPLY_ORDER) {
  test(`a ${kind} has a readable key that names its kind`, (t) => {
    const [value, key] = objects[kind];
    t.is(keyOf(kind, value as Objects[typeof kind]) as string, key);
    t.is(kindOf(keyOf(kind, value as Objects[typeof kind])), kind);
  });
}

test('every kind has its place in the order of applying, once', (t) => {
  t.deepEqual([...APPLY_ORDER].sort(), Object.keys(objects).sort() as typeof APPLY_ORDER);
});

test('an item is frozen and carries the key of its value', (t) => {
  const made = item('sysctl', { path: 'net/ipv4/ip_forward', value: '1' }, ['link tulle.84']);
  t.is(made.key, 'sysctl net/ipv4/ip_forward');
  t.deepEqual(made.needs, ['link tulle.84']);
  t.true(Object.isFrozen(made));
  t.true(Object.isFrozen(made.value));
});

test('a route that moves to another device keeps its identity', (t) => {
  const [route] = objects.route;
  t.is(keyOf('route', route), keyOf('route', { ...route, link: 'eth0' }));
  t.not(keyOf('route', route), keyOf('route', { ...route, metric: 1024 }));
});

test('defaultMetric is what the kernel reports for a route written without one', (t) => {
  t.is(defaultMetric(parseCidr('10.0.0.0/8') as Cidr), 0);
  t.is(defaultMetric(parseCidr('fd00::/8') as Cidr), 1024);
});
