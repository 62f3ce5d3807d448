/** One open watch: a reader of a kind's history that writes lines into a response. */

import type { ServerResponse } from 'node:http';
import type { Encoding } from './encoding.ts';
import type { History } from './history.ts';
import { apiVersionOf, type KindRow } from './kinds.ts';
import { parseRevision } from './list.ts';
import type { ObjectRef } from './objects.ts';
import { isTrue } from './routes.ts';
import { type Matches, parseSelection } from './selectors.ts';
import { expired, forbiddenValue, invalid, statusBody } from './status.ts';
import type { Change, ChangeType, Snapshot, Store, Stored } from './store.ts';

export interface WatchRequest {
  readonly row: KindRow;
  readonly matches: Matches;
  /** Undefined: the present objects come first, as ADDED. */
  readonly after: number | undefined;
  readonly bookmarks: boolean;
  readonly timeoutMs: number;
}

/** What a change is to this watcher: type and object, or undefined when it sees neither side of it. */
export type Line = { readonly type: ChangeType; readonly stored: Stored } | undefined;

/** Throws StatusError 400, and 422 for sendInitialEvents as servers without that feature do. */
export function parseWatch(row: KindRow, { namespace, name }: ObjectRef, query: URLSearchParams): WatchRequest {
  if (query.has('sendInitialEvents')) {
    const why = 'sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled';
    throw invalid({ ...row, kind: 'ListOptions' }, '', [forbiddenValue('sendInitialEvents', why)]);
  }
  const selected = parseSelection(row, namespace, query);
  const seconds = Number(query.get('timeoutSeconds') ?? 0);
  return {
    row,
    matches: name === '' ? selected : (object) => object.metadata.name === name && selected(object),
    after: parseRevision(query.get('resourceVersion')) || undefined,
    bookmarks: isTrue(query.get('allowWatchBookmarks')),
    timeoutMs: seconds > 0 ? seconds * 1000 : DEFAULT_TIMEOUT_MS,
  };
}

/** A real server takes a random time between this and twice as long. */
const DEFAULT_TIMEOUT_MS = 30 * 60 * 1000;

/** Timers hold at most 2^31 - 1 ms. */
const MAXIMUM_TIMEOUT_MS = 2 ** 31 - 1;

/** The change as a watcher with this selection sees it: what starts to match was added, what stops was deleted. */
export function lineOf(change: Change, matches: Matches): Line {
  const { before, after } = change;
  const was = before !== undefined && matches(before.object);
  if (after !== undefined && matches(after.object)) return { type: was ? 'MODIFIED' : 'ADDED', stored: after };
  return was ? { type: 'DELETED', stored: change.gone } : undefined;
}

export class Watch {
  readonly #request: WatchRequest;
  readonly #encoding: Encoding;
  readonly #response: ServerResponse;
  readonly #store: Store;
  readonly #history: History<Change>;
  readonly #timers: readonly NodeJS.Timeout[];
  readonly #stopListening: () => void;
  #initial: Stored[];
  #position: number;
  /** Of the last change that was read. */
  #revision: number;
  #paused = false;
  #blocked = false;
  #scheduled = false;
  #bookmarkDue = false;
  #endDue = false;
  #ended = false;

  /** Starts at once. Throws StatusError 410 when the history does not reach back to the asked version. */
  constructor(
    store: Store,
    request: WatchRequest,
    encoding: Encoding,
    response: ServerResponse,
    bookmarkIntervalMs: number,
  ) {
    this.#request = request;
    this.#encoding = encoding;
    this.#response = response;
    this.#store = store;
    this.#history = store.history(request.row);
    this.#revision = request.after ?? store.revision;
    this.#position = this.#history.positionAfter(this.#revision);
    this.#initial = request.after === undefined ? matching(store.list(request.row), request.matches) : [];
    response.writeHead(200, { 'content-type': 'application/json' }).flushHeaders();
    this.#timers = [
      setInterval(() => this.#tick({ end: false }), bookmarkIntervalMs),
      setTimeout(() => this.#tick({ end: true }), Math.min(request.timeoutMs, MAXIMUM_TIMEOUT_MS)),
    ];
    this.#stopListening = store.onChange(request.row, () => this.#schedule());
    response.on('drain', () => {
      this.#blocked = false;
      this.#schedule();
    });
    response.once('close', () => this.#release());
    this.#schedule();
  }

  /** While paused the connection stays open and nothing is written, not even the end. */
  pause(paused: boolean): void {
    this.#paused = paused;
    this.#schedule();
  }

  /** Ends the response after what has happened so far, without a bookmark. */
  close(): void {
    this.#endDue = true;
    this.#schedule();
  }

  #tick({ end }: { end: boolean }): void {
    this.#bookmarkDue = true;
    this.#endDue ||= end;
    this.#schedule();
  }

  /** Writes of one turn of the event loop are sent together. */
  #schedule(): void {
    if (this.#scheduled || this.#ended) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#response.cork();
      this.#pump();
      this.#response.uncork();
    });
  }

  #pump(): void {
    if (this.#ended || this.#paused) return;
    while (!this.#blocked) {
      if (this.#position < this.#history.oldest) {
        this.#fail();
        return;
      }
      const line = this.#nextLine();
      if (!line) break;
      this.#blocked = !this.#response.write(line);
    }
    if (this.#blocked) return;
    if (this.#bookmarkDue && this.#request.bookmarks) this.#response.write(this.#bookmark());
    this.#bookmarkDue = false;
    if (this.#endDue) this.#end();
  }

  #nextLine(): Buffer | undefined {
    const initial = this.#initial.shift();
    if (initial) return this.#encoding.event('ADDED', initial);
    while (this.#position < this.#history.next) {
      const change = this.#history.at(this.#position++);
      // A version that the store has not reached yet is waited for.
      if (change.revision <= this.#revision) continue;
      this.#revision = change.revision;
      const line = lineOf(change, this.#request.matches);
      if (line) return this.#encoding.event(line.type, line.stored);
    }
    return undefined;
  }

  /** Only sent when everything before it has been: the store's version is then this watcher's. */
  #bookmark(): string {
    const { row } = this.#request;
    const metadata = { resourceVersion: String(this.#store.revision), creationTimestamp: null };
    return eventLine('BOOKMARK', { kind: row.kind, apiVersion: apiVersionOf(row), metadata });
  }

  #fail(): void {
    const error = expired(this.#revision, this.#history.compacted);
    this.#response.write(eventLine('ERROR', statusBody(error)));
    this.#end();
  }

  #end(): void {
    this.#release();
    this.#response.end();
  }

  #release(): void {
    this.#ended = true;
    this.#stopListening();
    for (const timer of this.#timers) clearTimeout(timer);
  }
}

const matching = ({ objects }: Snapshot, matches: Matches): Stored[] => objects.filter(({ object }) => matches(object));

const eventLine = (type: string, object: unknown): string => `${JSON.stringify({ type, object })}\n`;
