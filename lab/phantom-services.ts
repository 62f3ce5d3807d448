/** Services that are nothing but objects in the API, many at once: how an agent fares among thousands is rehearsed with them. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { addressAt, type Family, type IpAddress, parseCidr } from '../agent/model/ip.ts';
import { SERVICE_NAME_LABEL } from './api-server/endpoint-slices.ts';
import { KINDS } from './api-server/kinds.ts';
import { MAX_ENDPOINTS_PER_SLICE } from './api-server/slice-plan.ts';
import type { Store } from './api-server/store.ts';
import { apiPath } from './api-writer.ts';
import type { LabControl } from './control.ts';

export interface PhantomServices {
  /** Made are those numbered `first` (0) to `first + count - 1`. */
  readonly first?: number;
  readonly count: number;
  /** Of each. */
  readonly endpoints: number;
  /** Of those numbered below this every other one is a LoadBalancer and the rest NodePort; the others are ClusterIP. */
  readonly external?: number;
  readonly families: readonly Family[];
}

export const PHANTOM_PORT = 80;
const NAMESPACE = 'default';
const TARGET_PORT = 8080;
/** Longer than this no other work of the process waits. */
const TURN_MS = 10;
/** Of the phantoms' endpoints (nobody answers), beside all addresses of a lab. */
const ENDPOINT_CIDRS = { ipv4: '10.128.0.0/9', ipv6: 'fd86::/64' } as const satisfies Record<Family, string>;
/** Of the load balancers: for benchmarks (RFC 2544, RFC 5180). */
const BALANCER_CIDRS = { ipv4: '198.18.0.0/15', ipv6: '2001:2::/48' } as const satisfies Record<Family, string>;
/** How often endpoints can be moved to addresses that no other has. */
const GENERATION_OFFSET = 2 ** 22;

export const phantomServiceName = (index: number): string => `phantom-${String(index).padStart(5, '0')}`;

const sliceName = (index: number, family: Family, part: number): string =>
  `${phantomServiceName(index)}-${family}-${part}`;

/** Straight into the store, which takes some 0.1 ms each; watchers are served in between. Throws StatusError. */
export async function loadPhantomServices(store: Store, request: PhantomServices): Promise<void> {
  const { first = 0, count } = request;
  let turnMs = performance.now();
  for (let index = first; index < first + count; index++) {
    createOne(store, index, request);
    if (performance.now() - turnMs < TURN_MS) continue;
    await nextTurn();
    turnMs = performance.now();
  }
}

/** Moves the first endpoint of a phantom, as when a pod was replaced: generation 0 is how it began, up to 1. Throws LabError. */
export async function movePhantomEndpoint(
  { callApi }: Pick<LabControl, 'callApi'>,
  request: PhantomServices,
  index: number,
  generation: number,
): Promise<void> {
  const family = request.families[0] as Family;
  const path = apiPath.endpointSlice(NAMESPACE, sliceName(index, family, 0));
  const endpoints = endpointsOf(index, family, request.endpoints).slice(0, MAX_ENDPOINTS_PER_SLICE);
  const moved = endpointAt(family, index * request.endpoints + generation * GENERATION_OFFSET);
  await callApi({ method: 'PATCH', path, object: { endpoints: [moved, ...endpoints.slice(1)] } });
}

function createOne(store: Store, index: number, request: PhantomServices): void {
  const name = phantomServiceName(index);
  const { families, endpoints, external = 0 } = request;
  const type = index >= external ? 'ClusterIP' : index % 2 === 0 ? 'NodePort' : 'LoadBalancer';
  const ports = [{ port: PHANTOM_PORT, targetPort: TARGET_PORT }];
  const ipFamilies = families.map((family) => ADDRESS_TYPES[family]);
  const ipFamilyPolicy = families.length > 1 ? 'RequireDualStack' : 'SingleStack';
  store.create(KINDS.service, { metadata: { name }, spec: { type, ports, ipFamilies, ipFamilyPolicy } }, NAMESPACE);
  if (type === 'LoadBalancer') {
    const ingress = families.map((family) => ({ ip: addressOf(BALANCER_CIDRS[family], index + 1) }));
    const status = { loadBalancer: { ingress } };
    store.update(KINDS.service, { namespace: NAMESPACE, name }, (now) => ({ ...now, status }), { part: 'status' });
  }
  for (const family of families) {
    const all = endpointsOf(index, family, endpoints);
    for (let part = 0; part * MAX_ENDPOINTS_PER_SLICE < all.length; part++) {
      const some = all.slice(part * MAX_ENDPOINTS_PER_SLICE, (part + 1) * MAX_ENDPOINTS_PER_SLICE);
      store.create(KINDS.endpointSlice, sliceObject(name, sliceName(index, family, part), family, some), NAMESPACE);
    }
  }
}

const ADDRESS_TYPES = { ipv4: 'IPv4', ipv6: 'IPv6' } as const satisfies Record<Family, string>;

/** As made by hand: no controller takes it for its own. */
const sliceObject = (service: string, name: string, family: Family, endpoints: readonly unknown[]): unknown => ({
  metadata: { name, labels: { [SERVICE_NAME_LABEL]: service } },
  addressType: ADDRESS_TYPES[family],
  endpoints,
  ports: [{ name: '', port: TARGET_PORT, protocol: 'TCP' }],
});

const endpointsOf = (index: number, family: Family, count: number): readonly unknown[] =>
  Array.from({ length: count }, (_, i) => endpointAt(family, index * count + i));

const endpointAt = (family: Family, offset: number): unknown => ({
  addresses: [addressOf(ENDPOINT_CIDRS[family], offset + 1)],
  conditions: { ready: true, serving: true, terminating: false },
});

const addressOf = (cidr: string, offset: number): IpAddress =>
  addressAt(parseCidr(cidr) as NonNullable<ReturnType<typeof parseCidr>>, offset);
