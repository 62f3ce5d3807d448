/** What the main thread and the threads of the tunnel tell each other. */
import type { TunEncryption } from '../../model/items.ts';
import type { PeerEntry } from './peers.ts';

/** Given to a thread at its start. */
export interface ThreadData {
  readonly role: 'outbound' | 'inbound';
  readonly tunFd: number;
  readonly takesUdp: boolean;
  readonly socketFd: number;
  /** See openAskingSocket. */
  readonly askingFd: number;
  readonly attention: SharedArrayBuffer;
  readonly port: number;
  readonly encryption: TunEncryption;
  readonly counters: SharedArrayBuffer;
  /** What the path to each peer takes, by slot; see PathMtus. */
  readonly pathMtus: SharedArrayBuffer;
}

export type ToThread =
  /** Answered by `taken` with the same number. */
  | { readonly kind: 'peer'; readonly entry: PeerEntry; readonly number: number }
  | { readonly kind: 'no-peer'; readonly slot: number }
  | { readonly kind: 'stop' };

export type FromThread =
  /** What the peer sends is taken as its entry says. */
  | { readonly kind: 'taken'; readonly number: number }
  | { readonly kind: 'control'; readonly slot: number; readonly bytes: Uint8Array }
  | { readonly kind: 'unknown-session'; readonly slot: number }
  /** ICMP said that nobody listens at the peer's end. */
  | { readonly kind: 'refused'; readonly slot: number }
  /** The device has gone, or cannot be used any more. */
  | { readonly kind: 'broken'; readonly reason: string };

/** Words of `attention`, which both sides read and write. */
export const ATTENTION = {
  /** 1: there are messages. The thread looks at this before it waits; if it waits already, it is interrupted. */
  isAsked: 0,
  /** Number of the thread, once it runs. */
  thread: 1,
  words: 2,
} as const;
