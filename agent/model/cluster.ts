/** API objects, trimmed to what Tulle reads. Values are frozen; equal ones keep their identity across relists. */
import type { Cidr, IpAddress } from './ip.ts';
import { type PersistentMap, persistentMap } from './persistent-map.ts';
import type { EndpointSlice, Service } from './services.ts';

export interface Node {
  readonly name: string;
  readonly uid: string;
  /** Milliseconds since the epoch. */
  readonly creationMs: number;
  /** spec.podCIDRs, at most one a family, in the object's order. */
  readonly podCidrs: readonly Cidr[];
  /** status.addresses of type InternalIP, in the object's order. */
  readonly internalIps: readonly IpAddress[];
  /** Annotation tulle.dev/underlay-ip (comma separated): takes the place of the InternalIP of its family. */
  readonly underlayIps: readonly IpAddress[];
  /** Label topology.kubernetes.io/zone. */
  readonly zone?: string;
  /** It is being deleted, or its autoscaler is about to: load balancers should turn away (KEP-3836). */
  readonly leaving?: true;
  /** Fields that were present but unusable, one sentence each. */
  readonly problems: readonly string[];
}

/** Annotation by which a pod asks for addresses: at most one a family, comma separated. */
export const IPS_ANNOTATION = 'tulle.dev/ips';

export interface Pod {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly creationMs: number;
  readonly nodeName: string;
  readonly hostNetwork: boolean;
  readonly phase: string;
  readonly podIps: readonly IpAddress[];
  /** IPS_ANNOTATION as it is; a longer text than any proper one is cut and ends in `…`. */
  readonly ipsAnnotation?: string;
  /** Of a mirror pod: the uid under which the kubelet runs the static pod that it stands for. */
  readonly staticPodUid?: string;
}

/** An immutable view of everything the watch knows. `synced` once every cache has listed once. */
export interface Cluster {
  readonly synced: boolean;
  /** By name. */
  readonly nodes: ReadonlyMap<string, Node>;
  /** Pods bound to this node, by `<namespace>/<name>`. */
  readonly pods: ReadonlyMap<string, Pod>;
  /** Services with an address, by `<namespace>/<name>`; none unless Tulle serves them. */
  readonly services: PersistentMap<Service>;
  /** Of such Services, by `<namespace>/<name>` of the slice. */
  readonly endpointSlices: PersistentMap<EndpointSlice>;
}

/** Before anything is known. */
export const EMPTY_CLUSTER: Cluster = Object.freeze({
  synced: false,
  nodes: new Map(),
  pods: new Map(),
  services: persistentMap<Service>(),
  endpointSlices: persistentMap<EndpointSlice>(),
});
