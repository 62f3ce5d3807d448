/**
 * Stored objects as bytes: alone, in a list, in an event. Two encodings exist: plain JSON, and the `Table` that kubectl
 * asks for.
 */

import { apiVersionOf, type KindRow } from './kinds.ts';
import { StatusError } from './status.ts';
import type { ChangeType, Stored } from './store.ts';
import { tableEncoding } from './table.ts';

export interface ListMetadata {
  readonly resourceVersion: string;
  readonly continue?: string;
  readonly remainingItemCount?: number;
}

export interface Encoding {
  object(stored: Stored): Buffer;
  list(objects: readonly Stored[], metadata: ListMetadata): Buffer;
  /** One line of a watch, its end included. */
  event(type: ChangeType, stored: Stored): Buffer;
}

const COMMA = Buffer.from(',');
const BRACE = Buffer.from('{');

/**
 * The first form of the Accept header that is spoken. Throws StatusError 406 where there is none (protobuf only), 400
 * for a bad includeObject.
 */
export function negotiate(accept: string, row: KindRow, query: URLSearchParams, json: Encoding): Encoding {
  for (const form of accept === '' ? ['*/*'] : accept.split(',')) {
    const [type, ...parameters] = form.split(';').map((part) => part.trim());
    if (!['application/json', 'application/*', '*/*'].includes(type ?? '')) continue;
    const as = parameters.find((parameter) => parameter.startsWith('as='))?.slice(3);
    if (as === undefined) return json;
    if (as === 'Table' && parameters.includes('v=v1'))
      return tableEncoding(row, query.get('includeObject') ?? 'Metadata');
  }
  throw new StatusError(406, 'NotAcceptable', 'only the following media types are accepted: application/json');
}

/**
 * Objects carry kind and apiVersion; the items of a list do not, which is what real servers send for these kinds.
 * Events are remembered: many watchers of one kind cost one encoding an event.
 */
export function jsonEncoding(row: KindRow): Encoding {
  const lines = new WeakMap<Stored, { readonly type: ChangeType; readonly bytes: Buffer }>();
  const head = Buffer.from(`{"kind":"${row.kind}","apiVersion":"${apiVersionOf(row)}",`);
  return {
    object: ({ body }) => Buffer.concat([head, body]),
    list(objects, metadata) {
      const start = `{"kind":"${row.kind}List","apiVersion":"${apiVersionOf(row)}","metadata":${JSON.stringify(metadata)},"items":[`;
      const items = objects.flatMap(({ body }, i) => (i === 0 ? [BRACE, body] : [COMMA, BRACE, body]));
      return Buffer.concat([Buffer.from(start), ...items, Buffer.from(']}')]);
    },
    event(type, stored) {
      const known = lines.get(stored);
      if (known?.type === type) return known.bytes;
      const bytes = Buffer.concat([Buffer.from(`{"type":"${type}","object":`), head, stored.body, Buffer.from('}\n')]);
      lines.set(stored, { type, bytes });
      return bytes;
    },
  };
}
