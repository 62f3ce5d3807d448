import { setImmediate as nextTurn } from 'node:timers/promises';
import test from 'ava';
import fc from 'fast-check';
import { type Cidr, containsCidr, overlaps } from '../../agent/model/ip.ts';
import { cidr } from '../../test/support/cluster-values.ts';
import { startControllers } from './controllers.ts';
import { KINDS } from './kinds.ts';
import { arrayAt } from './objects.ts';
import { CidrPool } from './pod-cidrs.ts';
import { Store } from './store.ts';

const node = (name: string, podCIDRs?: readonly string[]) => ({
  metadata: { name },
  spec: podCIDRs ? { podCIDRs } : {},
});

const cidrsOf = (store: Store, name: string) =>
  arrayAt(store.get(KINDS.node, { namespace: '', name }).object, 'spec', 'podCIDRs').join(' ');

function clusterOf(
  t: { teardown(fn: () => void): void },
  clusterCidrs: readonly Cidr[],
  nodePrefixLengths?: { ipv4: number; ipv6: number },
) {
  const store = new Store();
  const stop = new AbortController();
  t.teardown(() => stop.abort());
  startControllers(
    store,
    { clusterCidrs, serviceCidrs: [], ...(nodePrefixLengths && { nodePrefixLengths }) },
    undefined,
    stop.signal,
  );
  return store;
}

test('CidrPool: hands out blocks in turn, and one that came back last', (t) => {
  const pool = new CidrPool(cidr('10.0.0.0/22'), 24);
  const taken = [1, 2, 3].map(() => {
    const block = pool.take() as Cidr;
    pool.claim(block);
    return block;
  });
  t.deepEqual(taken, ['10.0.0.0/24', '10.0.1.0/24', '10.0.2.0/24'].map(cidr));
  pool.release(cidr('10.0.0.0/24'));
  t.is(pool.take(), cidr('10.0.3.0/24'));
});

test('CidrPool: refuses what cannot be divided', (t) => {
  for (const [text, length] of [
    ['10.0.0.0/25', 24],
    ['10.0.0.0/24', 33],
    ['fd00::/32', 64],
  ] as const) {
    t.throws(() => new CidrPool(cidr(text), length), { instanceOf: RangeError, message: /expected a prefix length/ });
  }
});

test('CidrPool: a block never overlaps what is claimed, until nothing is left', (t) => {
  const claims = fc.array(fc.tuple(fc.integer({ min: 0, max: 1023 }), fc.integer({ min: 20, max: 30 })), {
    maxLength: 8,
  });
  fc.assert(
    fc.property(claims, (parts) => {
      const whole = cidr('10.0.0.0/22');
      const pool = new CidrPool(whole, 26);
      const claimed = parts.map(([host, length]) => cidr(`10.0.${host >> 8}.${host & 255}/${length}`));
      for (const claim of claimed) pool.claim(claim);
      const blocks: Cidr[] = [];
      for (let block = pool.take(); block !== undefined; block = pool.take()) {
        t.true(containsCidr(whole, block));
        t.false([...claimed, ...blocks].some((other) => overlaps(other, block as Cidr)));
        pool.claim(block);
        blocks.push(block);
      }
      for (const cidr of [...claimed, ...blocks]) pool.release(cidr);
      t.not(pool.take(), undefined);
    }),
  );
});

test('pod CIDR controller: one of each family for Nodes that have none; the others keep theirs', async (t) => {
  const store = clusterOf(t, [cidr('10.244.0.0/16'), cidr('fd00:244::/48')]);
  for (const [name, own] of [['a'], ['b', ['10.244.1.0/24']], ['c'], ['d']] as const)
    store.create(KINDS.node, node(name, own));
  await nextTurn();
  await nextTurn();
  t.is(cidrsOf(store, 'a'), '10.244.0.0/24 fd00:244::/64');
  t.is(cidrsOf(store, 'b'), '10.244.1.0/24');
  t.is(cidrsOf(store, 'c'), '10.244.2.0/24 fd00:244:0:1::/64');
  t.is(cidrsOf(store, 'd'), '10.244.3.0/24 fd00:244:0:2::/64');
});

test('pod CIDR controller: waits while nothing is left, goes on when a Node leaves, also after its history was forgotten', async (t) => {
  const store = clusterOf(t, [cidr('10.0.0.0/23')], { ipv4: 24, ipv6: 64 });
  for (const name of ['a', 'b', 'c']) store.create(KINDS.node, node(name));
  await nextTurn();
  await nextTurn();
  t.deepEqual(
    ['a', 'b', 'c'].map((name) => cidrsOf(store, name)),
    ['10.0.0.0/24', '10.0.1.0/24', ''],
  );
  store.delete(KINDS.node, { namespace: '', name: 'a' });
  store.compact();
  await nextTurn();
  await nextTurn();
  t.is(cidrsOf(store, 'c'), '10.0.0.0/24');
});

test('namespace controller: what lived in a namespace goes with it', async (t) => {
  const store = clusterOf(t, []);
  store.create(KINDS.namespace, { metadata: { name: 'team' } });
  store.create(KINDS.pod, { metadata: { name: 'p' } }, 'team');
  store.create(KINDS.pod, { metadata: { name: 'q' } }, 'default');
  store.delete(KINDS.namespace, { namespace: '', name: 'team' });
  await nextTurn();
  await nextTurn();
  t.deepEqual(
    store.list(KINDS.pod).objects.map(({ object }) => object.metadata.name),
    ['q'],
  );
});
