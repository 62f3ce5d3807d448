/** What a backend (how pod traffic reaches other nodes) contributes. A new backend is one file with these two functions. */
import type { Node } from '../model/cluster.ts';
import type { Host } from '../model/host.ts';
import type { AnyItem } from '../model/items.ts';
import type { PlanSettings, Underlay } from './underlay.ts';

export interface Backend {
  readonly name: string;
  /** The device and the rules that every node has once. */
  device(underlay: Underlay, host: Host, settings: PlanSettings): readonly AnyItem[];
  /** How this node reaches the pods of one peer. */
  peer(peer: Peer, underlay: Underlay, settings: PlanSettings): readonly AnyItem[];
}

/** A peer whose tunnel end is known, and the pod CIDRs that it may have. */
export interface Peer {
  readonly node: Node;
  readonly end: NonNullable<Underlay['tunnel']>['local'];
  readonly podCidrs: Node['podCidrs'];
}
