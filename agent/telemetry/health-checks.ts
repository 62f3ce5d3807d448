/**
 * What load balancers ask this node: at each Service's healthCheckNodePort whether it has endpoints here (KEP-1669, "Health
 * checks"), and at one port of the node whether it serves Services at all (KEP-3836), both with kube-proxy's answers. All of
 * it is served where node ports are open, and follows the plan; what cannot be served is tried again and told.
 */
import type { Logger } from 'pino';
import { familyOf, type IpAddress } from '../model/ip.ts';
import { type PersistentMap, persistentMap } from '../model/persistent-map.ts';
import type { HealthCheck } from '../model/services.ts';
import { Endpoint, type EndpointOptions, type Page, Visitors } from './endpoint.ts';

export interface HealthChecksOptions {
  /** Of the node as a whole; 0: none. */
  readonly nodePort: number;
  /** What keeps connections to this Service (`<namespace>/<name>`), or to all of them, from being served. */
  readonly obstacles: (service?: string) => readonly string[];
  /** The node is about to go: connections of new clients should not come here. */
  readonly isLeaving: () => boolean;
  readonly log: Logger;
}

/** What there is to serve. */
export interface HealthPlan {
  /** By `<namespace>/<name>`. */
  readonly healthChecks: PersistentMap<HealthCheck>;
  readonly nodePortIps: readonly IpAddress[];
}

/** Over all ports together. */
const MAX_CONNECTIONS = 128;
/**
 * The kernel gives no notice of a port that gets free, so that it has to be tried; sooner than the agent's housekeeping does, as
 * load balancers keep away from the node meanwhile. Only runs while a port is taken.
 */
const RETRY_MS = 5_000;
/** Owner of the node's own port; no Service has such a name. */
const NODE = '';

type Place = Pick<EndpointOptions, 'address' | 'pages' | 'purpose' | 'alternative'>;

export class HealthChecks {
  readonly #options: HealthChecksOptions;
  readonly #visitors = new Visitors(MAX_CONNECTIONS);
  /** By owner (a Service, or NODE), then by address and port. */
  readonly #endpoints = new Map<string, Map<string, Endpoint>>();
  #plan: HealthPlan = { healthChecks: persistentMap(), nodePortIps: [] };
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: HealthChecksOptions) {
    this.#options = options;
  }

  /** Serves what is planned now; cost follows what changed. Resolves when all of it was tried; never rejects. */
  async follow(plan: HealthPlan): Promise<void> {
    if (this.#closed) return;
    const before = this.#plan;
    this.#plan = plan;
    const wanted = new Map<string, ReadonlyMap<string, Place>>();
    for (const service of plan.healthChecks.changedSince(before.healthChecks))
      wanted.set(service, byAddress(this.#placesOf(service, plan.healthChecks.get(service))));
    if (plan.nodePortIps !== before.nodePortIps) wanted.set(NODE, byAddress(this.#nodePlaces()));
    // A port may go from one Service to another: whoever leaves it does so before anybody takes it.
    const closed = [...wanted].filter(([owner, places]) => this.#closeOthers(owner, places));
    const opened = [...wanted].filter(([owner, places]) => this.#open(owner, places));
    if (closed.length + opened.length > 0) await this.#listen();
  }

  /** What cannot be served, one sentence each. */
  problems(): readonly string[] {
    return this.#all().flatMap(({ problem }) => problem ?? []);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    for (const endpoint of this.#all()) endpoint.close();
  }

  #all(): readonly Endpoint[] {
    return [...this.#endpoints.values()].flatMap((ofOwner) => [...ofOwner.values()]);
  }

  /** Whether there were any. */
  #closeOthers(owner: string, places: ReadonlyMap<string, Place>): boolean {
    const others = [...this.#of(owner)].filter(([at]) => !places.has(at));
    for (const [at, endpoint] of others) {
      endpoint.close();
      this.#of(owner).delete(at);
    }
    if (this.#of(owner).size === 0) this.#endpoints.delete(owner);
    return others.length > 0;
  }

  /** Whether there are new ones, which do not listen yet. */
  #open(owner: string, places: ReadonlyMap<string, Place>): boolean {
    const isNew = ([at]: readonly [string, Place]): boolean => !this.#of(owner).has(at);
    const missing = [...places].filter(isNew);
    for (const [at, place] of missing) {
      const { log } = this.#options;
      const endpoint = new Endpoint({ ...place, visitors: this.#visitors, log });
      this.#endpoints.set(owner, new Map(this.#of(owner)).set(at, endpoint));
    }
    return missing.length > 0;
  }

  #of(owner: string): Map<string, Endpoint> {
    return this.#endpoints.get(owner) ?? new Map();
  }

  async #listen(): Promise<void> {
    clearTimeout(this.#timer);
    await Promise.all(this.#all().map((endpoint) => endpoint.listen()));
    clearTimeout(this.#timer);
    if (!this.#closed && this.problems().length > 0) {
      this.#timer = setTimeout(() => void this.#listen(), RETRY_MS);
      this.#timer.unref();
    }
  }

  #placesOf(service: string, check: HealthCheck | undefined): readonly Place[] {
    if (!check) return [];
    const { ips, port } = check;
    return ips.map((ip) => ({
      address: { ip, port },
      pages: { '*': () => this.#servicePage(service, ip) },
      purpose: `the health check of Service ${service}`,
      alternative: 'make the Service again with another healthCheckNodePort',
    }));
  }

  #nodePlaces(): readonly Place[] {
    const { nodePort } = this.#options;
    if (nodePort === 0) return [];
    return this.#plan.nodePortIps.map((ip) => ({
      address: { ip, port: nodePort },
      pages: { '/healthz': () => this.#nodePage(this.#options.isLeaving()), '/livez': () => this.#nodePage(false) },
      purpose: "load balancers' health check of this node",
      alternative: 'set services.healthPort to another one (0: none)',
    }));
  }

  #servicePage(service: string, ip: IpAddress): Page {
    const check = this.#plan.healthChecks.get(service);
    const localEndpoints = check?.localEndpoints[familyOf(ip)] ?? 0;
    const serviceProxyHealthy = this.#options.obstacles(service).length === 0;
    const [namespace, name] = service.split('/');
    return {
      ...jsonPage(localEndpoints > 0 && serviceProxyHealthy, {
        service: { namespace, name },
        localEndpoints,
        serviceProxyHealthy,
      }),
      headers: { 'x-content-type-options': 'nosniff', 'x-load-balancing-endpoint-weight': `${localEndpoints}` },
    };
  }

  #nodePage(isLeaving: boolean): Page {
    const isWell = this.#options.obstacles().length === 0;
    return jsonPage(isWell && !isLeaving, {
      currentTime: new Date().toISOString(),
      serviceProxyHealthy: isWell,
      nodeEligible: !this.#options.isLeaving(),
    });
  }
}

const byAddress = (places: readonly Place[]): ReadonlyMap<string, Place> =>
  new Map(places.map((place) => [`${place.address.ip} ${place.address.port}`, place]));

const jsonPage = (isWell: boolean, body: object): Page => ({
  status: isWell ? 200 : 503,
  contentType: 'application/json',
  body: `${JSON.stringify(body)}\n`,
});
