/** The Services that everybody in this bench gets: values, from which each makes what it wants in the kernel. Pure. */
import { addressAt, type Cidr, type IpAddress, parseCidr } from '../agent/model/ip.ts';

export interface BenchService {
  readonly name: string;
  readonly ip: IpAddress;
  /** TCP. Those of the last one are where the traffic goes, to the same ports of its endpoints. */
  readonly ports: readonly number[];
  readonly endpoints: readonly IpAddress[];
}

export const NAMESPACE = 'default';
/** Of all pods, as far as rules about sources know. */
export const POD_CIDR = '10.84.0.0/15';
/** Where the program nb listens, see nb.c. */
export const TRAFFIC_PORTS = [7000, 7001, 7002, 7003] as const;

const cidr = (text: string): Cidr => parseCidr(text) as Cidr;
const CLUSTER_IPS = cidr('10.96.0.0/12');
/** Nobody is there. */
const NOBODY = cidr('10.128.0.0/9');
/** The server has them all. */
const SERVER = cidr('10.85.0.0/24');
const MOVED = 2 ** 22;

/** The last one leads to the server, the others to nobody. */
export const benchServices = (count: number, endpoints: number): readonly BenchService[] =>
  Array.from({ length: count }, (_, index) => {
    const isLast = index === count - 1;
    return {
      name: `bench-${String(index).padStart(5, '0')}`,
      ip: addressAt(CLUSTER_IPS, index + 2),
      ports: isLast ? TRAFFIC_PORTS : [80],
      endpoints: Array.from({ length: endpoints }, (_, i) =>
        isLast ? addressAt(SERVER, i + 1) : addressAt(NOBODY, index * endpoints + i + 1),
      ),
    };
  });

export const serverAddresses = (endpoints: number): readonly IpAddress[] =>
  Array.from({ length: endpoints }, (_, i) => addressAt(SERVER, i + 1));

/** One endpoint has another address, that no other has. */
export const moved = (service: BenchService, index: number): BenchService => ({
  ...service,
  endpoints: [addressAt(NOBODY, MOVED + index + 1), ...service.endpoints.slice(1)],
});

/** Where the endpoints listen. */
export const targetPort = (port: number): number => (port === 80 ? 8080 : port);
