/** Services and slices of a lab, written as a user or a controller does; in the namespace default. */
import { type Family, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { apiPath } from '../../lab/api-writer.ts';
import type { LabControl } from '../../lab/control.ts';
import type { PodStatus } from '../../lab/pods.ts';

export interface ServiceObject {
  readonly name: string;
  readonly clusterIps: readonly IpAddress[];
  readonly ports: readonly { readonly name?: string; readonly port: number; readonly nodePort?: number }[];
}

export interface SliceText {
  /** Of the Service. */
  readonly of: string;
  readonly family: Family;
  /**
   * Pods by number, separated by blanks: `1` is ready, `1~` serves and terminates, `1-` terminates, `1!` is not ready; `%2` is
   * a hint for zone-2, `@3` one for node-3.
   */
  readonly endpoints: string;
  /** `{port: 8080}` over TCP and UDP as `tcp` and `udp` unless given. */
  readonly ports?: readonly object[];
}

export interface ServiceApi {
  /** Dual-stack unless the spec says otherwise. Answers with what the server made of it. */
  createService(name: string, spec: object, ingress?: readonly object[]): Promise<ServiceObject>;
  readService(name: string): Promise<ServiceObject>;
  patchService(name: string, patch: object): Promise<void>;
  patchStatus(name: string, status: object): Promise<void>;
  deleteService(name: string): Promise<void>;
  createSlice(slice: SliceText): Promise<void>;
  /** The slice has these endpoints and no others from now on. */
  setEndpoints(slice: SliceText): Promise<void>;
  deleteSlice(of: string, family: Family): Promise<void>;
  /** As it is. */
  create(path: string, object: object): Promise<void>;
}

export const TCP_AND_UDP = [
  { name: 'tcp', protocol: 'TCP', port: 80, targetPort: 8080 },
  { name: 'udp', protocol: 'UDP', port: 80, targetPort: 8080 },
] as const;
const TARGETS = [
  { name: 'tcp', protocol: 'TCP', port: 8080 },
  { name: 'udp', protocol: 'UDP', port: 8080 },
];
export const SLICES = '/apis/discovery.k8s.io/v1/namespaces/default/endpointslices';
const ADDRESS_TYPES = { ipv4: 'IPv4', ipv6: 'IPv6' } as const;

export function serviceApi(control: LabControl, pods: ReadonlyMap<string, PodStatus>): ServiceApi {
  const send = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, object?: object) =>
    control.callApi({ method, path, object });
  const serviceAt = (name: string) => apiPath.service('default', name);
  const sliceAt = ({ of, family }: Pick<SliceText, 'of' | 'family'>) =>
    apiPath.endpointSlice('default', sliceName(of, family));
  const endpointsOf = ({ endpoints, family }: SliceText) =>
    endpoints
      .split(' ')
      .filter((text) => text !== '')
      .map((text) => endpointObject(text, family, pods));
  const patchStatus = async (name: string, status: object) =>
    void (await send('PATCH', `${serviceAt(name)}/status`, { status }));
  return {
    async createService(name, spec, ingress) {
      const object = { metadata: { name }, spec: { ipFamilyPolicy: 'PreferDualStack', ...spec } };
      const made = await send('POST', apiPath.services('default'), object);
      if (ingress) await patchStatus(name, { loadBalancer: { ingress } });
      return serviceObject(name, made['spec']);
    },
    readService: async (name) => serviceObject(name, (await send('GET', serviceAt(name)))['spec']),
    patchStatus,
    patchService: async (name, patch) => void (await send('PATCH', serviceAt(name), patch)),
    deleteService: async (name) => void (await send('DELETE', serviceAt(name))),
    async createSlice(slice) {
      const { of, family, ports = TARGETS } = slice;
      const labels = { 'kubernetes.io/service-name': of };
      const metadata = { name: sliceName(of, family), labels };
      await send('POST', SLICES, {
        metadata,
        addressType: ADDRESS_TYPES[family],
        ports,
        endpoints: endpointsOf(slice),
      });
    },
    setEndpoints: async (slice) => void (await send('PATCH', sliceAt(slice), { endpoints: endpointsOf(slice) })),
    deleteSlice: async (of, family) => void (await send('DELETE', sliceAt({ of, family }))),
    create: async (path, object) => void (await send('POST', path, object)),
  };
}

function serviceObject(name: string, spec: unknown): ServiceObject {
  const { clusterIPs, ports } = spec as { clusterIPs: IpAddress[]; ports: ServiceObject['ports'] };
  return { name, clusterIps: clusterIPs, ports };
}

const sliceName = (of: string, family: Family): string => `${of}-${family}`;

const CONDITIONS: Readonly<Record<string, object>> = {
  '': { ready: true },
  '~': { ready: false, serving: true, terminating: true },
  '-': { ready: false, serving: false, terminating: true },
  '!': { ready: false, serving: false, terminating: false },
};

function endpointObject(text: string, family: Family, pods: ReadonlyMap<string, PodStatus>): object {
  const [, number, state = '', zone, node] = /^(\d)([~!-]?)(?:%(\d))?(?:@(\d))?$/.exec(text) ?? [];
  const pod = pods.get(`web-${number}`);
  if (!pod) throw new Error(`no endpoint ${text}`);
  const address = pod.addresses.find((ip) => familyOf(ip) === family);
  const hints = {
    ...(zone && { forZones: [{ name: `zone-${zone}` }] }),
    ...(node && { forNodes: [{ name: `node-${node}` }] }),
  };
  return { addresses: [address], nodeName: pod.node, conditions: CONDITIONS[state], ...((zone || node) && { hints }) };
}
