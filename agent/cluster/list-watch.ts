/**
 * Follows one resource of the API: lists it, then watches from the list's version on, for as long as the signal allows
 * (Kubernetes API concepts, "Efficient detection of changes"). What was seen stays through every fault: an interrupted
 * watch goes on from its last version, and a list that has to be fetched again replaces the old content only when it is
 * complete.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { parseEvent, parsePage } from './answers.ts';
import type { ApiClient, Query } from './api-client.ts';
import { ApiError, type ApiRequest, isGone, malformed } from './api-error.ts';
import { Backoff } from './backoff.ts';
import type { ObjectEvent, Replacement } from './object-cache.ts';

export interface Resource {
  /** Plural name, for people: `nodes`. */
  readonly name: string;
  readonly path: string;
  /** Selectors, for the list and the watch alike. */
  readonly query: Query;
}

/** Where the objects go: an ObjectCache. */
export interface Sink {
  startReplacement(): Replacement;
  apply(events: readonly ObjectEvent[]): void;
}

export interface ListWatchTiming {
  readonly pageSize: number;
  /** A watch asks the server to end it after a random time between these, so that not all agents return at once. */
  readonly watchSeconds: readonly [least: number, most: number];
  /** Silence beyond the time asked for, after which the connection counts as lost. */
  readonly graceMs: number;
  readonly backoffMinMs: number;
  readonly backoffMaxMs: number;
  /** A watch that lived this long was healthy: the backoff starts again at its least. */
  readonly healthyMs: number;
}

const TIMING: ListWatchTiming = {
  pageSize: 500,
  watchSeconds: [300, 600],
  graceMs: 30_000,
  backoffMinMs: 100,
  backoffMaxMs: 30_000,
  healthyMs: 1_000,
};

export interface ListWatchStatus {
  readonly resource: string;
  /** A list was complete once. */
  readonly synced: boolean;
  /** Where a watch would go on; absent before the first list and between a 410 and the next list. */
  readonly resourceVersion: string | undefined;
  /** When the server last said something, in milliseconds since the epoch. */
  readonly lastEventMs: number | undefined;
  /** A watch is open. */
  readonly connected: boolean;
  /** Why it is not, for people. */
  readonly error: string | undefined;
  /** Complete lists after the first. */
  readonly relists: number;
  /** How often the server no longer knew our version (410 Gone). */
  readonly expired: number;
}

interface ListWatchOptions {
  readonly client: Pick<ApiClient, 'list' | 'watch'>;
  readonly resource: Resource;
  readonly sink: Sink;
  readonly log: Logger;
  /** Called after each complete list. */
  readonly listed?: () => void;
  readonly timing?: Partial<ListWatchTiming>;
}

export class ListWatch {
  readonly #client: Pick<ApiClient, 'list' | 'watch'>;
  readonly #resource: Resource;
  readonly #sink: Sink;
  readonly #log: Logger;
  readonly #listed: () => void;
  readonly #timing: ListWatchTiming;
  readonly #backoff: Backoff;
  #version: string | undefined;
  #lists = 0;
  #lastEventMs: number | undefined;
  #connected = false;
  #openedAt: number | undefined;
  #error: string | undefined;
  #expired = 0;
  /** Watches since one was healthy that the version may be to blame for. */
  #refusals = 0;

  constructor({ client, resource, sink, log, listed, timing }: ListWatchOptions) {
    this.#client = client;
    this.#resource = resource;
    this.#sink = sink;
    this.#log = log;
    this.#listed = listed ?? (() => {});
    this.#timing = { ...TIMING, ...timing };
    this.#backoff = new Backoff({ minMs: this.#timing.backoffMinMs, maxMs: this.#timing.backoffMaxMs });
  }

  status(): ListWatchStatus {
    return {
      resource: this.#resource.name,
      synced: this.#lists > 0,
      resourceVersion: this.#version,
      lastEventMs: this.#lastEventMs,
      connected: this.#connected,
      error: this.#error,
      relists: Math.max(0, this.#lists - 1),
      expired: this.#expired,
    };
  }

  /** Resolves when the signal has aborted; never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const waitMs = await this.#round(signal);
      if (waitMs > 0 && !signal.aborted) await sleep(waitMs, undefined, { signal }).catch(() => {});
    }
  }

  /** One list, where needed, and one watch. Returns how long to wait before the next round, in milliseconds. */
  async #round(signal: AbortSignal): Promise<number> {
    try {
      this.#version ??= await this.#list(signal);
      await this.#watch(this.#version, signal);
      return this.#ended();
    } catch (error) {
      return signal.aborted ? 0 : this.#failed(error);
    } finally {
      this.#connected = false;
      this.#openedAt = undefined;
    }
  }

  /** The version that the list stands for. */
  async #list(signal: AbortSignal): Promise<string> {
    const request: ApiRequest = { verb: 'list', path: this.#resource.path };
    const replacement = this.#sink.startReplacement();
    // No resourceVersion: the newest content, never an older one out of a server's cache.
    let query: Query = { ...this.#resource.query, limit: String(this.#timing.pageSize) };
    let version: string | undefined;
    for (;;) {
      const page = parsePage(request, await this.#client.list(this.#resource.path, query, signal));
      replacement.add(page.items);
      version ??= page.version;
      if (page.next === '') break;
      if (page.next === query['continue'])
        throw malformed(request, 'another continue token for each page', 'the same again');
      query = { ...query, continue: page.next };
    }
    this.#lists++;
    this.#lastEventMs = Date.now();
    replacement.commit();
    this.#listed();
    return version;
  }

  async #watch(version: string, signal: AbortSignal): Promise<void> {
    const { path, query } = this.#resource;
    const timeoutSeconds = this.#watchSeconds();
    const batches = this.#client.watch(
      path,
      {
        ...query,
        watch: 'true',
        resourceVersion: version,
        allowWatchBookmarks: 'true',
        timeoutSeconds: String(timeoutSeconds),
      },
      { idleMs: timeoutSeconds * 1000 + this.#timing.graceMs, signal },
    );
    for await (const batch of batches) {
      if (!this.#connected) this.#opened();
      else this.#take(batch);
    }
  }

  #watchSeconds(): number {
    const [least, most] = this.#timing.watchSeconds;
    return least + Math.floor(Math.random() * (most - least + 1));
  }

  #opened(): void {
    this.#connected = true;
    this.#openedAt = performance.now();
    if (this.#error !== undefined) this.#log.info({ resource: this.#resource.name }, 'watch resumed');
    this.#error = undefined;
  }

  /** Takes in all events up to an ERROR, which it throws. */
  #take(batch: readonly unknown[]): void {
    const request: ApiRequest = { verb: 'watch', path: this.#resource.path };
    const events: ObjectEvent[] = [];
    let version = this.#version;
    let error: ApiError | undefined;
    for (const line of batch) {
      const event = parseEvent(request, line);
      if (event instanceof ApiError) {
        error = event;
        break;
      }
      if (event.change) events.push(event.change);
      version = event.version ?? version;
    }
    if (events.length > 0) this.#sink.apply(events);
    this.#version = version;
    this.#lastEventMs = Date.now();
    if (error) throw error;
  }

  /** The server ended the watch in good order, as it must after some minutes; one that does so at once is not hurried. */
  #ended(): number {
    if (this.#wasHealthy()) return 0;
    return this.#backoff.next();
  }

  #failed(error: unknown): number {
    this.#wasHealthy();
    if (isGone(error)) this.#expired++;
    if (this.#mustListAgain(error)) this.#version = undefined;
    this.#report(error);
    const askedMs = error instanceof ApiError ? (error.retryAfterMs ?? 0) : 0;
    return Math.max(this.#backoff.next(), Math.min(askedMs, this.#timing.backoffMaxMs));
  }

  #wasHealthy(): boolean {
    const healthy = this.#openedAt !== undefined && performance.now() - this.#openedAt >= this.#timing.healthyMs;
    if (healthy) {
      this.#backoff.reset();
      this.#refusals = 0;
    }
    return healthy;
  }

  /**
   * A lost or overloaded server never asks for a new list: the version is still good, or else it will say 410; all agents
   * listing after an outage would be the next one. A server that twice cannot serve our version may never say 410: it
   * may have gone back in time (restored from a backup), or one event may be unreadable.
   */
  #mustListAgain(error: unknown): boolean {
    if (isGone(error)) return true;
    if (!(error instanceof ApiError) || NOT_THE_VERSION.has(error.status)) return false;
    this.#refusals++;
    return this.#refusals >= 2;
  }

  /** Once for each new reason: an outage of any length is one line in the log. */
  #report(error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    const level = isGone(error) ? 'info' : text === this.#error ? 'debug' : 'warn';
    this.#log[level]({ resource: this.#resource.name, err: error }, 'watch interrupted');
    this.#error = text;
  }
}

/** No answer, not allowed, overloaded, a proxy without its server: says nothing of the version that was asked for. */
const NOT_THE_VERSION: ReadonlySet<number> = new Set([0, 401, 403, 429, 502, 503]);
