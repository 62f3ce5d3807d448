/** One page of a list. Pure but for reading the store. */

import type { Encoding, ListMetadata } from './encoding.ts';
import type { KindRow } from './kinds.ts';
import { keyOfRef, refOf } from './objects.ts';
import { parseSelection } from './selectors.ts';
import { badRequest, expiredContinue, StatusError, tooLargeResourceVersion } from './status.ts';
import type { Snapshot, Store, Stored } from './store.ts';

/** Where the next page starts: after which key, in the list of which version. */
interface Continuation {
  readonly revision: number;
  readonly after: string;
}

/**
 * Answers a list with `limit`, `continue`, `resourceVersion`, `resourceVersionMatch` and selectors. All pages of a list
 * show one version of the collection. Throws StatusError 400, 410, 504.
 */
export function renderList(
  store: Store,
  row: KindRow,
  namespace: string,
  query: URLSearchParams,
  encoding: Encoding,
): Buffer {
  const limit = parseLimit(query.get('limit') ?? '');
  const continuation = parseContinuation(query.get('continue') ?? '');
  const matches = parseSelection(row, namespace, query);
  const snapshot = continuation ? snapshotOf(store, row, continuation) : requestedSnapshot(store, row, query);
  const start = continuation ? placeAfter(snapshot.objects, continuation.after) : 0;
  // A real server does not count what is left when it would have to select it.
  const isCounted = !query.has('labelSelector') && !query.has('fieldSelector');
  const page: Stored[] = [];
  let left = 0;
  for (let i = start; i < snapshot.objects.length; i++) {
    const stored = snapshot.objects[i] as Stored;
    if (!matches(stored.object)) continue;
    if (page.length < limit) page.push(stored);
    else left++;
    if (left > 0 && !isCounted) break;
  }
  return encoding.list(page, listMetadata(snapshot.revision, page, left, isCounted));
}

/** Index of the first object after this key (binary search): a page among 50,000 objects costs what is on it. */
function placeAfter(objects: readonly Stored[], key: string): number {
  let low = 0;
  let high = objects.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (keyOf(objects[middle] as Stored) > key) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Decimal text of a version; 0 for an absent one, which like "0" means any. Throws StatusError 400. */
export function parseRevision(text: string | null): number {
  if (text === null || text === '') return 0;
  if (!/^\d{1,15}$/.test(text))
    throw badRequest(`Invalid value: ${JSON.stringify(text)}: resourceVersion must be a number`);
  return Number(text);
}

function requestedSnapshot(store: Store, row: KindRow, query: URLSearchParams): Snapshot {
  const revision = parseRevision(query.get('resourceVersion'));
  const match = query.get('resourceVersionMatch');
  if (match !== null && match !== 'Exact' && match !== 'NotOlderThan')
    throw badRequest(`unknown resourceVersionMatch ${match}`);
  if (match === 'Exact' && revision > 0) return store.listAt(row, revision);
  if (revision > store.revision) throw tooLargeResourceVersion(revision, store.revision);
  return store.list(row);
}

function snapshotOf(store: Store, row: KindRow, { revision }: Continuation): Snapshot {
  try {
    return store.listAt(row, revision);
  } catch (cause) {
    if (cause instanceof StatusError && cause.code === 410) throw expiredContinue();
    throw cause;
  }
}

function listMetadata(revision: number, page: readonly Stored[], remaining: number, isCounted: boolean): ListMetadata {
  const resourceVersion = String(revision);
  const last = page.at(-1);
  if (remaining === 0 || !last) return { resourceVersion };
  const next = { resourceVersion, continue: continuationText({ revision, after: keyOf(last) }) };
  return isCounted ? { ...next, remainingItemCount: remaining } : next;
}

const keyOf = ({ object }: Stored): string => keyOfRef(refOf(object));

/** Infinity: everything at once. */
function parseLimit(text: string): number {
  if (!/^\d{0,9}$/.test(text)) throw badRequest(`limit must be a number, got ${JSON.stringify(text)}`);
  return Number(text) || Infinity;
}

const continuationText = (continuation: Continuation): string =>
  Buffer.from(JSON.stringify(continuation)).toString('base64url');

function parseContinuation(text: string): Continuation | undefined {
  if (text === '') return undefined;
  try {
    const { revision, after } = JSON.parse(Buffer.from(text, 'base64url').toString());
    if (Number.isSafeInteger(revision) && typeof after === 'string') return { revision, after };
  } catch (cause) {
    throw badRequest('continue key is not valid', cause);
  }
  throw badRequest('continue key is not valid');
}
