/**
 * What this node agrees on with its peers: how data are carried, and, with encryption, under which keys. It speaks with them in
 * control messages, and knows neither sockets nor threads nor the time by itself.
 */
import type { IpAddress } from '../../model/ip.ts';
import type { TunCarriage, TunEncryption } from '../../model/items.ts';
import type { PaceOptions } from './negotiation-pace.ts';
import { type Agreement, NegotiationPeer } from './negotiation-peer.ts';
import type { AgreementStatus } from './negotiation-report.ts';
import type { SecretSource } from './secret.ts';

export type { Agreement } from './negotiation-peer.ts';

export interface NegotiationOptions extends PaceOptions {
  /** Name of this Node. */
  readonly self: string;
  /** How this node would like to send. */
  readonly carriage: TunCarriage;
  readonly encryption: TunEncryption;
  /** With encryption. */
  readonly secret?: SecretSource;
  /** Sends a control message to a peer's end; it may be lost. */
  readonly send: (end: IpAddress, bytes: Uint8Array) => void;
  /**
   * What holds from now on. A promise resolves once datagrams under the new keys are taken; the peer is told only then, so
   * that none of them comes too early. Without one that must be so on return. It must not reject.
   */
  readonly onAgreed: (node: string, agreement: Agreement) => void | Promise<void>;
}

/**
 * One for each opening of the path: its nonces, and so all keys, are new, as the counters of its threads are. Until the first
 * onAgreed of a peer there are no keys, and data are carried in segments.
 */
export class Negotiation {
  readonly #options: NegotiationOptions;
  readonly #peers = new Map<string, NegotiationPeer>();

  constructor(options: NegotiationOptions) {
    this.#options = options;
  }

  /** Enters a peer. At another end it is another one: nothing that was agreed before holds. */
  setPeer(node: string, end: IpAddress): void {
    if (this.#peers.get(node)?.end === end) return;
    this.removePeer(node);
    const peer = new NegotiationPeer(this.#options, node, end);
    this.#peers.set(node, peer);
    peer.tick();
  }

  removePeer(node: string): void {
    this.#peers.get(node)?.leave();
    this.#peers.delete(node);
  }

  /** A control message came from the peer's end. The bytes need not stay. */
  received(node: string, bytes: Uint8Array): void {
    this.#peers.get(node)?.received(bytes);
  }

  /** The peer's host answered that nobody listens at its end. */
  refused(node: string): void {
    this.#peers.get(node)?.refused();
  }

  /** Data came under a session that this node does not have. */
  unknownSession(node: string): void {
    this.#peers.get(node)?.unknownSession();
  }

  /** To be called a few times a second. */
  tick(): void {
    for (const peer of this.#peers.values()) peer.tick();
  }

  /** Throws RangeError for a node that is no peer. */
  status(node: string): AgreementStatus {
    const peer = this.#peers.get(node);
    if (!peer) throw new RangeError(`cannot tell the status of Node ${node}: it is no peer of the tunnel`);
    return peer.status();
  }
}
