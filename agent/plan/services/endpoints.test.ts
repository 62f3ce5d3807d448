import test from 'ava';
import fc from 'fast-check';
import { slice } from '../../../test/support/service-values.ts';
import { selectBackends } from './endpoints.ts';

const HTTP = { name: '', protocol: 'TCP' } as const;

/** The last digits of the cluster-wide ones | of the local ones. No zone: ''. */
const select = (endpoints: string, zone = 'z1') => {
  const { cluster, local } = selectBackends(HTTP, 'ipv4', [slice('web', endpoints)], zone || undefined);
  const last = (backends: typeof cluster) => backends.map(({ ip }) => ip.slice(-1)).join('');
  return `${last(cluster)}|${last(local)}`;
};

/** Endpoints as `endpoint` in test/support reads them, this node's zone → those of the cluster | local ones. */
const HINTS: readonly (readonly [why: string, endpoints: string, selected: string, zone?: string])[] = [
  ['zone hints choose', '1.1.1.1%z1 1.1.1.2%z2 1.1.1.3%z1%z2', '13|'],
  ['an endpoint without a hint switches them off', '1.1.1.1%z1 1.1.1.2 1.1.1.3%z2', '123|'],
  ['no hint for this zone does', '1.1.1.1%z2 1.1.1.2%z3', '12|'],
  ['a node without a zone does', '1.1.1.1%z1 1.1.1.2%z2', '12|', ''],
  ['node hints come before zone hints', '1.1.1.1%z1> 1.1.1.2%z1<', '2|'],
  ['no node hint for this node: zone hints', '1.1.1.1%z1> 1.1.1.2%z2>', '1|'],
  ['one endpoint without a node hint: zone hints', '1.1.1.1%z1 1.1.1.2%z2<', '1|'],
  ['neither: all', '1.1.1.1> 1.1.1.2>', '12|'],
  ['draining endpoints have no say in hints', '1.1.1.1%z1 1.1.1.2%z2 1.1.1.3~', '1|'],
  ['draining endpoints of the zone do not come before ready ones elsewhere', '1.1.1.1~%z1 1.1.1.2%z2', '2|'],
  ['draining ones, when nothing is ready, whatever their hints', '1.1.1.1~%z1 1.1.1.2~%z2', '12|'],
  ['local ones are not chosen by hints', '1.1.1.1@%z2 1.1.1.2%z1', '2|1'],
];
for (const [why, endpoints, selected, zone] of HINTS)
  test(`hints: ${why}`, (t) => {
    t.is(select(endpoints, zone), selected);
  });

test('ports are found by name and protocol, in slices of the family', (t) => {
  const slices = [
    slice('web', '1.1.1.1', { on: 'a:1 b:2 b:3/UDP' }),
    slice('web', 'fd00::1', { on: 'a:4', family: 'ipv6', name: 'six' }),
  ];
  const one = (name: string, protocol: 'TCP' | 'UDP', family: 'ipv4' | 'ipv6') =>
    selectBackends({ name, protocol }, family, slices, undefined).cluster.map(({ port }) => port);
  t.deepEqual(one('a', 'TCP', 'ipv4'), [1]);
  t.deepEqual(one('b', 'TCP', 'ipv4'), [2]);
  t.deepEqual(one('b', 'UDP', 'ipv4'), [3]);
  t.deepEqual(one('a', 'TCP', 'ipv6'), [4]);
  t.deepEqual(one('b', 'TCP', 'ipv6'), []);
});

test('the order of slices and of endpoints does not matter, also where one stands in several', (t) => {
  const states = ['', '@', '~', '~@', '%z1', '%z2', '%z1<', '%z2>', '@%z1<'];
  const anEndpoint = fc
    .tuple(fc.constantFrom('1', '2', '3'), fc.constantFrom(...states))
    .map(([n, how]) => `1.1.1.${n}${how}`);
  const someSlices = fc.array(fc.array(anEndpoint, { maxLength: 4 }), { maxLength: 4 });
  fc.assert(
    fc.property(someSlices, fc.infiniteStream(fc.nat()), (texts, random) => {
      const slices = texts.map((endpoints, i) => slice('web', endpoints.join(' '), { name: `web-${i}` }));
      const shuffled = slices.toSorted(() => ((random.next().value as number) % 2) - 0.5);
      const plain = (of: typeof slices) => {
        const { cluster, local } = selectBackends(HTTP, 'ipv4', of, 'z1');
        const text = (backends: typeof cluster) => backends.map(({ ip, port }) => `${ip}:${port}`).sort();
        return { cluster: text(cluster), local: text(local) };
      };
      t.deepEqual(plain(shuffled), plain(slices));
      const anything = texts.flat().length > 0;
      t.is(plain(slices).cluster.length > 0, anything, 'whatever may serve does');
    }),
  );
});
