/** The three patch formats that clients send. Pure: a patch never changes the document it is given. */

import { isDeepStrictEqual } from 'node:util';
import { isJsonObject, type JsonObject } from './objects.ts';
import { badRequest, StatusError } from './status.ts';

type Patch = (document: unknown) => unknown;

const formats: Readonly<Record<string, (body: unknown) => Patch>> = {
  'application/merge-patch+json': mergePatch,
  'application/strategic-merge-patch+json': strategicPatch,
  'application/json-patch+json': jsonPatch,
};

/** Throws StatusError 415 for a format that is not spoken (server-side apply among them), 400 for a malformed patch. */
export function parsePatch(contentType: string, readJson: () => unknown): Patch {
  const format = Object.hasOwn(formats, contentType) ? formats[contentType] : undefined;
  if (format) return format(readJson());
  const expected = Object.keys(formats).join(', ');
  throw new StatusError(415, 'UnsupportedMediaType', `cannot patch with ${contentType}: expected one of ${expected}`);
}

/** RFC 7396. */
function mergePatch(body: unknown): Patch {
  if (!isJsonObject(body)) throw badRequest('a merge patch is a JSON object');
  return (document) => merge(document, body);
}

/**
 * A strategic patch without directives, applied as a merge patch: lists are replaced, not merged by key. Patches with
 * directives, which `kubectl apply` sends for lists, are refused because they would be stored as fields.
 */
function strategicPatch(body: unknown): Patch {
  const directive = findDirective(body);
  if (directive === undefined) return mergePatch(body);
  throw badRequest(
    `cannot apply the directive ${directive}: expected a merge patch; use kubectl replace or --type=merge`,
  );
}

function merge(target: unknown, patch: unknown): unknown {
  if (!isJsonObject(patch)) return patch;
  const result = new Map(isJsonObject(target) ? Object.entries(target) : []);
  for (const [field, value] of Object.entries(patch)) {
    if (value === null) result.delete(field);
    else result.set(field, merge(result.get(field), value));
  }
  return Object.fromEntries(result);
}

function findDirective(value: unknown): string | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  for (const [field, part] of Object.entries(value)) {
    const found = field.startsWith('$') ? field : findDirective(part);
    if (found !== undefined) return found;
  }
  return undefined;
}

interface Operation {
  readonly op: string;
  readonly path: readonly string[];
  readonly from: readonly string[];
  readonly value: unknown;
}

/** RFC 6902. */
function jsonPatch(body: unknown): Patch {
  if (!Array.isArray(body)) throw badRequest('a JSON patch is an array of operations');
  const parsed = body.map(parseOperation);
  return (document) => parsed.reduce((result, operation) => operate(result, operation), document);
}

function parseOperation(body: unknown): Operation {
  if (!isJsonObject(body)) throw badRequest('an operation of a JSON patch is an object');
  const { op, path, from, value } = body;
  if (typeof op !== 'string' || !Object.hasOwn(operations, op))
    throw badRequest(`unknown operation ${JSON.stringify(op)}`);
  if ((op === 'add' || op === 'replace' || op === 'test') && value === undefined)
    throw badRequest(`${op} needs a value`);
  return { op, path: parsePointer(path), from: op === 'move' || op === 'copy' ? parsePointer(from) : [], value };
}

/** RFC 6901. */
function parsePointer(text: unknown): readonly string[] {
  if (typeof text !== 'string' || !/^(\/|$)/.test(text))
    throw badRequest(`not a JSON pointer: ${JSON.stringify(text)}`);
  const tokens = text.split('/').slice(1);
  return tokens.map((token) => token.replaceAll('~1', '/').replaceAll('~0', '~'));
}

const operations: Readonly<Record<string, (document: unknown, operation: Operation) => unknown>> = {
  add: (document, { path, value }) => edit(document, path, (parent, token) => insert(parent, token, value), value),
  remove: (document, { path }) => edit(document, path, without),
  replace: (document, { path, value }) =>
    edit(document, path, (parent, token) => exchange(parent, token, value), value),
  move: (document, { path, from }) =>
    operate(edit(document, from, without), { op: 'add', path, from, value: read(document, from) }),
  copy: (document, { path, from }) => operate(document, { op: 'add', path, from, value: read(document, from) }),
  test: (document, { path, value }) => {
    if (!isDeepStrictEqual(read(document, path), value)) throw rejected(`test of /${path.join('/')} failed`);
    return document;
  },
};

function operate(document: unknown, operation: Operation): unknown {
  return operations[operation.op]?.(document, operation);
}

function read(document: unknown, path: readonly string[]): unknown {
  return path.reduce((parent, token) => child(parent, token), document);
}

/** A copy in which the container of the last token is changed; the whole document is replaced by an empty path. */
function edit(
  document: unknown,
  path: readonly string[],
  change: (parent: unknown, token: string) => unknown,
  whole?: unknown,
): unknown {
  const [token, ...rest] = path;
  if (token === undefined) return whole;
  if (rest.length === 0) return change(document, token);
  return exchange(document, token, edit(child(document, token), rest, change));
}

function child(parent: unknown, token: string): unknown {
  if (Array.isArray(parent)) return parent[indexOf(parent, token, parent.length - 1)];
  if (isJsonObject(parent) && Object.hasOwn(parent, token)) return parent[token];
  throw rejected(`nothing is found at ${JSON.stringify(token)}`);
}

function insert(parent: unknown, token: string, value: unknown): unknown {
  if (!Array.isArray(parent)) return withEntry(parent, token, value);
  const index = token === '-' ? parent.length : indexOf(parent, token, parent.length);
  return parent.toSpliced(index, 0, value);
}

function exchange(parent: unknown, token: string, value: unknown): unknown {
  child(parent, token);
  return Array.isArray(parent) ? parent.with(Number(token), value) : withEntry(parent, token, value);
}

function without(parent: unknown, token: string): unknown {
  child(parent, token);
  if (Array.isArray(parent)) return parent.toSpliced(Number(token), 1);
  return Object.fromEntries(Object.entries(parent as JsonObject).filter(([field]) => field !== token));
}

/** Through entries, so that a field named __proto__ is a field like any other. */
function withEntry(parent: unknown, token: string, value: unknown): unknown {
  if (!isJsonObject(parent)) throw rejected(`${JSON.stringify(token)} is not in an object`);
  return Object.fromEntries(new Map(Object.entries(parent)).set(token, value));
}

function indexOf(parent: readonly unknown[], token: string, last: number): number {
  if (/^(0|[1-9]\d*)$/.test(token) && Number(token) <= last) return Number(token);
  throw rejected(`${JSON.stringify(token)} is no index of an array of ${parent.length}`);
}

const rejected = (why: string): StatusError => new StatusError(422, 'Invalid', `the patch cannot be applied: ${why}`);
