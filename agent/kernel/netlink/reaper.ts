/** Destroys links without holding up the main thread, at once or together with others after a while. */
import { KernelError } from '../errors.ts';
import { type DoomedLink, deleteLinks } from './group-deletion.ts';
import { NETLINK_PROTOCOL, type NetlinkClient } from './message.ts';
import { NetlinkSocket } from './socket.ts';

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

/**
 * A reaper with a socket of its own, whose requests block a thread of libuv's pool: a thread with an engine of its own
 * for the sake of one system call would cost ten megabytes. Keeps the process alive only while it works.
 */
export class BackgroundReaper implements LinkReaper {
  readonly #options: ReaperOptions;
  readonly #doomed = new Map<number, DoomedLink>();
  readonly #client: NetlinkClient;
  #collected: DoomedLink[] = [];
  /** One job after the other: each sees what the one before has left. Never rejects. */
  #turn: Promise<void> = Promise.resolve();
  #closed = false;

  /** Throws KernelError. */
  constructor(options: ReaperOptions = {}) {
    this.#options = options;
    const socket = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd: options.netnsFd });
    this.#client = {
      request: (request) => socket.requestInBackground(request),
      batch: (requests) => socket.batch(requests),
      dump: (request) => socket.dump(request),
      close: () => socket.close(),
    };
  }

  destroy(links: readonly DoomedLink[]): Promise<void> {
    const job = this.#turn.then(() => this.#destroy(links));
    this.#turn = job.catch(() => undefined);
    return job;
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

  /** Resolves when no work is left. What is not destroyed by then stays, down, for the next process to find. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#collected = [];
    await this.#turn;
    this.#client.close();
  }

  async #destroy(links: readonly DoomedLink[]): Promise<void> {
    if (this.#closed) {
      throw new KernelError({ code: 'ECANCELED', operation: 'delete', object: `${links.length} links` });
    }
    await deleteLinks(this.#client, links);
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
}
