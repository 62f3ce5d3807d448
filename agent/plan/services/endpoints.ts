/**
 * Which endpoints of a Service this node uses (KEP-1669 terminating endpoints, KEP-2433 zone hints, KEP-3015 and KEP-5224
 * same-zone and same-node preference, KEP-2086 internal traffic policy). publishNotReadyAddresses needs nothing here: the
 * API calls such endpoints ready. trafficDistribution neither: what is preferred comes as hints.
 */
import type { Family, IpAddress } from '../../model/ip.ts';
import type { Backend, Endpoint, EndpointSlice, ServicePort } from '../../model/services.ts';

/** Both are empty when nothing serves; `local` is not always among `cluster`: hints do not bind those who want local ones. */
export interface Selection {
  /** For traffic that may leave the node. Not empty while anything in the cluster is ready or draining. */
  readonly cluster: readonly Backend[];
  /** Those of this node. */
  readonly local: readonly Backend[];
}

interface Candidate extends Backend {
  readonly endpoint: Endpoint;
}

/** The order of the slices does not matter. */
export function selectBackends(
  port: Pick<ServicePort, 'name' | 'protocol'>,
  family: Family,
  slices: readonly EndpointSlice[],
  zone: string | undefined,
): Selection {
  const candidates = candidatesOf(port, family, slices);
  const ready = candidates.filter(({ endpoint }) => endpoint.state === 'ready');
  const draining = ready.length === candidates.length ? [] : candidates.filter(isDraining);
  const near = ready.filter(preference(ready, zone));
  const localReady = ready.filter(isLocal);
  return {
    cluster: near.length > 0 ? near : draining,
    local: localReady.length > 0 ? localReady : draining.filter(isLocal),
  };
}

const isDraining = ({ endpoint }: Candidate): boolean => endpoint.state === 'draining';
const isLocal = ({ endpoint }: Candidate): boolean => endpoint.local === true;

/** While endpoints move between slices one may stand in two of them: what speaks for it counts. */
function candidatesOf(
  { name, protocol }: Pick<ServicePort, 'name' | 'protocol'>,
  family: Family,
  slices: readonly EndpointSlice[],
): readonly Candidate[] {
  const found = new Map<number, Map<IpAddress, Candidate>>();
  for (const slice of slices) {
    if (slice.family !== family) continue;
    // A Service port may have several target ports: pods may give one name to different numbers.
    const target = slice.ports.find((each) => each.name === name && each.protocol === protocol)?.port;
    if (target === undefined) continue;
    const ofPort = found.get(target) ?? new Map<IpAddress, Candidate>();
    found.set(target, ofPort);
    for (const endpoint of slice.endpoints) {
      const { ip } = endpoint;
      const former = ofPort.get(ip);
      if (!former || weight(endpoint) > weight(former.endpoint)) ofPort.set(ip, { ip, port: target, endpoint });
    }
  }
  return [...found.values()].flatMap((ofPort) => [...ofPort.values()]);
}

/** Without regard to the order of slices: equal weights mean the same here. */
const weight = ({ state, local, nodeHint, zones }: Endpoint): string =>
  `${state === 'ready'} ${local === true} ${nodeHint ?? ''} ${zones?.join(' ') ?? ''}`;

/**
 * Hints count only if all ready endpoints have them and at least one is meant for this place; otherwise everything is used
 * (KEP-2433, "Overload" and "Fallback"). Those for nodes come before those for zones.
 */
function preference(ready: readonly Candidate[], zone: string | undefined): (candidate: Candidate) => boolean {
  const forNode = ({ endpoint }: Candidate) => endpoint.nodeHint === 'here';
  if (ready.every(({ endpoint }) => endpoint.nodeHint !== undefined) && ready.some(forNode)) return forNode;
  const forZone = ({ endpoint }: Candidate) => zone !== undefined && endpoint.zones?.includes(zone) === true;
  if (ready.every(({ endpoint }) => endpoint.zones !== undefined) && ready.some(forZone)) return forZone;
  return () => true;
}
