import type { Cluster } from '../../model/cluster.ts';
import type { IpAddress } from '../../model/ip.ts';
import { persistentMap } from '../../model/persistent-map.ts';
import type { EndpointSlice, Service } from '../../model/services.ts';
import type { Steps } from '../steps.ts';

/** Who is concerned by what: kept up with one version of the cluster after the other, at the cost of what changed. */
export class ServiceIndex {
  /** Slices by Service, sorted by name; a new list after each change. */
  readonly #slices = new Map<string, readonly EndpointSlice[]>();
  /** Services by cluster address; almost always one each. */
  readonly #owners = new Map<IpAddress, readonly string[]>();
  /** Services by external or load-balancer address. */
  readonly #exposed = new Map<IpAddress, readonly string[]>();
  readonly #withNodePorts = new Set<string>();
  /** Services that have slices and do not exist. */
  readonly #missing = new Set<string>();
  #strays: readonly EndpointSlice[] | undefined;

  /**
   * Takes in what differs between two versions, the second of which this index has (none: it is new). Returns the Services
   * whose own objects changed, or the ownership of an address that they have.
   */
  *follow(now: Cluster, before: Cluster | undefined): Steps<ReadonlySet<string>> {
    const touched = new Set<string>();
    const oldSlices = before?.endpointSlices ?? persistentMap<EndpointSlice>();
    for (const key of now.endpointSlices.changedSince(oldSlices)) {
      const [old, slice] = [oldSlices.get(key), now.endpointSlices.get(key)];
      if (old) this.#setSlices(old.service, without(this.slicesOf(old.service), old));
      if (slice) this.#setSlices(slice.service, sorted([...this.slicesOf(slice.service), slice]));
      for (const each of [old, slice]) if (each) touched.add(each.service);
      yield;
    }
    const oldServices = before?.services ?? persistentMap<Service>();
    for (const key of now.services.changedSince(oldServices)) {
      for (const other of this.#replace(key, oldServices.get(key), now.services.get(key))) touched.add(other);
      touched.add(key);
      yield;
    }
    for (const key of touched) {
      const isMissing = !now.services.has(key) && this.#slices.has(key);
      if (isMissing || this.#missing.has(key)) this.#strays = undefined;
      if (isMissing) this.#missing.add(key);
      else this.#missing.delete(key);
    }
    return touched;
  }

  slicesOf(service: string): readonly EndpointSlice[] {
    return this.#slices.get(service) ?? NO_SLICES;
  }

  /** Slices of no Service, sorted by what they are for, the first so many; the same list until it changes. */
  strays(max: number): readonly EndpointSlice[] {
    this.#strays ??= [...this.#missing]
      .sort()
      .flatMap((key) => this.slicesOf(key))
      .slice(0, max);
    return this.#strays;
  }

  /** A Service that has this cluster address, other than this one. */
  otherOwner(ip: IpAddress, service: string): string | undefined {
    return this.#owners.get(ip)?.find((key) => key !== service);
  }

  ownersOf(ip: IpAddress): readonly string[] {
    return this.#owners.get(ip) ?? [];
  }

  clusterIps(): Iterable<IpAddress> {
    return this.#owners.keys();
  }

  /** Those with external or load-balancer addresses or node ports. */
  *reachable(): Generator<string, void> {
    for (const keys of this.#exposed.values()) yield* keys;
    yield* this.#withNodePorts;
  }

  withNodePorts(): Iterable<string> {
    return this.#withNodePorts;
  }

  /** Returns who may not have, or may have again, an address that this Service takes or gives back. */
  #replace(key: string, old: Service | undefined, service: Service | undefined): readonly string[] {
    const [before, after] = [old?.clusterIps ?? [], service?.clusterIps ?? []];
    for (const ip of before) edit(this.#owners, ip, (keys) => keys.filter((each) => each !== key));
    for (const ip of after) edit(this.#owners, ip, (keys) => withOne(keys, key));
    for (const ip of old ? addressesOf(old) : [])
      edit(this.#exposed, ip, (keys) => keys.filter((each) => each !== key));
    for (const ip of service ? addressesOf(service) : []) edit(this.#exposed, ip, (keys) => withOne(keys, key));
    if (service && hasNodePort(service)) this.#withNodePorts.add(key);
    else this.#withNodePorts.delete(key);
    const moved = [...before.filter((ip) => !after.includes(ip)), ...after.filter((ip) => !before.includes(ip))];
    return moved.flatMap((ip) => this.#exposed.get(ip) ?? []);
  }

  #setSlices(service: string, slices: readonly EndpointSlice[]): void {
    if (slices.length === 0) this.#slices.delete(service);
    else this.#slices.set(service, slices);
  }
}

const NO_SLICES: readonly EndpointSlice[] = Object.freeze([]);

const without = (slices: readonly EndpointSlice[], one: EndpointSlice) => slices.filter((each) => each !== one);
const sorted = (slices: readonly EndpointSlice[]) =>
  slices.length < 2 ? slices : slices.toSorted((a, b) => (a.name < b.name ? -1 : 1));
const withOne = (keys: readonly string[], key: string) => (keys.length === 0 ? [key] : [...keys, key].sort());

const addressesOf = ({ externalIps, loadBalancerIps }: Service): ReadonlySet<IpAddress> =>
  new Set([...externalIps, ...loadBalancerIps]);

/** Of any kind: with allocateLoadBalancerNodePorts false there may be one for health checks alone. */
const hasNodePort = ({ ports, healthCheckNodePort }: Service): boolean =>
  healthCheckNodePort !== undefined || ports.some(({ nodePort }) => nodePort !== undefined);

/** Replaces a list, which is never empty. */
function edit<K>(
  lists: Map<K, readonly string[]>,
  key: K,
  change: (list: readonly string[]) => readonly string[],
): void {
  const list = change(lists.get(key) ?? []);
  if (list.length === 0) lists.delete(key);
  else lists.set(key, list);
}
