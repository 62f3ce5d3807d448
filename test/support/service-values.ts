/** Services, slices and what is planned of them, as short text. */
import type { Cluster } from '../../agent/model/cluster.ts';
import { EMPTY_CLUSTER } from '../../agent/model/cluster.ts';
import { persistentMap } from '../../agent/model/persistent-map.ts';
import {
  type BackendSet,
  type Endpoint,
  type EndpointSlice,
  type Frontend,
  frontendId,
  type Protocol,
  type Service,
  type ServicePort,
} from '../../agent/model/services.ts';
import { cidr, ip, node } from './cluster-values.ts';

const words = (text: string) => text.split(' ').filter((word) => word !== '');

/** `80`, `http:80`, `dns:53/UDP`, `http:80=30080` (a node port), separated by blanks. */
export const ports = (text: string): readonly ServicePort[] =>
  words(text).map((word) => {
    const [, name = '', port, protocol = 'TCP', nodePort] = /^(?:(.+):)?(\d+)(?:\/(\w+))?(?:=(\d+))?$/.exec(word) ?? [];
    const numbers = { port: Number(port), ...(nodePort && { nodePort: Number(nodePort) }) };
    return { name, protocol: protocol as Protocol, ...numbers };
  });

interface ServiceText
  extends Partial<Omit<Service, 'clusterIps' | 'externalIps' | 'loadBalancerIps' | 'ports' | 'sourceRanges'>> {
  readonly clusterIps?: string;
  readonly externalIps?: string;
  readonly loadBalancerIps?: string;
  readonly ports?: string;
  readonly sourceRanges?: string;
}

/** `service('web', { ports: '80', clusterIps: '10.96.0.7 fd96::7' })`, of the namespace default. */
export function service(name: string, given: ServiceText = {}): Service {
  const { clusterIps = '10.96.0.7', externalIps = '', loadBalancerIps = '', sourceRanges, ...rest } = given;
  return Object.freeze({
    namespace: 'default',
    name,
    uid: name,
    creationMs: 0,
    internalTrafficPolicy: 'Cluster',
    externalTrafficPolicy: 'Cluster',
    ...rest,
    clusterIps: words(clusterIps).map(ip),
    externalIps: words(externalIps).map(ip),
    loadBalancerIps: words(loadBalancerIps).map(ip),
    ...(sourceRanges !== undefined && { sourceRanges: words(sourceRanges).map(cidr) }),
    ports: ports(given.ports ?? '80'),
  });
}

/**
 * `10.84.0.5` is a ready endpoint; what follows says more: `~` draining, `@` on this node, `%z1` hints for the zone z1, `<` a
 * hint for this node, `>` one for another.
 */
export function endpoint(text: string): Endpoint {
  const [, address = ''] = /^([0-9a-f.:]+)/.exec(text) ?? [];
  const zones = [...text.matchAll(/%(\w+)/g)].map(([, zone]) => zone as string);
  return {
    ip: ip(address),
    state: text.includes('~') ? 'draining' : 'ready',
    ...(text.includes('@') && { local: true as const }),
    ...(zones.length > 0 && { zones }),
    ...(/[<>]/.test(text) && { nodeHint: text.includes('<') ? ('here' as const) : ('elsewhere' as const) }),
  };
}

/** A slice of `default/<of>`; target ports as `ports` reads them, endpoints separated by blanks. */
export function slice(
  of: string,
  endpoints: string,
  { on = '8080', name = `${of}-1`, family = 'ipv4' } = {},
): EndpointSlice {
  return Object.freeze({
    namespace: 'default',
    name,
    service: `default/${of}`,
    family: family as EndpointSlice['family'],
    ports: ports(on),
    endpoints: words(endpoints).map(endpoint),
  });
}

const named = <T extends { readonly namespace: string; readonly name: string }>(objects: readonly T[]) =>
  persistentMap(objects.map((each) => [`${each.namespace}/${each.name}`, each] as const));

/** This node is `a`, in the zone z1. */
export const selfNode = { ...node('a', { ips: '172.30.0.11 fd30::11', cidrs: '10.84.0.0/24 fd84::/64' }), zone: 'z1' };

export const clusterOf = (services: readonly Service[], slices: readonly EndpointSlice[]): Cluster => ({
  ...EMPTY_CLUSTER,
  synced: true,
  nodes: persistentMap([['a', selfNode] as const]),
  services: named(services),
  endpointSlices: named(slices),
});

/** One line a frontend: `internal 10.96.0.7:80/TCP -> 10.84.0.5:8080 10.84.1.5:8080 (masquerade)`. */
export function frontendLines(frontends: readonly Frontend[], sets: readonly BackendSet[]): string {
  const backends = new Map(
    sets.map((set) => [set.id as string, set.backends.map((each) => `${each.ip}:${each.port}`).join(' ')]),
  );
  const line = (frontend: Frontend): string => {
    const { target, masquerade, affinitySeconds, sourceRanges } = frontend;
    const flags = [
      ...(masquerade ? ['masquerade'] : []),
      ...(affinitySeconds === undefined ? [] : [`${affinitySeconds} s`]),
      ...(sourceRanges === undefined ? [] : [`from ${sourceRanges.join(' ') || 'nobody'}`]),
    ];
    const end = flags.length > 0 ? ` (${flags.join(', ')})` : '';
    return `${frontendId(frontend)} -> ${backends.get(target) ?? target}${end}`;
  };
  return frontends.map(line).sort().join('\n');
}
