/**
 * All Services, one fragment each. Only those are planned again that something changed for: their own objects, what this
 * node is for those that depend on it, the guard for those with addresses that it judges.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Cluster } from '../../model/cluster.ts';
import { type Fragment, rankOf } from '../../model/fragment.ts';
import { addressesOf, type Host } from '../../model/host.ts';
import { families, type IpAddress } from '../../model/ip.ts';
import { Draft, type PersistentMap, persistentMap } from '../../model/persistent-map.ts';
import type { Backend, EndpointSlice, HealthCheck, Service } from '../../model/services.ts';
import type { Losses } from '../claims.ts';
import { finish, type Steps } from '../steps.ts';
import { addressOfUrl, differences, nodePortIps, planGuard } from './guard.ts';
import { hostPortIps, type PlanHostPorts, planHostPorts } from './host-ports.ts';
import { baseFragment } from './iptables/base.ts';
import { type Rendered, rendering } from './rendering.ts';
import { planService, type ServiceContext, type ServicePlan } from './service.ts';
import { ServiceIndex } from './service-index.ts';
import type { ServiceSettings } from './settings.ts';

export interface ServicesInput {
  readonly nodeName: string;
  readonly cluster: Cluster;
  readonly losses: Losses;
  /** This node's addresses in the underlay, the last known ones while its Node is away. */
  readonly underlayIps: readonly IpAddress[];
  readonly host: Pick<Host, 'links' | 'randomFully'>;
  readonly settings: ServiceSettings;
}

export interface ServicesPlan {
  /** By fragment id: `service <namespace>/<name>`, and `services` for what concerns none of them. */
  readonly fragments: PersistentMap<Fragment>;
  /** By `<namespace>/<name>`. */
  readonly healthChecks: PersistentMap<HealthCheck>;
  /** The addresses at which this node opens node ports; the same list until it changes. */
  readonly nodePortIps: readonly IpAddress[];
  /** One Service (`<namespace>/<name>`) in full: worked out again, as what was planned is kept in its fragments only. */
  readonly look: (service: string) => ServiceView | undefined;
  /** Of the pods that this node has; the same function until it would plan otherwise. */
  readonly planHostPorts: PlanHostPorts;
}

export const NO_SERVICES: ServicesPlan = {
  fragments: persistentMap(),
  healthChecks: persistentMap(),
  nodePortIps: [],
  look: () => undefined,
  planHostPorts: () => [],
};

/** The API server as pods know it; its endpoints are the real addresses. */
const API_SERVICE = 'default/kubernetes';
/** From where on a change takes iptables a good part of a second. */
const IPTABLES_SERVICES = 2_000;
/** Sentences about slices of no Service. */
const STRAYS_MAX = 100;

export interface ServiceView extends ServicePlan {
  readonly service: Service;
  readonly slices: readonly EndpointSlice[];
}

interface Last {
  readonly input: ServicesInput;
  readonly index: ServiceIndex;
  readonly context: Context;
  readonly strays: readonly EndpointSlice[];
  readonly plan: ServicesPlan;
}

/** With what the guard was made of: that is work in proportion to the cluster. */
interface Context extends ServiceContext {
  readonly apiServers: readonly Backend[];
  readonly hostPortIps: readonly IpAddress[];
}

/** Keeps what the last plan worked out, and nothing else: the same inputs always give the same plan. */
export class ServicesPlanner {
  #last: Last | undefined;
  #planned = 0;

  /** How many Services were planned since the start, for tests and metrics. */
  get planned(): number {
    return this.#planned;
  }

  plan(input: ServicesInput): ServicesPlan {
    return finish(this.steps(input));
  }

  /** The same with pauses. One at a time; what is given up half-way begins from nothing the next time. */
  *steps(input: ServicesInput): Steps<ServicesPlan> {
    const last = this.#last;
    this.#last = undefined;
    const index = last?.index ?? new ServiceIndex();
    const touched = yield* index.follow(input.cluster, last?.input.cluster);
    const context = contextOf(input, index, last);
    const dirty = touched.union(yield* dependents(index, input.cluster.services, context, last?.context));
    const former = last?.plan ?? NO_SERVICES;
    const fragments = new Draft(former.fragments);
    const healthChecks = new Draft(former.healthChecks);
    for (const key of dirty) {
      const service = input.cluster.services.get(key);
      const plan = service && this.#planOne(key, service, index, context);
      const id = `service ${key}`;
      const rendered = plan && rendering(id, plan, input.settings);
      fragments.set(id, plan && rendered && fragmentOf(id, service, plan, rendered));
      for (const branch of rendered?.branches ?? []) fragments.set(branch.id, branch);
      healthChecks.set(key, plan?.health);
      yield;
    }
    fragments.set('services', generalFragment(input, former.fragments.get('services')));
    const strays = index.strays(STRAYS_MAX);
    enterStrays(fragments, strays, last?.strays ?? []);
    for (const { family } of families) {
      const base = baseFragment(family, input.host);
      fragments.set(base.id, kept(former.fragments.get(base.id), base));
    }
    const plan: ServicesPlan = {
      fragments: fragments.done(),
      healthChecks: healthChecks.done(),
      nodePortIps: context.nodePortIps,
      look: (key) => {
        const service = input.cluster.services.get(key);
        const slices = index.slicesOf(key);
        return service && { service, slices, ...planWith(key, service, index, context) };
      },
      planHostPorts: hostPortPlanner(context, input, last),
    };
    this.#last = { input, index, context, strays, plan };
    return plan;
  }

  #planOne(key: string, service: Service, index: ServiceIndex, context: ServiceContext): ServicePlan {
    this.#planned++;
    return planWith(key, service, index, context);
  }
}

const planWith = (key: string, service: Service, index: ServiceIndex, context: ServiceContext): ServicePlan =>
  planService(service, index.slicesOf(key), context, (ip) => index.otherOwner(ip, key));

function contextOf(input: ServicesInput, index: ServiceIndex, last: Last | undefined): Context {
  const { cluster, nodeName, losses, underlayIps, host, settings } = input;
  const former = last?.context;
  const apiServers = kept(former?.apiServers, apiServersOf(index, settings));
  const sameGuard =
    last?.input.cluster.nodes === cluster.nodes &&
    last.input.losses === losses &&
    last.input.settings === settings &&
    former?.apiServers === apiServers;
  const guard =
    former && sameGuard
      ? former.guard
      : kept(former?.guard, planGuard(cluster.nodes.values(), losses, apiServers, settings));
  const self = cluster.nodes.get(nodeName);
  const places = { hostIps: [...addressesOf(host)], underlayIps };
  const ips = kept(former?.nodePortIps, nodePortIps(self, places, guard, settings));
  const forHostPorts = kept(former?.hostPortIps, hostPortIps(host, guard));
  return { zone: self?.zone, guard, nodePortIps: ips, apiServers, hostPortIps: forHostPorts };
}

function hostPortPlanner(
  { guard, hostPortIps: ips }: Context,
  { settings }: ServicesInput,
  last: Last | undefined,
): PlanHostPorts {
  const isSame = last?.context.guard === guard && last.context.hostPortIps === ips && last.input.settings === settings;
  return isSame ? last.plan.planHostPorts : (pods) => planHostPorts(pods, { ips, guard, settings });
}

const kept = <T>(former: T | undefined, computed: T): T =>
  former !== undefined && isDeepStrictEqual(former, computed) ? former : computed;

/** Its cluster address is a frontend as any other, also where the settings name that one. */
function apiServersOf(index: ServiceIndex, settings: ServiceSettings): readonly Backend[] {
  const slices = index.slicesOf(API_SERVICE);
  const real = slices.flatMap(({ ports, endpoints }) =>
    endpoints.flatMap(({ ip }) => ports.map(({ port }) => ({ ip, port }))),
  );
  const given = addressOfUrl(settings.apiServer);
  return [...real, ...(given && index.ownersOf(given.ip).length === 0 ? [given] : [])];
}

/** Whose plans hang on what changed about this node and its cluster. */
function* dependents(
  index: ServiceIndex,
  services: Cluster['services'],
  now: Context,
  before: Context | undefined,
): Steps<ReadonlySet<string>> {
  if (!before) return new Set();
  if (now.zone !== before.zone) return new Set(services.keys());
  const found = new Set(now.nodePortIps === before.nodePortIps ? [] : index.withNodePorts());
  if (now.guard === before.guard) return found;
  for (const key of index.reachable()) found.add(key);
  const isDifferent = differences(now.guard, before.guard);
  for (const ip of index.clusterIps()) {
    if (isDifferent(ip)) for (const key of index.ownersOf(ip)) found.add(key);
    yield;
  }
  return found;
}

function fragmentOf(id: string, service: Service, plan: ServicePlan, rendered: Rendered): Fragment {
  const { items, requires } = rendered;
  return { id, cause: id, rank: rankOf(service.creationMs, service.uid), items, requires, problems: plan.problems };
}

/** What concerns no Service. The former one when nothing changed. */
function generalFragment({ settings, cluster }: ServicesInput, former?: Fragment): Fragment {
  const isMany = settings['services.mode'] === 'iptables' && cluster.services.size > IPTABLES_SERVICES;
  const problems = isMany
    ? [
        `iptables gets slow with more than ${IPTABLES_SERVICES} Services; let services.mode be ebpf where the kernel can`,
      ]
    : [];
  const fragment = { id: 'services', cause: 'services', rank: '', items: [], requires: [], problems };
  return kept<Fragment>(former, fragment);
}

/** Slices of no Service want nothing and are told. */
function enterStrays(
  fragments: Draft<Fragment>,
  strays: readonly EndpointSlice[],
  former: readonly EndpointSlice[],
): void {
  if (strays === former) return;
  for (const slice of former) fragments.set(strayId(slice), undefined);
  for (const slice of strays) fragments.set(strayId(slice), strayFragment(slice));
}

const strayId = ({ namespace, name }: EndpointSlice): string => `endpointslice ${namespace}/${name}`;

function strayFragment(slice: EndpointSlice): Fragment {
  const { namespace, name, service } = slice;
  const problem = `EndpointSlice ${namespace}/${name} is for Service ${service}, which does not exist, has no address or is for another proxy`;
  const id = strayId(slice);
  return { id, cause: id, rank: '', items: [], requires: [], problems: [problem] };
}
