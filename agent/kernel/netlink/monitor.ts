/** The socket that hears what changes in the kernel, whoever changes it. Apart from the request socket: see NetlinkSocket. */
import type { RawNetlinkSocket } from 'netlink/dist/raw.js';
import { inNetns } from '../libc.ts';
import type { Links } from './links.ts';
import { NETLINK_PROTOCOL, type NetlinkMessage, splitDatagram } from './message.ts';
import { GROUPS, type LinkFacts } from './rtnetlink.ts';
import { drops, openRawNetlink } from './socket.ts';

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
}

/** An overrun is silent (see socket.ts): the kernel's count of drops is read after this many messages and this often. */
const CHECK_AFTER_MESSAGES = 512;
const CHECK_INTERVAL_MS = 10_000;

/** Listens until closed; does not keep the process alive. */
export class NetlinkMonitor {
  readonly #options: MonitorOptions;
  readonly #listeners = new Set<MonitorListener>();
  readonly #timer: NodeJS.Timeout;
  #socket: RawNetlinkSocket;
  #inode: string;
  #drops = 0;
  #unchecked = 0;
  #closed = false;

  /** Throws KernelError when the socket cannot be opened. */
  constructor(options: MonitorOptions) {
    this.#options = options;
    ({ socket: this.#socket, inode: this.#inode } = this.#open());
    this.#timer = setInterval(() => this.check(), CHECK_INTERVAL_MS).unref();
  }

  /** Calls the listener until the signal aborts. A listener must not throw. */
  subscribe(listener: MonitorListener, signal: AbortSignal): void {
    if (signal.aborted) return;
    this.#listeners.add(listener);
    signal.addEventListener('abort', () => this.#listeners.delete(listener), { once: true });
  }

  /** Looks whether the kernel had to drop notifications since the last look. */
  check(): void {
    this.#unchecked = 0;
    if (this.#closed) return;
    const count = this.#inside(() => drops(this.#inode));
    if (count > this.#drops) this.#lost(`the kernel dropped ${count - this.#drops} notifications`);
    this.#drops = count;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    this.#socket.close();
    this.#listeners.clear();
  }

  #open(): { socket: RawNetlinkSocket; inode: string } {
    const { netnsFd, receiveBufferBytes } = this.#options;
    const opened = openRawNetlink(NETLINK_PROTOCOL.ROUTE, { netnsFd, receiveBufferBytes });
    const { socket } = opened;
    socket.on('message', (datagram) => this.#receive(datagram));
    socket.on('truncatedMessage', () => this.#reopen('a notification was truncated'));
    socket.on('error', (error) => this.#reopen(error.message));
    for (const group of Object.values(GROUPS)) socket.addMembership(group);
    socket.unref();
    return opened;
  }

  #reopen(reason: string): void {
    if (this.#closed) return;
    this.#socket.close();
    ({ socket: this.#socket, inode: this.#inode } = this.#open());
    this.#drops = 0;
    this.#lost(reason);
  }

  #receive(datagram: Buffer): void {
    for (const { message } of splitDatagram(datagram)) {
      const before = this.#options.links.see(message);
      for (const listener of this.#listeners) listener.message(message, before);
      this.#unchecked++;
    }
    if (this.#unchecked >= CHECK_AFTER_MESSAGES) this.check();
  }

  #lost(reason: string): void {
    for (const listener of this.#listeners) listener.lost(reason);
  }

  /** The counter is listed in the namespace of the socket. */
  #inside<T>(action: () => T): T {
    const { netnsFd } = this.#options;
    return netnsFd === undefined ? action() : inNetns(netnsFd, action);
  }
}
