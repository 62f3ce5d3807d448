/** A request's method and path as what it asks for. Pure. */

import { apiVersionOf, type KindRow, kinds } from './kinds.ts';
import type { ObjectRef } from './objects.ts';
import { badRequest } from './status.ts';

export type Verb = 'get' | 'list' | 'watch' | 'create' | 'update' | 'patch' | 'delete' | 'deletecollection';

export const READING_VERBS: readonly Verb[] = ['get', 'list', 'watch'];

export interface ResourceRequest {
  readonly row: KindRow;
  /** Undefined for a method that the resource does not have. */
  readonly verb: Verb | undefined;
  /** Empty name: the collection; empty namespace: all of them, or a cluster-wide kind. */
  readonly ref: ObjectRef;
  readonly subresource: string;
}

/** `nodes`, `pods/status`: how RBAC and the request counter call it. */
export const resourceOf = ({ row, subresource }: ResourceRequest): string =>
  subresource ? `${row.resource}/${subresource}` : row.resource;

/**
 * `/api/v1/...`, `/apis/GROUP/VERSION/...`, followed by `[namespaces/NS/]RESOURCE[/NAME[/SUBRESOURCE]]`. Undefined for a
 * path that names no served resource. Throws StatusError 400 for escapes that are no text.
 */
export function parseRoute(method: string, path: string, query: URLSearchParams): ResourceRequest | undefined {
  const [root, ...parts] = path.split('/').slice(1).map(decoded);
  const apiVersion = root === 'api' ? parts.shift() : root === 'apis' ? parts.splice(0, 2).join('/') : undefined;
  if (apiVersion === undefined) return undefined;
  const namespace = isBelowNamespace(parts) ? (parts.splice(0, 2)[1] as string) : '';
  const [resource, name = '', subresource = '', ...rest] = parts;
  const row = kinds.find((kind) => kind.resource === resource && apiVersionOf(kind) === apiVersion);
  if (!row || rest.length > 0 || (namespace !== '' && !row.namespaced)) return undefined;
  if (name === '' && parts.length > 1) return undefined;
  if (row.namespaced && name !== '' && namespace === '') return undefined;
  if (subresource !== '' && !(subresource === 'status' && row.status)) return undefined;
  const verb = verbOf(method, name !== '', query);
  const has = subresource === '' || verb === 'get' || verb === 'update' || verb === 'patch';
  return { row, verb: has ? verb : undefined, ref: { namespace, name }, subresource };
}

/** `namespaces/x/pods`, but neither `namespaces/x` nor `namespaces/x/status`. */
const isBelowNamespace = ([first, name, third]: readonly string[]): boolean =>
  first === 'namespaces' && name !== undefined && name !== '' && third !== undefined && third !== 'status';

function verbOf(method: string, named: boolean, query: URLSearchParams): Verb | undefined {
  switch (method) {
    case 'GET':
      return isTrue(query.get('watch')) ? 'watch' : named ? 'get' : 'list';
    case 'POST':
      return named ? undefined : 'create';
    case 'PUT':
      return named ? 'update' : undefined;
    case 'PATCH':
      return named ? 'patch' : undefined;
    case 'DELETE':
      return named ? 'delete' : 'deletecollection';
    default:
      return undefined;
  }
}

/** `?watch`, `?watch=1` and `?watch=true` all mean yes, as in Go's conversion of query parameters. */
export const isTrue = (parameter: string | null): boolean =>
  parameter !== null && parameter !== 'false' && parameter !== '0';

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (cause) {
    throw badRequest(`cannot decode the path part ${JSON.stringify(part)}`, cause);
  }
}
