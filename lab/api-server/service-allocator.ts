/** Cluster IPs and node ports: what each Service has for itself. */

import {
  addressAt,
  type Cidr,
  containsIp,
  factsOf,
  familyOf,
  type IpAddress,
  offsetIn,
  parseIp,
  prefixLengthOf,
} from '../../agent/model/ip.ts';
import { KINDS } from './kinds.ts';
import { NumberPool } from './number-pool.ts';
import { type ApiObject, withField } from './objects.ts';
import { decideFamilies } from './service-families.ts';
import {
  hasClusterIp,
  hasHealthCheck,
  hasNodePorts,
  type IpFamilyName,
  isHeadless,
  type ServicePortSpec,
  type ServiceSpec,
  specOf,
} from './service-spec.ts';
import { type Cause, internalError, invalid, invalidValue } from './status.ts';
import type { Allocator } from './store.ts';

/** KEP-3668. */
const NODE_PORTS = { first: 30_000, last: 32_767, handedOutFrom: 30_086 };
/** As with the real server: a larger CIDR cannot be kept track of. */
const MAXIMUM_HOST_BITS = 20;

export class ServiceAllocator implements Allocator {
  readonly #addresses: ReadonlyMap<IpFamilyName, AddressPool>;
  readonly #ports = new NumberPool(NODE_PORTS);

  /** One CIDR a family, that of the default family first. Throws RangeError for one that is too large or too small. */
  constructor(cidrs: readonly Cidr[]) {
    this.#addresses = new Map(
      cidrs.map((cidr) => [familyOf(cidr) === 'ipv4' ? 'IPv4' : 'IPv6', new AddressPool(cidr)]),
    );
  }

  allocate(service: ApiObject, previous: ApiObject | undefined): ApiObject {
    const sent = specOf(service);
    const fail = (causes: readonly Cause[]) => invalid(KINDS.service, service.metadata.name, causes);
    const families = hasClusterIp(sent)
      ? decideFamilies(sent, previous && specOf(previous), [...this.#addresses.keys()])
      : { spec: sent };
    if ('causes' in families) throw fail(families.causes);
    const own = holdingsOf(previous);
    const wishes = this.#objectToWishes(families.spec, own);
    if (wishes.length > 0) throw fail(wishes);
    const addressed = this.#withAddresses(families.spec);
    return withField(service, 'spec', this.#withNodePorts(this.#withHealthCheck(addressed, own)));
  }

  record(before: ApiObject | undefined, after: ApiObject | undefined): void {
    const [former, present] = [holdingsOf(before), holdingsOf(after)];
    for (const port of former.ports) this.#ports.release(port);
    for (const port of present.ports) this.#ports.claim(port);
    for (const pool of this.#addresses.values()) {
      former.addresses.forEach((address) => void pool.release(address));
      present.addresses.forEach((address) => void pool.claim(address));
    }
  }

  #objectToWishes(spec: ServiceSpec, own: Holdings): readonly Cause[] {
    const addresses = addressesOf(spec).flatMap((address) => {
      if (own.addresses.has(address)) return [];
      const objection = [...this.#addresses.values()]
        .find(({ cidr }) => familyOf(cidr) === familyOf(address))
        ?.objection(address);
      if (!objection) return [];
      return [invalidValue('spec.clusterIPs', spec.clusterIPs, `failed to allocate IP ${address}: ${objection}`)];
    });
    const ports = (spec.ports ?? []).flatMap(({ nodePort }, i) => {
      const objection = nodePort && !own.ports.has(nodePort) && this.#objectionToPort(nodePort);
      return objection ? [invalidValue(`spec.ports[${i}].nodePort`, nodePort, objection)] : [];
    });
    return [...addresses, ...ports];
  }

  #objectionToPort(port: number): string | undefined {
    if (!this.#ports.includes(port))
      return `provided port is not in the valid range. The range of valid ports is ${NODE_PORTS.first}-${NODE_PORTS.last}`;
    return this.#ports.isTaken(port) ? 'provided port is already allocated' : undefined;
  }

  #withAddresses(spec: ServiceSpec): ServiceSpec {
    if (!hasClusterIp(spec) || isHeadless(spec)) return spec;
    const clusterIPs = (spec.ipFamilies ?? []).map(
      (family, i) => spec.clusterIPs?.[i] ?? (this.#addresses.get(family) as AddressPool).pick(),
    );
    return { ...spec, clusterIP: clusterIPs[0] as string, clusterIPs };
  }

  /** Ports of one number share a node port where their protocols differ, so that a service for both is found at one number. */
  #withNodePorts(spec: ServiceSpec): ServiceSpec {
    if (!hasNodePorts(spec) || spec.allocateLoadBalancerNodePorts === false || !spec.ports) return spec;
    const ports = [...spec.ports];
    for (const [i, port] of ports.entries()) {
      if (port.nodePort) continue;
      ports[i] = { ...port, nodePort: sharedNodePort(port, ports) ?? this.#pickPort(ports, spec.healthCheckNodePort) };
    }
    return { ...spec, ports };
  }

  /** Beside those of the Service itself. */
  #pickPort(ports: readonly ServicePortSpec[], healthCheckNodePort = 0): number {
    const port = this.#ports.pick(new Set([...ports.map(({ nodePort = 0 }) => nodePort), healthCheckNodePort]));
    if (port === undefined) throw internalError('failed to allocate a nodePort: range is full');
    return port;
  }

  #withHealthCheck(spec: ServiceSpec, own: Holdings): ServiceSpec {
    if (!hasHealthCheck(spec)) return spec;
    const given = spec.healthCheckNodePort;
    if (!given) return { ...spec, healthCheckNodePort: this.#pickPort(spec.ports ?? []) };
    const objection = own.ports.has(given) ? undefined : this.#objectionToPort(given);
    if (objection) throw internalError(`failed to allocate requested HealthCheck NodePort ${given}: ${objection}`);
    return spec;
  }
}

function sharedNodePort(port: ServicePortSpec, ports: readonly ServicePortSpec[]): number | undefined {
  const others = ports.filter((other) => other.port === port.port && other.nodePort);
  return others.some(({ protocol }) => protocol === port.protocol) ? undefined : others[0]?.nodePort;
}

interface Holdings {
  readonly addresses: ReadonlySet<IpAddress>;
  readonly ports: ReadonlySet<number>;
}

function holdingsOf(service: ApiObject | undefined): Holdings {
  const spec: ServiceSpec = service ? specOf(service) : {};
  const ports = [...(spec.ports ?? []).map(({ nodePort }) => nodePort), spec.healthCheckNodePort];
  return { addresses: new Set(addressesOf(spec)), ports: new Set(ports.filter((port) => port !== undefined)) };
}

/** None and ExternalName have none. */
const addressesOf = ({ clusterIPs = [] }: ServiceSpec): readonly IpAddress[] =>
  clusterIPs.flatMap((text) => parseIp(text) ?? []);

/** The addresses of a CIDR that a host may have. */
class AddressPool {
  readonly cidr: Cidr;
  readonly #numbers: NumberPool;

  constructor(cidr: Cidr) {
    const hostBits = factsOf(cidr).bits - prefixLengthOf(cidr);
    if (hostBits < 3 || hostBits > MAXIMUM_HOST_BITS)
      throw new RangeError(
        `cannot give out cluster IPs of ${cidr}: expected 3 to ${MAXIMUM_HOST_BITS} bits for them, got ${hostBits}`,
      );
    this.cidr = cidr;
    const size = 2 ** hostBits;
    // The first names the network; the last of IPv4 is its broadcast address.
    const last = familyOf(cidr) === 'ipv4' ? size - 2 : size - 1;
    this.#numbers = new NumberPool({ first: 1, last, handedOutFrom: 1 + staticBand(last) });
  }

  pick(): IpAddress {
    const number = this.#numbers.pick();
    if (number === undefined) throw internalError('failed to allocate a serviceIP: range is full');
    return addressAt(this.cidr, number);
  }

  objection(address: IpAddress): string | undefined {
    const number = this.#numberOf(address);
    if (number === undefined || !this.#numbers.includes(number))
      return `the provided IP (${address}) is not in the valid range. The range of valid IPs is ${this.cidr}`;
    return this.#numbers.isTaken(number) ? 'provided IP is already allocated' : undefined;
  }

  claim(address: IpAddress): void {
    const number = this.#numberOf(address);
    if (number !== undefined) this.#numbers.claim(number);
  }

  release(address: IpAddress): void {
    const number = this.#numberOf(address);
    if (number !== undefined) this.#numbers.release(number);
  }

  #numberOf(address: IpAddress): number | undefined {
    return containsIp(this.cidr, address) ? Number(offsetIn(this.cidr, address)) : undefined;
  }
}

/** KEP-3070: min(max(16, size / 16), 256), where the CIDR is not smaller than that. */
const staticBand = (size: number): number => (size <= 16 ? 0 : Math.min(Math.max(16, Math.floor(size / 16)), 256));
