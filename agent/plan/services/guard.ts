/**
 * What no frontend may cover. Whoever may write a Service may name any external address, and at the socket it would take
 * what the kubelet, the host and this agent send there.
 */
import type { Node } from '../../model/cluster.ts';
import { type Cidr, cidrOf, containsIp, type IpAddress, parseIp, prefixLengthOf, specialUse } from '../../model/ip.ts';
import type { Backend, Frontend } from '../../model/services.ts';
import { addressesOf, heldCidrs, type Losses } from '../claims.ts';
import type { ServiceSettings } from './settings.ts';

/** Plain data, compared structurally: an equal one keeps plans as they are. */
export interface Guard {
  readonly podCidrs: CidrIndex;
  readonly nodeIps: ReadonlySet<IpAddress>;
  /** The API server's real addresses, as `<ip> <port>`. */
  readonly apiServers: ReadonlySet<string>;
  readonly externalAddresses: readonly Cidr[];
  /** `<port>/<protocol>` that belong to the node itself on every node's addresses. */
  readonly nodePorts: ReadonlySet<string>;
}

/** What keeps a cluster and its machines running (kubernetes.io/docs/reference/networking/ports-and-protocols), and ssh. */
const NODE_PORTS = [22, 2379, 2380, 6443, 10_250, 10_255, 10_257, 10_259];

export function planGuard(
  nodes: Iterable<Node>,
  losses: Losses,
  apiServers: readonly Backend[],
  settings: ServiceSettings,
): Guard {
  const podCidrs: Cidr[] = [...settings.clusterCidrs];
  const nodeIps = new Set<IpAddress>();
  for (const node of nodes) {
    podCidrs.push(...heldCidrs(node, losses));
    for (const ip of addressesOf(node)) nodeIps.add(ip);
  }
  return {
    podCidrs: indexCidrs(podCidrs),
    nodeIps,
    apiServers: new Set(apiServers.map(({ ip, port }) => `${ip} ${port}`)),
    externalAddresses: settings['services.externalAddresses'],
    nodePorts: new Set([
      ...[...NODE_PORTS, settings['services.healthPort']].map((port) => `${port}/TCP`),
      `${settings['vxlan.port']}/UDP`,
    ]),
  };
}

/**
 * Why this frontend may not be, in a clause with the remedy; undefined: it may. `owner` is another Service whose cluster
 * address this is.
 */
export function refusalOf(
  { ip, port, protocol, kind }: Pick<Frontend, 'ip' | 'port' | 'protocol' | 'kind'>,
  owner: string | undefined,
  guard: Guard,
): string | undefined {
  const special = specialUse(ip);
  if (special !== undefined) return `it is a ${special} address`;
  const podCidr = cidrAround(guard.podCidrs, ip);
  if (podCidr !== undefined) return `it is in the pods' ${podCidr}`;
  if (kind === 'cluster') {
    const isNode = guard.nodeIps.has(ip) || [...guard.apiServers].some((each) => each.startsWith(`${ip} `));
    return isNode ? 'it is the address of a node or of the API server' : undefined;
  }
  if (guard.apiServers.has(`${ip} ${port}`)) return `the API server answers at its port ${port}`;
  if (guard.nodeIps.has(ip) && guard.nodePorts.has(`${port}/${protocol}`))
    return `it is a node's, and its port ${port}/${protocol} is for the node itself`;
  if (owner !== undefined) return `it is the cluster address of Service ${owner}`;
  return kind === 'node-port' || kind === 'host-port' ? undefined : externalRefusal(ip, kind, guard.externalAddresses);
}

/** Load balancers' addresses are written by controllers, external ones by whoever may write a Service. */
function externalRefusal(ip: IpAddress, kind: Frontend['kind'], allowed: readonly Cidr[]): string | undefined {
  if (allowed.length === 0 && kind === 'load-balancer') return undefined;
  if (allowed.some((cidr) => containsIp(cidr, ip))) return undefined;
  return 'it is not in services.externalAddresses: add its range there if it may be used';
}

/** Whether two guards may judge a cluster address differently. */
export function differences(a: Guard, b: Guard): (ip: IpAddress) => boolean {
  const cidrs = indexCidrs([...cidrsOf(a.podCidrs).symmetricDifference(cidrsOf(b.podCidrs))]);
  const ipOf = (server: string) => server.slice(0, server.indexOf(' ')) as IpAddress;
  const servers = [...a.apiServers.symmetricDifference(b.apiServers)].map(ipOf);
  const ips = a.nodeIps.symmetricDifference(b.nodeIps).union(new Set(servers));
  return (ip) => ips.has(ip) || cidrAround(cidrs, ip) !== undefined;
}

/** CIDRs by prefix length: what contains an address is found by one look-up a length. */
export type CidrIndex = ReadonlyMap<number, ReadonlySet<Cidr>>;

function indexCidrs(cidrs: readonly Cidr[]): CidrIndex {
  const index = new Map<number, Set<Cidr>>();
  for (const cidr of cidrs) {
    const ofLength = index.get(prefixLengthOf(cidr)) ?? new Set();
    index.set(prefixLengthOf(cidr), ofLength.add(cidr));
  }
  return index;
}

const cidrsOf = (index: CidrIndex): ReadonlySet<Cidr> => new Set([...index.values()].flatMap((cidrs) => [...cidrs]));

/** One that contains the address. */
export function cidrAround(index: CidrIndex, ip: IpAddress): Cidr | undefined {
  const bits = ip.includes(':') ? 128 : 32;
  for (const [length, cidrs] of index) {
    if (length > bits) continue;
    const cidr = cidrOf(ip, length);
    if (cidrs.has(cidr)) return cidr;
  }
  return undefined;
}

/**
 * The addresses at which this node opens node ports. While its Node is away, those that it had in the underlay and still has:
 * its pods go on, and so does who calls them.
 */
export function nodePortIps(
  self: Node | undefined,
  { hostIps, underlayIps }: { readonly hostIps: readonly IpAddress[]; readonly underlayIps: readonly IpAddress[] },
  { podCidrs }: Guard,
  settings: ServiceSettings,
): readonly IpAddress[] {
  const inside = settings['services.nodePortAddresses'];
  const own = self?.internalIps ?? underlayIps.filter((ip) => hostIps.includes(ip));
  const candidates = inside.length === 0 ? own : hostIps;
  const usable = candidates.filter(
    (ip) =>
      specialUse(ip) === undefined &&
      cidrAround(podCidrs, ip) === undefined &&
      (inside.length === 0 || inside.some((cidr) => containsIp(cidr, ip))),
  );
  return [...new Set(usable)].sort();
}

/** Where a URL such as the setting apiServer leads, if it names an address. */
export function addressOfUrl(url: string): Backend | undefined {
  if (!URL.canParse(url)) return undefined;
  const { hostname, port } = new URL(url);
  const ip = parseIp(hostname.replace(/^\[|\]$/g, ''));
  return ip && { ip, port: port === '' ? 443 : Number(port) };
}
