/** What the path of a tunnel says of itself: for `tulle status`, metrics and the log. */
import type { IpAddress } from '../../model/ip.ts';
import type { TunCarriage, TunEncryption, TunPathItem } from '../../model/items.ts';

export interface TunStatus {
  /** What is open; absent without one. */
  readonly path?: TunPathItem;
  /** What is wrong with all peers alike: a secret that cannot be read. One sentence each, with the remedy. */
  readonly problems: readonly string[];
  readonly peers: readonly TunPeerStatus[];
  /** Packets and datagrams that belong to no peer, by reason, since the path was opened. */
  readonly dropped: TunDrops;
}

/** Inner packets, and their bytes with the inner headers. A segment of a large packet counts as one. */
export interface TunTraffic {
  readonly packets: number;
  readonly bytes: number;
}

/** Reasons as they are counted; see counters.ts. Those that never occurred may be left out. */
export type TunDrops = Readonly<Record<string, number>>;

export interface TunPeerStatus {
  readonly node: string;
  readonly end: IpAddress;
  /** Whether both sides have agreed; `silent` and `refused`: no answer, or a port where nobody listens. */
  readonly state: 'agreed' | 'silent' | 'refused' | 'mismatch';
  /** How long it is in this state. */
  readonly sinceMs: number;
  /** How large packets are sent now. */
  readonly carriage: TunCarriage;
  readonly encryption: TunEncryption;
  /** Why nothing, or not all, gets through, with the remedy: a sentence that names the Node. */
  readonly problem?: string;
  /** Since the peer was entered. */
  readonly sent: TunTraffic;
  readonly received: TunTraffic;
  readonly dropped: TunDrops;
}
