/** The socket that hears what changes in the kernel, whoever changes it. Apart from the request socket: see NetlinkSocket. */
import type { RawNetlinkSocket } from 'netlink/dist/raw.js';
import { inNetns } from '../libc.ts';
import { retryDelayMs } from '../retry-delay.ts';
import type { Links } from './links.ts';
import { NETLINK_PROTOCOL, type NetlinkMessage, splitDatagram } from './message.ts';
import { drops, openRawNetlink } from './monitor-socket.ts';
import { GROUPS, type LinkFacts } from './rtnetlink.ts';

export interface MonitorListener {
  /** One notification. Of link messages, `before` is what was known under the link's index. */
  message(message: NetlinkMessage, before: LinkFacts | undefined): void;
  /** Notifications were lost: whatever is known may be wrong. */
  lost(reason: string): void;
}

export interface MonitorOptions {
  /** Kept up to date, before the listeners are called. */
  readonly links: Links;
  /** Listen in this network namespace; the caller keeps the fd open. */
  readonly netnsFd?: number;
  readonly receiveBufferBytes?: number;
  /** Told of a listener that threw: a fault of the agent's own. */
  readonly onFault?: (error: unknown) => void;
  /** Another way to open the socket, for tests. */
  readonly openSocket?: typeof openRawNetlink;
}

/** An overrun is silent (see monitor-socket.ts): the kernel's count of drops is read after this many messages and this often. */
const CHECK_AFTER_MESSAGES = 512;
const CHECK_INTERVAL_MS = 10_000;

/** Listens until closed; does not keep the process alive. */
export class NetlinkMonitor {
  readonly #options: MonitorOptions;
  readonly #listeners = new Set<MonitorListener>();
  readonly #timer: NodeJS.Timeout;
  /** Undefined while it cannot be opened again. */
  #opened: { readonly socket: RawNetlinkSocket; readonly inode: string } | undefined;
  #retry: NodeJS.Timeout | undefined;
  #drops = 0;
  #unchecked = 0;
  #closed = false;

  /** Throws KernelError when the socket cannot be opened. */
  constructor(options: MonitorOptions) {
    this.#options = options;
    this.#opened = this.#open();
    this.#timer = setInterval(() => this.check(), CHECK_INTERVAL_MS).unref();
  }

  /** Calls the listener until the signal aborts. One that throws is told that it has lost something. */
  subscribe(listener: MonitorListener, signal: AbortSignal): void {
    if (signal.aborted) return;
    this.#listeners.add(listener);
    signal.addEventListener('abort', () => this.#listeners.delete(listener), { once: true });
  }

  /** Looks whether the kernel had to drop notifications since the last look. When it cannot, some may have been lost. */
  check(): void {
    this.#unchecked = 0;
    if (!this.#opened) return;
    const { inode } = this.#opened;
    try {
      const count = this.#inside(() => drops(inode));
      if (count > this.#drops) this.#lost(`the kernel dropped ${count - this.#drops} notifications`);
      this.#drops = count;
    } catch (error) {
      this.#lost(`the dropped notifications cannot be counted: ${(error as Error).message}`);
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    clearTimeout(this.#retry);
    this.#opened?.socket.close();
    this.#opened = undefined;
    this.#listeners.clear();
  }

  #open(): { socket: RawNetlinkSocket; inode: string } {
    const { netnsFd, receiveBufferBytes, openSocket = openRawNetlink } = this.#options;
    const opened = openSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd, receiveBufferBytes });
    const { socket } = opened;
    socket.on('message', (datagram) => this.#receive(datagram));
    socket.on('truncatedMessage', () => this.#reopen('a notification was truncated'));
    socket.on('error', (error) => this.#reopen(error.message));
    for (const group of Object.values(GROUPS)) socket.addMembership(group);
    socket.unref();
    return opened;
  }

  /** Until it succeeds: whoever reports the socket's end cannot deal with a failure. */
  #reopen(reason: string, attempts = 1): void {
    if (this.#closed) return;
    this.#opened?.socket.close();
    this.#opened = undefined;
    clearTimeout(this.#retry);
    try {
      this.#opened = this.#open();
    } catch {
      this.#retry = setTimeout(() => this.#reopen(reason, attempts + 1), retryDelayMs(attempts)).unref();
      return;
    }
    this.#drops = 0;
    this.#lost(reason);
  }

  #receive(datagram: Buffer): void {
    for (const { message } of splitDatagram(datagram)) {
      const before = this.#options.links.see(message);
      for (const listener of this.#listeners) this.#tell(listener, message, before);
      this.#unchecked++;
    }
    if (this.#unchecked >= CHECK_AFTER_MESSAGES) this.check();
  }

  #tell(listener: MonitorListener, message: NetlinkMessage, before: LinkFacts | undefined): void {
    try {
      listener.message(message, before);
    } catch (error) {
      this.#options.onFault?.(error);
      this.#lost('a notification could not be taken up', [listener]);
    }
  }

  #lost(reason: string, listeners: Iterable<MonitorListener> = this.#listeners): void {
    for (const listener of listeners) {
      try {
        listener.lost(reason);
      } catch (error) {
        this.#options.onFault?.(error);
      }
    }
  }

  /** The counter is listed in the namespace of the socket. */
  #inside<T>(action: () => T): T {
    const { netnsFd } = this.#options;
    return netnsFd === undefined ? action() : inNetns(netnsFd, action);
  }
}
