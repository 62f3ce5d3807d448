/** What an agent says of itself on its control socket: `tulle status --json`. */
import type { ClusterStatus } from './cluster/cluster.ts';
import type { Config } from './config.ts';
import type { Feature } from './kernel/features.ts';
import type { NodeServicesStatus } from './node-services.ts';
import type { NodeTunnelStatus } from './node-tunnel.ts';
import type { Underlay } from './plan/underlay.ts';
import type { Readiness } from './pods/attachments.ts';
import type { AddressCount } from './pods/ipam.ts';
import type { PodRecord } from './pods/records.ts';
import type { ReconcilerStatus } from './reconcile/reconciler.ts';

export interface AgentStatus {
  readonly version: string;
  readonly nodeName: string;
  readonly backend: Config['backend'];
  /** How new pods are connected. */
  readonly podLink: Config['podLink'];
  readonly readiness: Readiness;
  /** Why the node is not ready, all reasons; none: it is. */
  readonly obstacles: readonly string[];
  /** Absent before the cluster has answered. */
  readonly underlay?: Underlay;
  readonly host: {
    readonly kernel: string;
    readonly iptables: string;
    /** What the kernel can do; empty just after the start. */
    readonly features: readonly Feature[];
  };
  readonly cluster: ClusterStatus;
  /** Absent where another proxy serves them. */
  readonly services?: NodeServicesStatus;
  /** Absent where the agent carries no tunnel itself. */
  readonly tunnel?: NodeTunnelStatus;
  readonly attachments: readonly PodRecord[];
  /** Addresses that pods have and can have, of each podCIDR. */
  readonly addresses: readonly AddressCount[];
  /** What is wrong with attachments and with what is served over HTTP, one sentence each. */
  readonly problems: readonly string[];
  readonly kernel: ReconcilerStatus;
}
