/** Destroys links outside of the main thread, at once or together with others after a while. */
import { Worker } from 'node:worker_threads';
import { KernelError } from '../errors.ts';
import type { DeletionJob, DeletionResult, DeletionWorkerData } from './deletion-worker.ts';
import type { DoomedLink } from './group-deletion.ts';

export interface LinkReaper {
  /** Resolves when those of the links that still exist are gone. Rejects with KernelError. */
  destroy(links: readonly DoomedLink[]): Promise<void>;
  /** Destroys the link some time later, unless it goes by itself before, as a pod's pair does with its namespace. */
  later(link: DoomedLink): void;
  /** Whether a link awaits its destruction: to everybody else it is gone. */
  isDoomed(ifindex: number): boolean;
}

export interface ReaperOptions {
  /** Namespace of the links; the caller keeps the fd open. */
  readonly netnsFd?: number | undefined;
  /** How long links are collected before they go together. */
  readonly delayMs?: number;
  /** Told when links that nobody waits for could not be destroyed; the next full list finds them again. */
  readonly onError?: (error: Error) => void;
}

const DELAY_MS = 1_000;

interface Waiting {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** A reaper with a thread of its own, started with the first job. Keeps the process alive only while somebody waits. */
export class ThreadReaper implements LinkReaper {
  readonly #options: ReaperOptions;
  readonly #doomed = new Map<number, DoomedLink>();
  readonly #waiting = new Map<number, Waiting>();
  #collected: DoomedLink[] = [];
  #worker: Worker | undefined;
  #nextId = 1;
  #closed = false;

  constructor(options: ReaperOptions = {}) {
    this.#options = options;
  }

  destroy(links: readonly DoomedLink[]): Promise<void> {
    if (this.#closed)
      return Promise.reject(
        new KernelError({ code: 'ECANCELED', operation: 'delete', object: `${links.length} links` }),
      );
    const worker = this.#start();
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#waiting.set(id, { resolve, reject });
    worker.ref();
    worker.postMessage({
      id,
      links: links.map(({ ifindex, name, alias }) => ({ ifindex, name, alias })),
    } satisfies DeletionJob);
    return promise;
  }

  later(link: DoomedLink): void {
    if (this.#closed || this.#doomed.has(link.ifindex)) return;
    this.#doomed.set(link.ifindex, link);
    this.#collected.push(link);
    if (this.#collected.length === 1) setTimeout(() => this.#reap(), this.#options.delayMs ?? DELAY_MS).unref();
  }

  /** Destroys at once what awaits its destruction. Rejects with KernelError. */
  async flush(): Promise<void> {
    const links = [...this.#doomed.values()];
    this.#collected = [];
    if (links.length > 0) await this.destroy(links).finally(() => this.#forget(links));
  }

  isDoomed(ifindex: number): boolean {
    return this.#doomed.has(ifindex);
  }

  /** Ends the thread. What is not destroyed by then stays, down, for the next process to find. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#collected = [];
    await this.#worker?.terminate();
  }

  #reap(): void {
    const links = this.#collected;
    this.#collected = [];
    if (this.#closed || links.length === 0) return;
    this.destroy(links)
      .catch((error: Error) => this.#options.onError?.(error))
      .finally(() => this.#forget(links));
  }

  #forget(links: readonly DoomedLink[]): void {
    for (const { ifindex } of links) this.#doomed.delete(ifindex);
  }

  #start(): Worker {
    if (this.#worker) return this.#worker;
    const workerData: DeletionWorkerData = { netnsFd: this.#options.netnsFd };
    const worker = new Worker(new URL('./deletion-worker.ts', import.meta.url), {
      workerData,
      name: 'link-deletion',
      execArgv: [],
    });
    worker.on('message', (result: DeletionResult) => this.#finish(result));
    worker.on('error', (error) => this.#end(worker, error));
    worker.on('exit', () => this.#end(worker));
    this.#worker = worker;
    return worker;
  }

  #finish({ id, error }: DeletionResult): void {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (this.#waiting.size === 0) this.#worker?.unref();
    if (error) waiting?.reject(new KernelError(error));
    else waiting?.resolve();
  }

  /** The thread has ended, by a fault or at our own request; the next job starts another. */
  #end(worker: Worker, cause?: unknown): void {
    if (this.#worker !== worker) return;
    this.#worker = undefined;
    for (const { reject } of this.#waiting.values()) {
      reject(
        new KernelError({ code: 'ECANCELED', operation: 'delete', object: 'links', detail: 'the thread ended', cause }),
      );
    }
    this.#waiting.clear();
  }
}
