export interface KeyedDiff<K, V> {
  readonly creates: readonly { readonly key: K; readonly value: V }[];
  readonly updates: readonly { readonly key: K; readonly value: V; readonly from: V }[];
  readonly removes: readonly { readonly key: K; readonly from: V }[];
}

/**
 * What turns `observed` into `desired`, each list in the order of the map that it comes from. Pure; `equal` is asked once
 * for every key that both hold.
 */
export function keyedDiff<K, V>(
  desired: ReadonlyMap<K, V>,
  observed: ReadonlyMap<K, V>,
  equal: (desired: V, observed: V) => boolean,
): KeyedDiff<K, V> {
  const creates: { key: K; value: V }[] = [];
  const updates: { key: K; value: V; from: V }[] = [];
  const removes: { key: K; from: V }[] = [];
  for (const [key, value] of desired) {
    const from = observed.get(key);
    if (from === undefined) creates.push({ key, value });
    else if (!equal(value, from)) updates.push({ key, value, from });
  }
  for (const [key, from] of observed) if (!desired.has(key)) removes.push({ key, from });
  return { creates, updates, removes };
}
