/** What the reconciler does with one driver, once and by hand: list, compare, write, remove. */
import { type Item, item, type Key, type Kind, type Objects } from '../../agent/model/items.ts';
import { keyedDiff } from '../../agent/reconcile/keyed-diff.ts';
import type { Change, Driver } from '../../agent/reconcile/types.ts';

const signal = new AbortController().signal;

export interface Outcome<K extends Kind> {
  readonly changes: readonly Change<K>[];
  readonly failures: ReadonlyMap<Key<K>, Error>;
}

export const createOf = <K extends Kind>(kind: K, value: Objects[K]): Change<K> => {
  const made = item(kind, value);
  return { action: 'create', kind, key: made.key, item: made } as unknown as Change<K>;
};

export const removeOf = <K extends Kind>(kind: K, from: Objects[K]): Change<K> =>
  ({ action: 'remove', kind, key: item(kind, from).key, from }) as unknown as Change<K>;

/** Makes the driver's objects exactly `wanted`. */
export async function converge<K extends Kind>(driver: Driver<K>, wanted: readonly Objects[K][]): Promise<Outcome<K>> {
  const { kind } = driver;
  const items = new Map(wanted.map((value) => [item(kind, value).key, item(kind, value)]));
  const values = new Map([...items].map(([key, { value }]) => [key, value]));
  const { creates, updates, removes } = keyedDiff(values, await driver.list(signal), (a, b) => driver.equal(a, b));
  const written = [
    ...creates.map(({ key }) => ({ action: 'create', kind, key, item: items.get(key) as Item<K> })),
    ...updates.map(({ key, from }) => ({ action: 'update', kind, key, item: items.get(key) as Item<K>, from })),
  ] as unknown as Change<K>[];
  const removed = removes.map(({ key, from }) => ({ action: 'remove', kind, key, from })) as unknown as Change<K>[];
  const failures = new Map(written.length > 0 ? await driver.apply(written, signal) : []);
  for (const [key, error] of removed.length > 0 ? await driver.apply(removed, signal) : []) failures.set(key, error);
  return { changes: [...written, ...removed], failures };
}

/** The keys that the next converge would change. */
export async function differences<K extends Kind>(
  driver: Driver<K>,
  wanted: readonly Objects[K][],
): Promise<readonly string[]> {
  const values = new Map(wanted.map((value) => [item(driver.kind, value).key, value]));
  const { creates, updates, removes } = keyedDiff(values, await driver.list(signal), (a, b) => driver.equal(a, b));
  return [...creates, ...updates, ...removes].map(({ key }) => key);
}
