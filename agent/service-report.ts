/** What `tulle service` prints: Services as this node plans them, and what the kernel holds of them. Plain JSON. */
import { isDeepStrictEqual } from 'node:util';
import type { Cluster } from './model/cluster.ts';
import type { Fragment } from './model/fragment.ts';
import { families, familyOf } from './model/ip.ts';
import type { AnyItem, Key, Objects } from './model/items.ts';
import type { BackendSet, Endpoint, EndpointSlice, Frontend, HealthCheck, Service } from './model/services.ts';
import { nearNames } from './near-names.ts';
import type { ServicesPlan, ServiceView } from './plan/services/services.ts';
import type { KernelState } from './reconcile/kernel-state.ts';
import type { Inspection, Reconciler } from './reconcile/reconciler.ts';
import { fragmentsWith } from './service-obstacles.ts';
import type { Answers } from './telemetry/control-server.ts';
import { inTurns } from './turns.ts';

export interface ServiceBooks {
  readonly state: KernelState;
  readonly reconciler: Reconciler;
}

export interface ServiceSources {
  readonly mode: string;
  readonly cluster: () => Cluster;
  /** Undefined before the first. */
  readonly plan: () => Pick<ServicesPlan, 'look'> | undefined;
  readonly books: ServiceBooks;
}

/** What the command asks the agent. Each throws an Error with what to do where there is nothing to tell. */
export const serviceAnswers = (sources: ServiceSources) =>
  ({
    services: (signal: AbortSignal) => inTurns(listServices(plannedCluster(sources).cluster, sources.books), signal),
    service: (signal: AbortSignal, query: URLSearchParams) => {
      const { cluster, plan } = plannedCluster(sources);
      const name = query.get('name') ?? '';
      const view = plan.look(name);
      if (!view) throw new Error(notServed(name, cluster));
      return reportService(view, sources.books, signal);
    },
  }) satisfies Answers;

function plannedCluster({ mode, cluster, plan }: ServiceSources) {
  if (mode === 'off')
    throw new Error('Services are served by another proxy, as services.mode is off; set it to auto to have them here');
  const planned = plan();
  if (!planned) throw new Error('no Service is planned yet; tulle status says what the agent waits for');
  return { cluster: cluster(), plan: planned };
}

function notServed(name: string, { services }: Cluster): string {
  const near = nearNames(name, services.keys());
  const remedy = near.length > 0 ? `did you mean ${near.join(' or ')}?` : 'tulle service ls names them all';
  return `cannot show Service ${name}: expected one of the ${services.size} that are served here, got none of this name (headless ones and those of another proxy are not); ${remedy}`;
}

/** One line of `tulle service ls`. */
export interface ServiceRow {
  /** `<namespace>/<name>` */
  readonly service: string;
  readonly addresses: readonly string[];
  /** `80/TCP`, `80:30080/TCP` with a node port. */
  readonly ports: readonly string[];
  /** Of the family that has most: a pod has one in each. */
  readonly endpoints: { readonly ready: number; readonly draining: number; readonly local: number };
  /** What is wrong with it, one sentence each: planned otherwise than asked, contested, or not in the kernel. */
  readonly problems: readonly string[];
}

export interface ServiceReport {
  readonly service: Service;
  readonly frontends: readonly Frontend[];
  readonly sets: readonly BackendSet[];
  readonly health?: HealthCheck;
  /** Of the Service first, then what it shares with others. */
  readonly items: readonly ItemReport[];
  readonly problems: readonly string[];
}

/** `held`: as planned. `contested`: an older object has the key, and what is held is its own. */
export interface ItemReport {
  readonly key: Key;
  readonly state: 'held' | 'missing' | 'differs' | 'contested';
  readonly shared: boolean;
  readonly wanted: AnyItem['value'];
  /** What the kernel has; absent where it has nothing. */
  readonly found?: Objects[AnyItem['kind']];
  /** Of a contested one: whose it is. */
  readonly owner?: string;
  /** Why it could not be written. */
  readonly error?: string;
}

/** All of them, by name, from what is known of the kernel. The cost goes with the cluster: to be run in turns. */
export function* listServices(cluster: Cluster, books: ServiceBooks): Generator<void, readonly ServiceRow[]> {
  const slices = new Map<string, EndpointSlice[]>();
  for (const slice of cluster.endpointSlices.values()) {
    const ofService = slices.get(slice.service);
    if (ofService) ofService.push(slice);
    else slices.set(slice.service, [slice]);
    yield;
  }
  const rows: ServiceRow[] = [];
  for (const [key, service] of cluster.services) {
    rows.push(rowOf(key, service, slices.get(key) ?? [], books));
    yield;
  }
  return rows.sort((a, b) => (a.service < b.service ? -1 : 1));
}

function rowOf(key: string, service: Service, slices: readonly EndpointSlice[], books: ServiceBooks): ServiceRow {
  const { clusterIps, loadBalancerIps, externalIps, ports } = service;
  const endpoints = [...new Map(slices.flatMap((slice) => slice.endpoints.map((each) => [each.ip, each]))).values()];
  const count = (isMeant: (endpoint: Endpoint) => boolean): number =>
    Math.max(
      ...families.map(({ family }) => endpoints.filter((each) => familyOf(each.ip) === family && isMeant(each)).length),
    );
  return {
    service: key,
    addresses: [...clusterIps, ...loadBalancerIps, ...externalIps],
    ports: ports.map(
      ({ port, nodePort, protocol }) => `${port}${nodePort === undefined ? '' : `:${nodePort}`}/${protocol}`,
    ),
    endpoints: {
      ready: count(({ state }) => state === 'ready'),
      draining: count(({ state }) => state === 'draining'),
      local: count(({ state, local }) => state === 'ready' && local === true),
    },
    problems: rowProblems(books.state.fragment(`service ${key}`), books),
  };
}

function rowProblems(fragment: Fragment | undefined, { state, reconciler }: ServiceBooks): readonly string[] {
  if (!fragment) return ['it is not planned yet'];
  const owners = new Set(fragment.items.flatMap((item) => ownerOf(state, fragment, item) ?? []));
  const missing = fragment.items.filter(({ key }) => reconciler.known(key) === undefined);
  const failures = reconciler.failures(fragment.items.map(({ key }) => key));
  return [
    ...fragment.problems,
    ...[...owners].map((owner) => `${owner} has a place that it wants, too`),
    ...(missing.length > 0 ? [`${missing.length} of ${fragment.items.length} items are not in the kernel`] : []),
    ...failures.map(({ message }) => message),
  ];
}

/** One of them, with fresh lists of the kinds that it consists of. */
export async function reportService(
  { service, frontends, sets, health, problems }: ServiceView,
  { state, reconciler }: ServiceBooks,
  signal: AbortSignal,
): Promise<ServiceReport> {
  const id = `service ${service.namespace}/${service.name}`;
  const wanted = [...fragmentsWith(state, [id])].flatMap((fragment) =>
    fragment.items.map((item) => ({ fragment, item })),
  );
  const inspections = await reconciler.inspect(
    wanted.map(({ item }) => item.key),
    signal,
  );
  const items = wanted.map(({ fragment, item }): ItemReport => {
    const [failure] = reconciler.failures([item.key]);
    const owner = ownerOf(state, fragment, item);
    return {
      key: item.key,
      shared: fragment.id !== id,
      wanted: item.value,
      ...inspected(inspections.get(item.key), owner),
      ...(owner !== undefined && { owner }),
      ...(failure && { error: failure.message }),
    };
  });
  return { service, frontends, sets, ...(health && { health }), items, problems };
}

function inspected(inspection: Inspection | undefined, owner: string | undefined): Pick<ItemReport, 'state' | 'found'> {
  const found = inspection?.found;
  if (owner !== undefined) return { state: 'contested', ...(found && { found }) };
  if (found === undefined) return { state: 'missing' };
  return { state: inspection?.isRight ? 'held' : 'differs', found };
}

/** Who has the key instead of this fragment, for another value. */
function ownerOf(state: KernelState, fragment: Fragment, { key, value }: AnyItem): string | undefined {
  const [winner] = state.claims(key);
  if (!winner || winner.fragment.id === fragment.id || isDeepStrictEqual(winner.item.value, value)) return undefined;
  return winner.fragment.cause;
}
