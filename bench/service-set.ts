/** The Services that everybody in this bench gets: values, from which each makes what it wants in the kernel. Pure. */
import { addressAt, type Cidr, type Family, type IpAddress, parseCidr } from '../agent/model/ip.ts';

export interface BenchService {
  readonly name: string;
  readonly family: Family;
  readonly ip: IpAddress;
  /** TCP. Those of the last one are where the traffic goes, to the same ports of its endpoints. */
  readonly ports: readonly number[];
  readonly endpoints: readonly IpAddress[];
}

type ByFamily = Readonly<Record<Family, Cidr>>;

export const NAMESPACE = 'default';
/** Where the program nb listens, see nb.c. */
export const TRAFFIC_PORTS = [7000, 7001, 7002, 7003] as const;

const cidr = (text: string): Cidr => parseCidr(text) as Cidr;
/** Of all pods, as far as rules about sources know; the server's are among them. */
export const POD_CIDRS = { ipv4: cidr('10.84.0.0/15'), ipv6: cidr('fd84::/31') } as const satisfies ByFamily;
const CLUSTER_IPS = { ipv4: cidr('10.96.0.0/12'), ipv6: cidr('fd96::/112') } as const satisfies ByFamily;
/** Nobody is there. */
const NOBODY = { ipv4: cidr('10.128.0.0/9'), ipv6: cidr('fd86::/64') } as const satisfies ByFamily;
/** The server has them all. */
const SERVER = { ipv4: cidr('10.85.0.0/24'), ipv6: cidr('fd85::/64') } as const satisfies ByFamily;
const MOVED = 2 ** 22;

/** The last one leads to the server, the others to nobody. */
export const benchServices = (family: Family, count: number, endpoints: number): readonly BenchService[] =>
  Array.from({ length: count }, (_, index) => {
    const isLast = index === count - 1;
    return {
      name: `bench-${String(index).padStart(5, '0')}`,
      family,
      ip: addressAt(CLUSTER_IPS[family], index + 2),
      ports: isLast ? TRAFFIC_PORTS : [80],
      endpoints: isLast
        ? serverAddresses(family, endpoints)
        : Array.from({ length: endpoints }, (_, i) => addressAt(NOBODY[family], index * endpoints + i + 1)),
    };
  });

export const serverAddresses = (family: Family, endpoints: number): readonly IpAddress[] =>
  Array.from({ length: endpoints }, (_, i) => addressAt(SERVER[family], i + 1));

/** One endpoint has another address, that no other has. */
export const moved = (service: BenchService, index: number): BenchService => ({
  ...service,
  endpoints: [addressAt(NOBODY[service.family], MOVED + index + 1), ...service.endpoints.slice(1)],
});

/** Where the endpoints listen. */
export const targetPort = (port: number): number => (port === 80 ? 8080 : port);
