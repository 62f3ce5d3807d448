/** What becomes of an object that a client wrote: the fields that belong to the server, and its objections. Pure. */

import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { apiVersionOf, type KindRow } from './kinds.ts';
import { type ApiObject, isJsonObject, type JsonObject, type Metadata, type ObjectRef, withField } from './objects.ts';
import { badRequest, conflict, invalid, requiredValue } from './status.ts';
import { validateMetadata } from './validation.ts';

/** Which part of an object a write may change. */
export type Part = 'all' | 'status';

/** Fields of the metadata that no client changes. */
const SERVER_FIELDS = [
  'name',
  'namespace',
  'generateName',
  'uid',
  'resourceVersion',
  'generation',
  'creationTimestamp',
  'deletionTimestamp',
  'deletionGracePeriodSeconds',
];

/**
 * Narrows a request's body to an object of the kind at the place that the path names. An empty name in the reference
 * means that the body brings its own (or a prefix in generateName). Throws StatusError 400.
 */
export function parseObject(row: KindRow, body: unknown, { namespace, name }: ObjectRef): ApiObject {
  if (!isJsonObject(body)) throw badRequest(`expected a ${row.kind} as a JSON object`);
  const { kind = row.kind, apiVersion = apiVersionOf(row), metadata = {}, ...rest } = body;
  if (kind !== row.kind || apiVersion !== apiVersionOf(row)) {
    throw badRequest(`expected ${apiVersionOf(row)} ${row.kind}, got ${String(apiVersion)} ${String(kind)}`);
  }
  if (!isJsonObject(metadata)) throw badRequest('metadata must be an object');
  const sent = { name, namespace, ...withoutEmpty(metadata) } as Metadata;
  for (const field of ['name', 'namespace', 'generateName', 'uid', 'resourceVersion'] as const) {
    if (sent[field] !== undefined && typeof sent[field] !== 'string')
      throw badRequest(`metadata.${field} must be text`);
  }
  if (sent.namespace !== namespace) {
    throw badRequest('the namespace of the provided object does not match the namespace sent on the request');
  }
  if (name !== '' && sent.name !== name) {
    throw badRequest(`the name of the object (${sent.name}) does not match the name on the URL (${name})`);
  }
  return {
    kind: row.kind,
    apiVersion: apiVersionOf(row),
    metadata: withField(sent, 'namespace', namespace || undefined),
    ...rest,
  };
}

/** With an identity and an age, those of the object in whose place it comes or new ones; else as it is. */
export function bornObject(sent: ApiObject, before: ApiObject | undefined, now: Date): ApiObject {
  const { uid = randomUUID(), creationTimestamp = timestamp(now) } = before?.metadata ?? {};
  return { ...sent, metadata: { uid, creationTimestamp, ...sent.metadata } };
}

/** The first version of an object. Throws StatusError 400 or 422. */
export function newObject(row: KindRow, sent: ApiObject, now: Date): ApiObject {
  if (sent.metadata.resourceVersion) throw badRequest('resourceVersion should not be set on objects to be created');
  const name = sent.metadata.name || generatedName(sent.metadata.generateName);
  if (!name) throw invalid(row, '', [requiredName]);
  const { deletionTimestamp: _, deletionGracePeriodSeconds: __, ...kept } = sent.metadata;
  const metadata = { ...kept, name, uid: randomUUID(), generation: 1, creationTimestamp: timestamp(now) } as Metadata;
  const initial = row.status === 'kept' ? sent['status'] : row.status;
  return checked(row, withField({ ...sent, metadata }, 'status', row.status ? initial : sent['status']), undefined);
}

/**
 * The next version of an object; `current` itself when nothing changes. Throws StatusError 409 when the client wrote
 * from another version or another object of the same name, 422 for what the kind does not allow.
 */
export function nextObject(row: KindRow, current: ApiObject, sent: ApiObject, part: Part): ApiObject {
  checkPreconditions(row, current, sent.metadata);
  if (part === 'status') return sameOr(current, checked(row, withField(current, 'status', sent['status']), current));
  const status = row.status ? current['status'] : sent['status'];
  const next = checked(row, withField({ ...sent, metadata: nextMetadata(current, sent) }, 'status', status), current);
  if (isDeepStrictEqual(content(next), content(current))) return sameOr(current, next);
  const generation = (current.metadata.generation ?? 0) + 1;
  return { ...next, metadata: { ...next.metadata, generation } };
}

/** Marked as about to go, or undefined when it goes at once or is marked already. */
export function dyingObject(current: ApiObject, graceSeconds: number, now: Date): ApiObject | undefined {
  const { deletionGracePeriodSeconds: before } = current.metadata;
  if (before !== undefined && before <= graceSeconds) return undefined;
  const metadata: Metadata = {
    ...current.metadata,
    deletionTimestamp: timestamp(new Date(now.getTime() + graceSeconds * 1000)),
    deletionGracePeriodSeconds: graceSeconds,
  };
  return { ...current, metadata };
}

/** Version and identity that the client expects to find; absent ones are not compared. Throws StatusError 409. */
export function checkPreconditions(
  row: KindRow,
  current: ApiObject,
  { resourceVersion, uid }: { readonly resourceVersion?: unknown; readonly uid?: unknown },
): void {
  const { metadata } = current;
  if (uid && uid !== metadata.uid) {
    throw conflict(
      row,
      metadata.name,
      `Precondition failed: UID in precondition: ${uid}, UID in object meta: ${metadata.uid}`,
    );
  }
  if (resourceVersion && resourceVersion !== metadata.resourceVersion) {
    const why = 'the object has been modified; please apply your changes to the latest version and try again';
    throw conflict(row, metadata.name, why);
  }
}

const requiredName = requiredValue('metadata.name', 'name or generateName is required');

function nextMetadata(current: ApiObject, sent: ApiObject): Metadata {
  const own = Object.entries(current.metadata).filter(([field]) => SERVER_FIELDS.includes(field));
  const theirs = Object.entries(sent.metadata).filter(([field]) => !SERVER_FIELDS.includes(field));
  return Object.fromEntries([...own, ...theirs]) as Metadata;
}

function checked(row: KindRow, object: ApiObject, previous: ApiObject | undefined): ApiObject {
  const metadataCauses = validateMetadata(object.metadata, row.nameRule);
  if (metadataCauses.length > 0) throw invalid(row, object.metadata.name, metadataCauses);
  const prepared = row.prepare?.(object, previous) ?? object;
  const causes = row.validate?.(prepared, previous) ?? [];
  if (causes.length > 0) throw invalid(row, object.metadata.name, causes);
  return prepared;
}

const sameOr = (current: ApiObject, next: ApiObject): ApiObject => (isDeepStrictEqual(current, next) ? current : next);

/** What the generation counts: everything but metadata and status. */
function content({ metadata: _, status: __, ...rest }: ApiObject): JsonObject {
  return rest;
}

/** Clients written in Go send `creationTimestamp: null` and the like. */
const withoutEmpty = (metadata: JsonObject): JsonObject =>
  Object.fromEntries(Object.entries(metadata).filter(([, value]) => value !== null && value !== ''));

const generatedName = (prefix: string | undefined): string => (prefix ? `${prefix}${randomUUID().slice(0, 5)}` : '');

const timestamp = (date: Date): string => date.toISOString().replace(/\.\d+Z$/, 'Z');
