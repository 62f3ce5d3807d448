/** One Service as this node serves it: its frontends, the backend sets that they lead to, and its health check. Pure. */
import { type Family, familyOf, type IpAddress } from '../../model/ip.ts';
import {
  type Backend,
  type BackendSet,
  type BackendSetId,
  backendSet,
  type EndpointSlice,
  type Frontend,
  type FrontendKind,
  frontendId,
  type HealthCheck,
  isSetId,
  type Scope,
  type Service,
  type ServicePort,
  type Verdict,
} from '../../model/services.ts';
import { type Selection, selectBackends } from './endpoints.ts';
import { type Guard, refusalOf } from './guard.ts';

/** What the plan of a Service depends on besides its own objects. */
export interface ServiceContext {
  /** topology.kubernetes.io/zone of this node. */
  readonly zone: string | undefined;
  readonly nodePortIps: readonly IpAddress[];
  readonly guard: Guard;
}

export interface ServicePlan {
  readonly frontends: readonly Frontend[];
  /** Each once. */
  readonly sets: readonly BackendSet[];
  readonly health?: HealthCheck;
  /** What could not be as asked, one sentence each. */
  readonly problems: readonly string[];
}

/** `otherOwner`: another Service that has this cluster address. */
export function planService(
  service: Service,
  slices: readonly EndpointSlice[],
  context: ServiceContext,
  otherOwner: (ip: IpAddress) => string | undefined,
): ServicePlan {
  const families = new Set(service.clusterIps.map(familyOf));
  const sets = new Map<BackendSetId, BackendSet>();
  const frontends = new Map<string, Frontend>();
  const problems = new Set<string>();
  const enter = (
    places: readonly Place[],
    port: ServicePort | undefined,
    targets: (family: Family) => Targets,
  ): void => {
    for (const place of places) {
      const { ip, kind } = place;
      const at = { ip, kind, port: place.port, protocol: port?.protocol ?? ('any' as const) };
      const refusal = families.has(familyOf(ip))
        ? refusalOf(at, kind === 'cluster' ? undefined : otherOwner(ip), context.guard)
        : `the Service has no ${familyOf(ip)} cluster address`;
      if (refusal !== undefined)
        problems.add(`cannot serve ${KIND_NAMES[kind]} ${ip} of Service ${nameOf(service)}: ${refusal}`);
      else for (const made of frontendPair(service, at, labelOf(service, port), targets(familyOf(ip)))) claim(made);
    }
  };
  const claim = (frontend: Frontend): void => {
    const id = frontendId(frontend);
    const former = frontends.get(id);
    // An address may be a Service's in two ways, of which the first in `placesOf` counts; never twice in one.
    if (!former) frontends.set(id, frontend);
    else if (former.kind === frontend.kind)
      problems.add(`cannot serve ${frontend.service} at ${id}: ${former.service} has it already; give it another port`);
  };
  const use = (backends: readonly Backend[]): BackendSetId | undefined => {
    if (backends.length === 0) return undefined;
    const made = backendSet(backends);
    sets.set(made.id, made);
    return made.id;
  };
  for (const port of service.ports) {
    const targets = memo((family: Family) => targetsOf(selectBackends(port, family, slices, context.zone), use));
    enter(placesOf(service, port, context.nodePortIps), port, targets);
  }
  enter(clusterPlaces(service, 0), undefined, () => NOTHING_LISTENS);
  for (const problem of rangeProblems(service)) problems.add(problem);
  const { health, refusals } = healthOf(service, slices, context);
  for (const refusal of refusals) problems.add(refusal);
  return {
    frontends: [...frontends.values()],
    sets: usedSets(sets, frontends),
    ...(health && { health }),
    problems: [...problems],
  };
}

/** Backends by scope and policy. */
interface Targets {
  readonly cluster: BackendSetId | Verdict;
  readonly localInside: BackendSetId | Verdict;
  readonly localOutside: BackendSetId | Verdict;
}
const NOTHING_LISTENS: Targets = { cluster: 'refuse', localInside: 'refuse', localOutside: 'refuse' };

/** Where only other nodes have endpoints, a socket is told and a packet is dropped, so that its sender tries elsewhere. */
function targetsOf(
  { cluster, local }: Selection,
  use: (backends: readonly Backend[]) => BackendSetId | undefined,
): Targets {
  const ofLocal = use(local);
  return {
    cluster: use(cluster) ?? 'refuse',
    localInside: ofLocal ?? 'refuse',
    localOutside: ofLocal ?? (cluster.length > 0 ? 'drop' : 'refuse'),
  };
}

/** An address of a Service with the port that clients use there. */
interface Place {
  readonly ip: IpAddress;
  readonly port: number;
  readonly kind: FrontendKind;
}

const KIND_NAMES: Readonly<Record<FrontendKind, string>> = {
  cluster: 'the cluster address',
  'node-port': 'a node port at',
  'load-balancer': 'the load-balancer address',
  external: 'the external address',
  'host-port': 'a host port at',
};

const clusterPlaces = ({ clusterIps }: Service, port: number): readonly Place[] =>
  clusterIps.map((ip) => ({ ip, port, kind: 'cluster' }));

/** In the order in which they count. */
function placesOf(
  service: Service,
  { port, nodePort }: ServicePort,
  nodePortIps: readonly IpAddress[],
): readonly Place[] {
  const at = (ips: readonly IpAddress[], on: number, kind: FrontendKind) => ips.map((ip) => ({ ip, port: on, kind }));
  const families = new Set(service.clusterIps.map(familyOf));
  return [
    ...clusterPlaces(service, port),
    ...at(service.loadBalancerIps, port, 'load-balancer'),
    ...at(service.externalIps, port, 'external'),
    ...(nodePort === undefined
      ? []
      : at(
          nodePortIps.filter((ip) => families.has(familyOf(ip))),
          nodePort,
          'node-port',
        )),
  ];
}

/**
 * What a socket on this node means by the address, and what a packet means that arrives here. From inside, external addresses
 * reach all endpoints whatever externalTrafficPolicy says; from outside, cluster addresses are served and masqueraded.
 */
function frontendPair(
  service: Service,
  at: Pick<Frontend, 'ip' | 'port' | 'protocol' | 'kind'>,
  label: string,
  targets: Targets,
): readonly Frontend[] {
  const { internalTrafficPolicy, externalTrafficPolicy, affinitySeconds, sourceRanges } = service;
  const isCluster = at.kind === 'cluster';
  const isLocalInside = isCluster && internalTrafficPolicy === 'Local';
  const isLocalOutside = isCluster ? isLocalInside : externalTrafficPolicy === 'Local';
  const isRestricted = at.kind === 'load-balancer' && sourceRanges !== undefined;
  const extras = {
    ...(affinitySeconds !== undefined && at.protocol !== 'any' && { affinitySeconds }),
    ...(isRestricted && { sourceRanges: sourceRanges.filter((range) => familyOf(range) === familyOf(at.ip)) }),
  };
  const inside = isLocalInside ? targets.localInside : targets.cluster;
  const outside = isLocalOutside ? targets.localOutside : targets.cluster;
  const keepsSource = isLocalOutside && !isCluster;
  const masquerade = isSetId(outside) && !keepsSource ? ({ masquerade: true } as const) : {};
  return [
    frontend(at, 'internal', inside, label, extras),
    frontend(at, 'external', outside, label, { ...extras, ...masquerade }),
  ];
}

/** Written out: an object that is put together by spreading takes twice the memory, and there are many of these. */
function frontend(
  { ip, port, protocol, kind }: Pick<Frontend, 'ip' | 'port' | 'protocol' | 'kind'>,
  scope: Scope,
  target: Frontend['target'],
  service: string,
  extras: Partial<Frontend>,
): Frontend {
  const plain: Frontend = { scope, ip, port, protocol, kind, target, service };
  return Object.keys(extras).length === 0 ? plain : { ...plain, ...extras };
}

const nameOf = ({ namespace, name }: Service): string => `${namespace}/${name}`;

const labelOf = ({ namespace, name }: Service, port: ServicePort | undefined): string =>
  [namespace, '/', name, ':', port === undefined ? '*' : port.name || port.port].join('');

/** kube-proxy leaves a family open that the ranges do not name; here they mean what they say. */
function rangeProblems(service: Service): readonly string[] {
  const { loadBalancerIps, sourceRanges } = service;
  if (sourceRanges === undefined) return [];
  return loadBalancerIps
    .filter((ip) => !sourceRanges.some((range) => familyOf(range) === familyOf(ip)))
    .map(
      (ip) =>
        `the load-balancer address ${ip} of Service ${nameOf(service)} admits nobody: loadBalancerSourceRanges has none of ${familyOf(ip)}`,
    );
}

/** KEP-1669: draining endpoints serve, but load balancers are told to turn away. An endpoint counts once in all slices. */
function healthOf(
  service: Service,
  slices: readonly EndpointSlice[],
  { nodePortIps, guard }: ServiceContext,
): Pick<ServicePlan, 'health'> & { readonly refusals: readonly string[] } {
  const { namespace, name, healthCheckNodePort: port } = service;
  if (port === undefined) return { refusals: [] };
  const families = new Set(service.clusterIps.map(familyOf));
  const judged = nodePortIps
    .filter((ip) => families.has(familyOf(ip)))
    .map((ip) => ({ ip, refusal: refusalOf({ ip, port, protocol: 'TCP', kind: 'node-port' }, undefined, guard) }));
  const ips = judged.filter(({ refusal }) => refusal === undefined).map(({ ip }) => ip);
  const refusals = judged.flatMap(({ ip, refusal }) =>
    refusal === undefined
      ? []
      : [`cannot serve the health check of Service ${nameOf(service)} at port ${port} of ${ip}: ${refusal}`],
  );
  const all = slices.flatMap(({ endpoints }) => endpoints);
  const local = new Set(all.filter((each) => each.local && each.state === 'ready').map(({ ip }) => ip));
  const countOf = (family: Family) => [...local].filter((ip) => familyOf(ip) === family).length;
  const localEndpoints = { ipv4: countOf('ipv4'), ipv6: countOf('ipv6') };
  return { health: { port, namespace, name, ips, localEndpoints }, refusals };
}

/** A set of local backends may have been made for a policy that no frontend has. */
function usedSets(
  sets: ReadonlyMap<BackendSetId, BackendSet>,
  frontends: ReadonlyMap<string, Frontend>,
): readonly BackendSet[] {
  const used = new Set<string>([...frontends.values()].map(({ target }) => target));
  return [...sets.values()].filter(({ id }) => used.has(id));
}

function memo<K, V>(compute: (key: K) => V): (key: K) => V {
  const known = new Map<K, V>();
  return (key) => {
    const value = known.get(key) ?? compute(key);
    known.set(key, value);
    return value;
  };
}
