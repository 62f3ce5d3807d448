/** What each verb does to the store, and its answer. Watches, which have a lifetime, are in watch.ts. */

import type { Encoding } from './encoding.ts';
import { renderList } from './list.ts';
import { isJsonObject, type JsonObject, refOf } from './objects.ts';
import { parsePatch } from './patch.ts';
import type { ResourceRequest, Verb } from './routes.ts';
import { parseSelection } from './selectors.ts';
import { badRequest, StatusError, successBody } from './status.ts';
import type { DeleteOptions, Store, UpdateOptions } from './store.ts';

/** One request, read to its end. */
export interface Call {
  readonly store: Store;
  readonly request: ResourceRequest;
  readonly query: URLSearchParams;
  readonly encoding: Encoding;
  readonly contentType: string;
  /** The body as JSON, undefined where nothing was sent. Throws StatusError 400. */
  readonly readJson: () => unknown;
}

export interface Reply {
  readonly code: number;
  /** JSON. */
  readonly body: Buffer | string;
}

/** All throw StatusError. */
export const handlers: Readonly<Record<Exclude<Verb, 'watch'>, (call: Call) => Reply>> = {
  get: ({ store, request, encoding }) => ok(encoding.object(store.get(request.row, request.ref))),
  list: ({ store, request, query, encoding }) =>
    ok(renderList(store, request.row, request.ref.namespace, query, encoding)),
  create,
  update,
  patch,
  delete: remove,
  deletecollection: removeAll,
};

const ok = (body: Buffer | string): Reply => ({ code: 200, body });

function create({ store, request, query, encoding, contentType, readJson }: Call): Reply {
  expectJson(contentType);
  const created = store.create(request.row, readJson(), request.ref.namespace, {
    dryRun: isDryRun(query.getAll('dryRun')),
  });
  return { code: 201, body: encoding.object(created) };
}

function update({ store, request, query, encoding, contentType, readJson }: Call): Reply {
  expectJson(contentType);
  const sent = readJson();
  return ok(encoding.object(store.update(request.row, request.ref, () => sent, updateOptions(request, query))));
}

function patch({ store, request, query, encoding, contentType, readJson }: Call): Reply {
  const change = parsePatch(contentType, readJson);
  return ok(encoding.object(store.update(request.row, request.ref, change, updateOptions(request, query))));
}

function remove({ store, request, query, encoding, readJson }: Call): Reply {
  const { row, ref } = request;
  const { uid } = store.get(row, ref).object.metadata;
  const dying = store.delete(row, ref, deleteOptions(readJson(), query));
  if (dying) return ok(encoding.object(dying));
  const details = { name: ref.name, ...(row.group && { group: row.group }), kind: row.resource, ...(uid && { uid }) };
  return ok(JSON.stringify(successBody(details)));
}

/** Answers with what was deleted, as the list that it was. */
function removeAll({ store, request, query, encoding, readJson }: Call): Reply {
  const { row, ref } = request;
  const matches = parseSelection(row, ref.namespace, query);
  const options = deleteOptions(readJson(), query);
  const objects = store.list(row).objects.filter(({ object }) => matches(object));
  for (const { object } of objects) store.delete(row, refOf(object), options);
  return ok(encoding.list(objects, { resourceVersion: String(store.revision) }));
}

function updateOptions({ subresource }: ResourceRequest, query: URLSearchParams): UpdateOptions {
  return { part: subresource === 'status' ? 'status' : 'all', dryRun: isDryRun(query.getAll('dryRun')) };
}

/** From the body (meta/v1 DeleteOptions), else from the query. */
function deleteOptions(body: unknown, query: URLSearchParams): DeleteOptions {
  if (body !== undefined && !isJsonObject(body)) throw badRequest('expected DeleteOptions as a JSON object');
  const { gracePeriodSeconds, preconditions, dryRun }: JsonObject = body ?? {};
  const graceSeconds = gracePeriodSeconds ?? query.get('gracePeriodSeconds') ?? undefined;
  if (graceSeconds !== undefined && !/^\d{1,9}$/.test(String(graceSeconds))) {
    throw badRequest(`gracePeriodSeconds must be a whole number, got ${JSON.stringify(graceSeconds)}`);
  }
  return {
    dryRun: isDryRun(Array.isArray(dryRun) ? dryRun : query.getAll('dryRun')),
    ...(graceSeconds !== undefined && { graceSeconds: Number(graceSeconds) }),
    ...(isJsonObject(preconditions) && { preconditions }),
  };
}

function isDryRun(values: readonly unknown[]): boolean {
  const unknown = values.find((value) => value !== 'All');
  if (unknown !== undefined) throw badRequest(`dryRun must be All, got ${JSON.stringify(unknown)}`);
  return values.length > 0;
}

function expectJson(contentType: string): void {
  if (contentType === '' || contentType === 'application/json') return;
  throw new StatusError(415, 'UnsupportedMediaType', `cannot read a body of ${contentType}: expected application/json`);
}
