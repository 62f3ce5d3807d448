/** The answers that kubectl prints: meta/v1 `Table`. Pure but for the clock that ages are counted from. */

import type { Column } from './columns.ts';
import type { Encoding, ListMetadata } from './encoding.ts';
import type { KindRow } from './kinds.ts';
import type { ApiObject } from './objects.ts';
import { badRequest } from './status.ts';
import type { Stored } from './store.ts';

/** Cells for people, with as much of each object as the client asks for. */
export function tableEncoding(row: KindRow, includeObject: string): Encoding {
  const include = included[includeObject];
  if (!include) throw badRequest(`cannot include ${JSON.stringify(includeObject)}: expected None, Metadata or Object`);
  const all: readonly Column[] = [
    NAME,
    ...row.columns.filter((c) => c.priority === 0),
    AGE,
    ...row.columns.filter((c) => c.priority > 0),
  ];
  const columnDefinitions = all.map(({ name, type, priority }) => ({
    name,
    type,
    format: name === 'Name' ? 'name' : '',
    description: '',
    priority,
  }));
  const table = (objects: readonly Stored[], metadata: ListMetadata) => ({
    kind: 'Table',
    apiVersion: 'meta.k8s.io/v1',
    metadata,
    columnDefinitions,
    rows: objects.map(({ object }) => ({ cells: all.map((column) => column.value(object)), object: include(object) })),
  });
  const one = (stored: Stored) => table([stored], { resourceVersion: String(stored.revision) });
  return {
    object: (stored) => Buffer.from(JSON.stringify(one(stored))),
    list: (objects, metadata) => Buffer.from(JSON.stringify(table(objects, metadata))),
    event: (type, stored) => Buffer.from(`${JSON.stringify({ type, object: one(stored) })}\n`),
  };
}

const included: Readonly<Record<string, ((object: ApiObject) => unknown) | undefined>> = {
  None: () => null,
  Metadata: ({ metadata }) => ({ kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1', metadata }),
  Object: (object) => object,
};

const NAME: Column = { name: 'Name', type: 'string', priority: 0, value: ({ metadata }) => metadata.name };
const AGE: Column = {
  name: 'Age',
  type: 'string',
  priority: 0,
  value: ({ metadata }) => formatAge(Date.now() - Date.parse(metadata.creationTimestamp ?? '')),
};

/** `42s`, `7m`, `5h`, `3d`: the largest unit of which there are at least two, seconds at the least. */
export function formatAge(ageMs: number): string {
  const seconds = Math.floor(ageMs / 1000);
  if (Number.isNaN(seconds)) return '<unknown>';
  const units: readonly (readonly [string, number])[] = [
    ['d', 86_400],
    ['h', 3600],
    ['m', 60],
  ];
  const [unit, size] = units.find(([, length]) => seconds >= 2 * length) ?? ['s', 1];
  return `${Math.max(0, Math.floor(seconds / size))}${unit}`;
}
