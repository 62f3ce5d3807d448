/** Entries of a map that belong to items, written and removed in batches, with failures by item. */
import { KernelError } from '../errors.ts';
import type { BpfMap } from './map.ts';

/** All entries of one owner. */
export interface Part<Owner> {
  readonly owner: Owner;
  readonly keys: Buffer;
  /** As many as keys; empty where entries are to be removed. */
  readonly values: Buffer;
}

/** Renders each by itself: what cannot be rendered is no harm to the others. */
export function renderParts<Owner, Value>(
  values: readonly { readonly key: Owner; readonly value: Value }[],
  render: (value: Value) => Omit<Part<Owner>, 'owner'>,
): { readonly parts: readonly Part<Owner>[]; readonly failures: Map<Owner, Error> } {
  const failures = new Map<Owner, Error>();
  const parts: Part<Owner>[] = [];
  for (const { key: owner, value } of values) {
    try {
      parts.push({ owner, ...render(value) });
    } catch (error) {
      failures.set(owner, error as Error);
    }
  }
  return { parts, failures };
}

/** Writes all. An owner one of whose entries fails loses those before it at once, which may make room for the next. */
export function writeParts<Owner>(map: BpfMap, parts: readonly Part<Owner>[]): Map<Owner, Error> {
  const failures = new Map<Owner, Error>();
  const { keys, values, owners } = joined(map, parts);
  for (let i = 0; i < owners.length; ) {
    const rest = { keys: keys.subarray(i * map.keyBytes), values: values.subarray(i * map.valueBytes) };
    const { done, error } = map.update({ ...rest, count: owners.length - i });
    i += done;
    if (error === undefined) continue;
    const owner = owners[i] as Owner;
    const first = owners.indexOf(owner);
    failures.set(owner, error as Error);
    if (i > first) map.delete({ keys: keys.subarray(first * map.keyBytes), count: i - first });
    while (i < owners.length && owners[i] === owner) i++;
  }
  return failures;
}

/** Removes all that are there. */
export function removeParts<Owner>(map: BpfMap, parts: readonly Part<Owner>[]): Map<Owner, Error> {
  const failures = new Map<Owner, Error>();
  const { keys, owners } = joined(map, parts);
  for (let i = 0; i < owners.length; ) {
    const { done, error } = map.delete({ keys: keys.subarray(i * map.keyBytes), count: owners.length - i });
    i += done;
    if (error === undefined) continue;
    const isGone = error instanceof KernelError && error.code === 'ENOENT';
    if (!isGone) failures.set(owners[i] as Owner, error as Error);
    i++;
  }
  return failures;
}

function joined<Owner>(map: BpfMap, parts: readonly Part<Owner>[]) {
  return {
    keys: Buffer.concat(parts.map(({ keys }) => keys)),
    values: Buffer.concat(parts.map(({ values }) => values)),
    owners: parts.flatMap(({ owner, keys }) => new Array<Owner>(keys.length / map.keyBytes).fill(owner)),
  };
}
