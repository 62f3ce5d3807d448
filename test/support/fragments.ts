/** Small fragments for tests of the reconciler: values of two kinds, hand-made and generated. */
import fc from 'fast-check';
import type { Fragment } from '../../agent/model/fragment.ts';
import type { Cidr } from '../../agent/model/ip.ts';
import { type AnyItem, type Item, item, type Key } from '../../agent/model/items.ts';

/** A route of its own number; `variant` is what can differ under one key. */
export const route = (n: number, variant = 'a', needs: readonly Key[] = []): Item<'route'> =>
  item('route', { destination: `10.0.${n}.0/24` as Cidr, metric: 0, type: 'unicast', link: variant }, needs);

export const sysctl = (n: number, variant = 'a', needs: readonly Key[] = []): Item<'sysctl'> =>
  item('sysctl', { path: `net/test/${n}`, value: variant }, needs);

export const fragment = (id: string, items: readonly AnyItem[], more: Partial<Fragment> = {}): Fragment =>
  Object.freeze({ id, cause: `cause ${id}`, rank: '', items, requires: [], problems: [], ...more });

export const MERGE = {
  sysctl: 'same',
  link: 'one',
  address: 'one',
  source: 'one',
  filter: 'one',
  set: 'same',
  member: 'same',
  'chain-part': 'one',
  'pod-link': 'one',
  fdb: 'one',
  'tun-path': 'one',
  'tun-peer': 'one',
  neighbour: 'one',
  route: 'one',
  'backend-set': 'same',
  frontend: 'one',
  attachment: 'same',
} as const;

const ids = ['f0', 'f1', 'f2', 'f3', 'f4', 'f5'] as const;

/** Routes that may need sysctls (never the reverse, so that needs have no cycle); few keys, so that they collide. */
const anItem = fc.oneof(
  fc.tuple(fc.nat(4), fc.constantFrom('a', 'b')).map(([n, variant]): AnyItem => sysctl(n, variant)),
  fc.tuple(fc.nat(4), fc.constantFrom('a', 'b'), fc.uniqueArray(fc.nat(4), { maxLength: 2 })).map(
    ([n, variant, needs]): AnyItem =>
      route(
        n,
        variant,
        needs.map((need) => sysctl(need).key),
      ),
  ),
);

export const aFragment = fc
  .record({
    id: fc.constantFrom(...ids),
    rank: fc.constantFrom('', '1', '2'),
    items: fc.uniqueArray(anItem, { maxLength: 4, selector: ({ key }) => key }),
    requires: fc.subarray([...ids]),
    isShared: fc.boolean(),
  })
  .map(({ id, rank, items, requires, isShared }) =>
    fragment(id, items, { rank, requires, ...(isShared ? { shared: true } : {}) }),
  );

/** What may happen to a state: a fragment comes or changes, or one goes. */
export type Edit = { readonly id: string; readonly fragment: Fragment | undefined };

export const anEdit: fc.Arbitrary<Edit> = fc.oneof(
  { weight: 3, arbitrary: aFragment.map((made) => ({ id: made.id, fragment: made })) },
  { weight: 1, arbitrary: fc.constantFrom(...ids).map((id) => ({ id, fragment: undefined })) },
);
