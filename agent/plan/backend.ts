/** What a backend (how pod traffic reaches other nodes) contributes. A new backend is one file that exports a Backend. */
import type { Node } from '../model/cluster.ts';
import type { Host } from '../model/host.ts';
import type { Cidr, Family } from '../model/ip.ts';
import type { AnyItem } from '../model/items.ts';
import type { PlanSettings, Underlay } from './underlay.ts';

export interface Backend {
  readonly name: string;
  /** Bytes that a tunnel over this family adds to each packet; absent for a backend without a tunnel. */
  readonly overheadBytes?: (family: Family, settings: PlanSettings) => number;
  /** Where the tunnel is found; absent for a backend without one. */
  readonly tunnel?: (settings: PlanSettings) => TunnelPlace;
  /** The device and the rules that every node has once. */
  device(underlay: Underlay, host: Host, settings: PlanSettings): readonly AnyItem[];
  /** How this node reaches the pods of one peer. `podCidrs` are of families that this node has pods of. */
  peer(node: Node, podCidrs: readonly Cidr[], underlay: Underlay, settings: PlanSettings): PeerPlan;
}

/** For people who look for it. */
export interface TunnelPlace {
  readonly link: string;
  /** UDP. */
  readonly port: number;
  /** The setting that says which port. */
  readonly portSetting: 'vxlan.port' | 'tun.port';
}

export interface PeerPlan {
  readonly items: readonly AnyItem[];
  /** What could not be planned, one sentence each, with the remedy. */
  readonly problems: readonly string[];
}
