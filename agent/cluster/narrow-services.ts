/**
 * Services and EndpointSlices from `unknown` to the trimmed model (core/v1, discovery.k8s.io/v1). A part that is unusable is
 * left out and reported, the others stay. What no proxy serves (headless, ExternalName, another proxy's) is no object.
 */
import { type Cidr, type Family, familyOf, type IpAddress, parseCidr, parseIp, specialUse } from '../model/ip.ts';
import {
  type Endpoint,
  type EndpointSlice,
  PROTOCOLS,
  type Protocol,
  type Service,
  type ServicePort,
  type SlicePort,
  type TrafficPolicy,
} from '../model/services.ts';
import { field, identity, list, type Narrowed, nameless, namespacedKey, parsed, show, text } from './fields.ts';

export const PROXY_NAME_LABEL = 'service.kubernetes.io/service-proxy-name';
export const HEADLESS_LABEL = 'service.kubernetes.io/headless';
const SERVICE_NAME_LABEL = 'kubernetes.io/service-name';

/** More ports, ranges and endpoints than an object of the API can have (an object has at most 1.5 MB). */
const PARTS_MAX = 10_000;
/** Sentences kept of one object. */
const PROBLEMS_MAX = 8;
/** Defaults and limits of ClientIPConfig.timeoutSeconds (core/v1). */
const AFFINITY_SECONDS = { standard: 10_800, max: 86_400 } as const;

export function narrowService(raw: unknown): Narrowed<Service> {
  if (namespacedKey(raw) === undefined) return nameless('Service', raw);
  const spec = field(raw, 'spec');
  const type = text(field(spec, 'type'));
  if (isForOthers(raw) || type === 'ExternalName') return { problems: [] };
  const problems: string[] = [];
  const clusterIps = clusterIpsOf(spec, problems);
  if (clusterIps.length === 0) return { problems: brief(problems) };
  const metadata = field(raw, 'metadata');
  const isBalanced = type === 'LoadBalancer';
  const externalTrafficPolicy = policy(spec, 'externalTrafficPolicy', problems);
  const value: Service = {
    namespace: text(field(metadata, 'namespace')),
    name: text(field(metadata, 'name')),
    ...identity(raw, problems),
    clusterIps: Object.freeze(clusterIps),
    externalIps: Object.freeze(ips(list(field(spec, 'externalIPs'), PARTS_MAX), 'spec.externalIPs', problems)),
    loadBalancerIps: Object.freeze(isBalanced ? loadBalancerIps(raw, problems) : []),
    ...(isBalanced && sourceRanges(spec, problems)),
    ports: Object.freeze(servicePorts(spec, isBalanced || type === 'NodePort', problems)),
    internalTrafficPolicy: policy(spec, 'internalTrafficPolicy', problems),
    externalTrafficPolicy,
    ...affinity(spec, problems),
    ...(isBalanced && externalTrafficPolicy === 'Local' && healthCheckNodePort(spec, problems)),
  };
  return { value: Object.freeze(value), problems: brief(problems) };
}

/** With what concerns one node as that node sees it. */
export const narrowEndpointSliceFor =
  (nodeName: string) =>
  (raw: unknown): Narrowed<EndpointSlice> => {
    if (namespacedKey(raw) === undefined) return nameless('EndpointSlice', raw);
    const family = FAMILY_OF_TYPE[text(field(raw, 'addressType'))];
    if (isForOthers(raw) || field(raw, 'addressType') === 'FQDN') return { problems: [] };
    const problems: string[] = [];
    if (family === undefined)
      problems.push(`addressType is ${show(field(raw, 'addressType'))}: expected IPv4, IPv6 or FQDN`);
    const metadata = field(raw, 'metadata');
    const service = text(field(field(metadata, 'labels'), SERVICE_NAME_LABEL));
    if (service === '') problems.push(`it has no label ${SERVICE_NAME_LABEL}, so it belongs to no Service`);
    if (family === undefined || service === '') return { problems };
    const namespace = text(field(metadata, 'namespace'));
    const endpoints = list(field(raw, 'endpoints'), PARTS_MAX).flatMap((endpoint) =>
      narrowEndpoint(endpoint, family, nodeName, problems),
    );
    const value: EndpointSlice = {
      namespace,
      name: text(field(metadata, 'name')),
      service: `${namespace}/${service}`,
      family,
      ports: Object.freeze(slicePorts(raw, problems)),
      endpoints: Object.freeze(endpoints),
    };
    return { value: Object.freeze(value), problems: brief(problems) };
  };

const FAMILY_OF_TYPE: Readonly<Record<string, Family | undefined>> = { IPv4: 'ipv4', IPv6: 'ipv6' };

/** The watch asks for no others; a server without selectors is not heard on them either. */
function isForOthers(raw: unknown): boolean {
  const labels = field(field(raw, 'metadata'), 'labels');
  return field(labels, PROXY_NAME_LABEL) !== undefined || field(labels, HEADLESS_LABEL) !== undefined;
}

function clusterIpsOf(spec: unknown, problems: string[]): IpAddress[] {
  const several = list(field(spec, 'clusterIPs'));
  const texts = several.length > 0 ? several : [field(spec, 'clusterIP') ?? ''];
  return ips(
    texts.filter((each) => each !== 'None' && each !== ''),
    'spec.clusterIPs',
    problems,
  );
}

const ips = (values: readonly unknown[], at: string, problems: string[]): IpAddress[] => [
  ...new Set(values.flatMap((value) => parsed(value, parseIp, at, 'an IP address', problems))),
];

/** KEP-1860: with ipMode Proxy the load balancer wants the traffic also of those inside. Absent it is VIP. */
function loadBalancerIps(raw: unknown, problems: string[]): IpAddress[] {
  const ingress = list(field(field(field(raw, 'status'), 'loadBalancer'), 'ingress'), PARTS_MAX);
  const ours = ingress.filter((each) => (field(each, 'ip') ?? '') !== '' && field(each, 'ipMode') !== 'Proxy');
  return ips(
    ours.map((each) => field(each, 'ip')),
    'status.loadBalancer.ingress',
    problems,
  );
}

/** Ranges of which none is usable still admit nobody. */
function sourceRanges(spec: unknown, problems: string[]): Pick<Service, 'sourceRanges'> {
  const given = list(field(spec, 'loadBalancerSourceRanges'), PARTS_MAX);
  const ranges = given.flatMap((value) => {
    const trimmed = typeof value === 'string' ? value.trim() : value;
    return parsed<Cidr>(trimmed, parseCidr, 'spec.loadBalancerSourceRanges', 'a CIDR', problems);
  });
  return given.length === 0 ? {} : { sourceRanges: Object.freeze([...new Set(ranges)]) };
}

function servicePorts(spec: unknown, hasNodePorts: boolean, problems: string[]): ServicePort[] {
  const ports: ServicePort[] = [];
  const taken = new Set<string>();
  for (const [i, raw] of list(field(spec, 'ports'), PARTS_MAX).entries()) {
    const at = `spec.ports[${i}]`;
    const port = portOf(field(raw, 'port'), `${at}.port`, problems);
    const protocol = protocolOf(raw, at, problems);
    if (port === undefined || protocol === undefined) continue;
    const name = text(field(raw, 'name'));
    const claims = [`${protocol} ${port}`, `name ${name}`];
    const twice = claims.find((claim) => taken.has(claim));
    if (twice !== undefined) {
      problems.push(`${at} has ${twice} again: expected each once, so the first is used`);
      continue;
    }
    for (const claim of claims) taken.add(claim);
    const given = field(raw, 'nodePort') ?? 0;
    const nodePort = hasNodePorts && given !== 0 ? portOf(given, `${at}.nodePort`, problems) : undefined;
    ports.push(Object.freeze({ name, protocol, port, ...(nodePort !== undefined && { nodePort }) }));
  }
  return ports;
}

function slicePorts(raw: unknown, problems: string[]): SlicePort[] {
  return list(field(raw, 'ports'), PARTS_MAX).flatMap((entry, i) => {
    const at = `ports[${i}]`;
    // Absent it means all ports, which no Service asks for.
    if ((field(entry, 'port') ?? undefined) === undefined) return [];
    const port = portOf(field(entry, 'port'), `${at}.port`, problems);
    const protocol = protocolOf(entry, at, problems);
    const name = text(field(entry, 'name'));
    return port === undefined || protocol === undefined ? [] : [Object.freeze({ name, protocol, port })];
  });
}

/** Endpoints are addressed by the first address; the others say the same (discovery/v1, Endpoint.addresses). */
function narrowEndpoint(raw: unknown, family: Family, nodeName: string, problems: string[]): readonly Endpoint[] {
  const state = stateOf(field(raw, 'conditions'));
  if (state === undefined) return [];
  const [first] = list(field(raw, 'addresses'), 1);
  const [ip] = parsed(first, parseIp, 'endpoints', 'an IP address', problems);
  if (ip === undefined) return [];
  const special = specialUse(ip);
  if (familyOf(ip) !== family || special !== undefined) {
    const got = special === undefined ? `one of ${familyOf(ip)}` : `a ${special} one`;
    problems.push(`endpoints has ${ip}: expected the ${family} address of a host, got ${got}`);
    return [];
  }
  const local = field(raw, 'nodeName') === nodeName ? ({ local: true } as const) : undefined;
  return [Object.freeze({ ip, state, ...local, ...hintsOf(field(raw, 'hints'), nodeName) })];
}

/** Conditions that are absent say the best (discovery/v1, EndpointConditions). */
function stateOf(conditions: unknown): Endpoint['state'] | undefined {
  if ((field(conditions, 'ready') ?? true) === true) return 'ready';
  const isServing = (field(conditions, 'serving') ?? true) === true;
  return isServing && field(conditions, 'terminating') === true ? 'draining' : undefined;
}

function hintsOf(hints: unknown, nodeName: string): Pick<Endpoint, 'zones' | 'nodeHint'> | undefined {
  if ((hints ?? undefined) === undefined) return undefined;
  const names = (at: string) => list(field(hints, at)).flatMap((each) => text(field(each, 'name')) || []);
  const [zones, nodes] = [names('forZones'), names('forNodes')];
  return {
    ...(zones.length > 0 && { zones: shared(zones) }),
    ...(nodes.length > 0 && { nodeHint: nodes.includes(nodeName) ? 'here' : 'elsewhere' }),
  };
}

/** One list for all endpoints of a zone. Zones are few; what is no honest number of them is forgotten. */
const zoneLists = new Map<string, readonly string[]>();
function shared(zones: readonly string[]): readonly string[] {
  const key = zones.join('\n');
  const known = zoneLists.get(key);
  if (known) return known;
  if (zoneLists.size >= 1000) zoneLists.clear();
  zoneLists.set(key, Object.freeze(zones));
  return zones;
}

function policy(spec: unknown, name: `${'internal' | 'external'}TrafficPolicy`, problems: string[]): TrafficPolicy {
  const given = field(spec, name) ?? '';
  if (given === 'Local' || given === 'Cluster') return given;
  if (given !== '') problems.push(`spec.${name} is ${show(given)}: expected Cluster or Local, so Cluster is used`);
  return 'Cluster';
}

function affinity(spec: unknown, problems: string[]): Pick<Service, 'affinitySeconds'> {
  const given = field(spec, 'sessionAffinity') ?? 'None';
  if (given === 'None') return {};
  if (given !== 'ClientIP') {
    problems.push(`spec.sessionAffinity is ${show(given)}: expected None or ClientIP, so None is used`);
    return {};
  }
  const { standard, max } = AFFINITY_SECONDS;
  const seconds = field(field(field(spec, 'sessionAffinityConfig'), 'clientIP'), 'timeoutSeconds') ?? standard;
  if (isWholeNumber(seconds, max)) return { affinitySeconds: seconds };
  problems.push(
    `spec.sessionAffinityConfig has ${show(seconds)} seconds: expected 1 to ${max}, so ${standard} is used`,
  );
  return { affinitySeconds: standard };
}

function healthCheckNodePort(spec: unknown, problems: string[]): Pick<Service, 'healthCheckNodePort'> {
  const given = field(spec, 'healthCheckNodePort') ?? 0;
  const port = given === 0 ? undefined : portOf(given, 'spec.healthCheckNodePort', problems);
  return port === undefined ? {} : { healthCheckNodePort: port };
}

const isWholeNumber = (value: unknown, max: number): value is number =>
  typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= max;

function portOf(value: unknown, at: string, problems: string[]): number | undefined {
  if (isWholeNumber(value, 65_535)) return value;
  problems.push(`${at} is ${show(value)}: expected a port from 1 to 65535`);
  return undefined;
}

function protocolOf(raw: unknown, at: string, problems: string[]): Protocol | undefined {
  const given = field(raw, 'protocol') ?? 'TCP';
  const protocol = PROTOCOLS.find((each) => each === given);
  if (protocol === undefined)
    problems.push(`${at}.protocol is ${show(given)}: expected one of ${PROTOCOLS.join(', ')}`);
  return protocol;
}

const brief = (problems: readonly string[]): readonly string[] =>
  problems.length <= PROBLEMS_MAX
    ? problems
    : [...problems.slice(0, PROBLEMS_MAX), `and ${problems.length - PROBLEMS_MAX} more of this kind`];
