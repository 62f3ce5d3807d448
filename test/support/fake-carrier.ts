/** The path of a tunnel that carries nothing: it remembers what it was told, and fails when it is told to. */
import type { Carrier } from '../../agent/kernel/tun/drivers.ts';
import type { TunPathItem, TunPeerItem } from '../../agent/model/items.ts';

export class FakeCarrier implements Carrier {
  readonly peerItems = new Map<string, TunPeerItem>();
  #current: TunPathItem | undefined;
  #failure: Error | undefined;
  readonly #listeners: ((path: TunPathItem) => void)[] = [];

  current(): TunPathItem | undefined {
    return this.#current;
  }

  peers(): ReadonlyMap<string, TunPeerItem> {
    return this.peerItems;
  }

  async open(path: TunPathItem): Promise<void> {
    const failure = this.#failure;
    this.#failure = undefined;
    this.#current = undefined;
    if (failure) throw failure;
    this.#current = path;
  }

  async close(): Promise<void> {
    this.#current = undefined;
  }

  setPeer(peer: TunPeerItem): void {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure) throw failure;
    this.peerItems.set(peer.node, peer);
  }

  removePeer(node: string): void {
    this.peerItems.delete(node);
  }

  onBroken(listener: (path: TunPathItem) => void): void {
    this.#listeners.push(listener);
  }

  failNext(error: Error): void {
    this.#failure = error;
  }

  break(): void {
    const path = this.#current;
    this.#current = undefined;
    if (path) for (const listener of this.#listeners) listener(path);
  }
}
