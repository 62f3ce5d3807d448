/**
 * Services and EndpointSlices, trimmed to what Tulle reads, and what they come to on this node: frontends that lead to sets
 * of backends. Every renderer (socket maps, packet rules) starts from frontends and sets alone.
 */
import { type Cidr, type Family, familyOf, type IpAddress } from './ip.ts';
import { hash } from './kernel-names.ts';

export type Protocol = 'TCP' | 'UDP' | 'SCTP';
export const PROTOCOLS: readonly Protocol[] = ['TCP', 'UDP', 'SCTP'];

/** To whom traffic may go: all endpoints, or only those on the node where it is decided. */
export type TrafficPolicy = 'Cluster' | 'Local';

/** A Service that has an address: no headless one, no ExternalName. */
export interface Service {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  /** Milliseconds since the epoch. */
  readonly creationMs: number;
  readonly clusterIps: readonly IpAddress[];
  /** spec.externalIPs: whoever may write a Service may write them. */
  readonly externalIps: readonly IpAddress[];
  /** status.loadBalancer.ingress with ipMode VIP. With ipMode Proxy the address is no business of a node. */
  readonly loadBalancerIps: readonly IpAddress[];
  /** spec.loadBalancerSourceRanges; absent: everybody. They are asked at loadBalancerIps only. */
  readonly sourceRanges?: readonly Cidr[];
  readonly ports: readonly ServicePort[];
  readonly internalTrafficPolicy: TrafficPolicy;
  readonly externalTrafficPolicy: TrafficPolicy;
  /** Of sessionAffinity ClientIP: 1 to 86400. */
  readonly affinitySeconds?: number;
  readonly healthCheckNodePort?: number;
}

/** Its target port stands in the slices, under the same name, whether it was given as a number or a name. */
export interface ServicePort {
  /** Empty for the only port of a Service. */
  readonly name: string;
  readonly protocol: Protocol;
  readonly port: number;
  readonly nodePort?: number;
}

export interface EndpointSlice {
  readonly namespace: string;
  readonly name: string;
  /** `<namespace>/<name>` of the Service. */
  readonly service: string;
  readonly family: Family;
  readonly ports: readonly SlicePort[];
  readonly endpoints: readonly Endpoint[];
}

export interface SlicePort {
  readonly name: string;
  readonly protocol: Protocol;
  readonly port: number;
}

/**
 * An endpoint that may be used. `ready` is what the conditions say (publishNotReadyAddresses makes the API say it of all);
 * `draining` is serving and terminating, for when nothing is ready. What is neither is not kept.
 */
export interface Endpoint {
  readonly ip: IpAddress;
  readonly state: 'ready' | 'draining';
  /** It runs on this node. */
  readonly local?: true;
  /** hints.forZones; absent: none. */
  readonly zones?: readonly string[];
  /** hints.forNodes, seen from this node; absent: none. */
  readonly nodeHint?: 'here' | 'elsewhere';
}

/** One place that connections of a frontend go to. */
export interface Backend {
  readonly ip: IpAddress;
  readonly port: number;
}

declare const brand: unique symbol;
/**
 * 32 hexadecimal digits: the hash of what is in the set and of nothing else, so that it can be written before the frontends
 * switch to it, is shared by all who want the same, and never comes to mean something else. 128 bits, as whoever writes
 * Services chooses the content: two sets with one hash would bring one's traffic to the other.
 */
export type BackendSetId = string & { readonly [brand]: 'BackendSetId' };

export interface BackendSet {
  readonly id: BackendSetId;
  readonly family: Family;
  /** At least one, each once, sorted by compareBackends. */
  readonly backends: readonly Backend[];
}

/** By the text of the address (code units), then by port. */
export const compareBackends = (a: Backend, b: Backend): number =>
  a.ip === b.ip ? a.port - b.port : a.ip < b.ip ? -1 : 1;

/** Mostly they come in order, and to sort even two takes more memory than the set. */
const isAfter = (each: Backend, i: number, all: readonly Backend[]): boolean =>
  i === 0 || compareBackends(all[i - 1] as Backend, each) < 0;

/** The set of these backends, in any order. Throws RangeError for none, TypeError for two families. */
export function backendSet(backends: readonly Backend[]): BackendSet {
  const sorted = backends.every(isAfter) ? backends : backends.toSorted(compareBackends).filter(isAfter);
  const [first] = sorted;
  if (!first) throw new RangeError('cannot make a set of backends: expected at least one, got none');
  const family = familyOf(first.ip);
  if (sorted.some(({ ip }) => familyOf(ip) !== family))
    throw new TypeError('cannot make a set of backends: expected one family, got two');
  const id = hash(sorted.map(({ ip, port }) => `${ip} ${port}`).join('\n'), 32) as BackendSetId;
  // Whatever else was known of them is not part of the set.
  return { id, family, backends: Object.freeze(sorted.map(({ ip, port }) => Object.freeze({ ip, port }))) };
}

/** What an address of this kind is to the Service; `host-port` is a pod's. */
export type FrontendKind = 'cluster' | 'node-port' | 'load-balancer' | 'external' | 'host-port';

/**
 * Who means something by the address: `internal` is a socket on this node, of the host or of a pod; `external` is a packet
 * that arrives at this node. A frontend always exists in both scopes, so that the same object owns it in both.
 */
export type Scope = 'internal' | 'external';

/** What becomes of a connection: `refuse` is an error at once (ECONNREFUSED; a packet is rejected), `drop` is silence. */
export type Verdict = 'refuse' | 'drop';

/** What one address, port and protocol mean on this node in one scope. */
export interface Frontend {
  readonly scope: Scope;
  readonly ip: IpAddress;
  /**
   * 0 with protocol `any`: every port and protocol of the address that no other frontend of the scope has. There is one for
   * each cluster address, and it refuses.
   */
  readonly port: number;
  readonly protocol: Protocol | 'any';
  readonly kind: FrontendKind;
  readonly target: BackendSetId | Verdict;
  /** A client keeps its backend for so long after its last connection, while that backend is in the set. */
  readonly affinitySeconds?: number;
  /**
   * Packets from other sources are dropped before anything else; may be empty. Absent: everybody may. Where it is present, a
   * socket leaves the connection as it is, as only the packet has a source: it is the owner of the address all the same.
   */
  readonly sourceRanges?: readonly Cidr[];
  /** External scope only: backends see this node instead of the client. */
  readonly masquerade?: true;
  /** For people: `<namespace>/<name>:<port name or number>`. */
  readonly service: string;
}

/** Whether the target is a set. */
export const isSetId = (target: Frontend['target']): target is BackendSetId => target !== 'refuse' && target !== 'drop';

/** `internal 10.96.0.1:443/TCP`, `external [fd00::1]:80/TCP`, `internal 10.96.0.1:*`. */
export function frontendId({
  scope,
  ip,
  port,
  protocol,
}: Pick<Frontend, 'scope' | 'ip' | 'port' | 'protocol'>): string {
  const host = ip.includes(':') ? `[${ip}]` : ip;
  return protocol === 'any' ? `${scope} ${host}:*` : `${scope} ${host}:${port}/${protocol}`;
}

/** What is served at a Service's healthCheckNodePort: 200 while there are local endpoints, else 503. */
export interface HealthCheck {
  readonly port: number;
  readonly namespace: string;
  readonly name: string;
  /** Where: at the addresses of node ports, in the families of the Service. */
  readonly ips: readonly IpAddress[];
  /**
   * Ready ones on this node; those that drain do not count, so that load balancers turn away. By family, as a pod has an
   * endpoint in each, and who asks over one sends over that one.
   */
  readonly localEndpoints: Readonly<Record<Family, number>>;
}
