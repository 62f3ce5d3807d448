/** From a Service and its Pods to endpoints, as kube-controller-manager's EndpointSlice controller makes them. Pure. */

import { type ApiObject, arrayAt, isJsonObject, type JsonObject, textAt, valueAt } from './objects.ts';
import { familyNameOf } from './service-families.ts';
import { type IpFamilyName, type ServicePortSpec, type ServiceSpec, specOf } from './service-spec.ts';

/** The Node that a Pod is on, as far as its endpoint tells of it. */
export interface Place {
  /** Of the label topology.kubernetes.io/zone; '' for none. */
  readonly zone: string;
}

/** discovery.k8s.io/v1 Endpoint. */
export interface Endpoint extends JsonObject {
  readonly addresses: readonly string[];
  readonly targetRef: JsonObject & { readonly uid: string };
}

/** Endpoints that share a list of ports, and so may share a slice. */
export interface EndpointGroup {
  /** discovery.k8s.io/v1 EndpointPort. */
  readonly ports: readonly JsonObject[];
  readonly endpoints: readonly Endpoint[];
}

/** Of one family. Pods whose Node is unknown are left out, unless the Service publishes them whatever their state. */
export function groupEndpoints(
  service: ApiObject,
  pods: readonly ApiObject[],
  placeOf: (node: string) => Place | undefined,
  family: IpFamilyName,
): readonly EndpointGroup[] {
  const groups = new Map<string, { ports: readonly JsonObject[]; endpoints: Endpoint[] }>();
  for (const pod of pods) {
    const place = placeOf(textAt(pod, 'spec', 'nodeName'));
    const isPlaced = place !== undefined || specOf(service).publishNotReadyAddresses === true;
    const addresses = isPlaced && !hasEnded(pod) ? addressesOf(pod, family) : [];
    if (addresses.length === 0) continue;
    const ports = endpointPorts(specOf(service), pod);
    const key = JSON.stringify(ports);
    const group = groups.get(key) ?? { ports, endpoints: [] };
    groups.set(key, group);
    group.endpoints.push(endpointOf(service, pod, place, addresses));
  }
  return [...groups.values()];
}

/** Families whose slices a Service has. */
export const familiesOf = ({ ipFamilies, clusterIP = '' }: ServiceSpec): readonly IpFamilyName[] => {
  if (ipFamilies) return ipFamilies;
  const only = familyNameOf(clusterIP);
  return only ? [only] : ['IPv4', 'IPv6'];
};

const hasEnded = (pod: ApiObject): boolean => ['Succeeded', 'Failed'].includes(textAt(pod, 'status', 'phase'));

const addressesOf = (pod: ApiObject, family: IpFamilyName): readonly string[] =>
  arrayAt(pod, 'status', 'podIPs')
    .map((entry) => textAt(entry, 'ip'))
    .filter((ip) => familyNameOf(ip) === family);

const isReady = (pod: ApiObject): boolean =>
  arrayAt(pod, 'status', 'conditions').some(
    (condition) => textAt(condition, 'type') === 'Ready' && textAt(condition, 'status') === 'True',
  );

function endpointOf(
  service: ApiObject,
  pod: ApiObject,
  place: Place | undefined,
  addresses: readonly string[],
): Endpoint {
  const spec = specOf(service);
  const { namespace, name, uid = '', deletionTimestamp } = pod.metadata;
  const [serving, terminating] = [isReady(pod), deletionTimestamp !== undefined];
  const ready = spec.publishNotReadyAddresses === true || (serving && !terminating);
  const nodeName = textAt(pod, 'spec', 'nodeName');
  const zone = place?.zone ?? '';
  const hostname = textAt(pod, 'spec', 'hostname');
  const hints = ready && hintsOf(spec.trafficDistribution, zone, nodeName);
  return {
    addresses,
    conditions: { ready, serving, terminating },
    targetRef: { kind: 'Pod', namespace, name, uid },
    ...(nodeName && { nodeName }),
    ...(zone && { zone }),
    ...(hostname && textAt(pod, 'spec', 'subdomain') === service.metadata.name && { hostname }),
    ...(hints && { hints }),
  };
}

/** KEP-4444 and KEP-3015: a Service that prefers its own node prefers its own zone to the rest. */
function hintsOf(distribution: string | undefined, zone: string, nodeName: string): JsonObject | undefined {
  if (distribution === undefined) return undefined;
  const forZones = zone ? [{ name: zone }] : [];
  const forNodes = distribution === 'PreferSameNode' && nodeName ? [{ name: nodeName }] : [];
  if (forZones.length + forNodes.length === 0) return undefined;
  return { ...(forZones.length > 0 && { forZones }), ...(forNodes.length > 0 && { forNodes }) };
}

/** A named target port that the Pod does not have is left out. */
const endpointPorts = ({ ports = [] }: ServiceSpec, pod: ApiObject): readonly JsonObject[] =>
  ports.flatMap((servicePort) => {
    const port = findPort(servicePort, pod);
    const { name = '', protocol, appProtocol } = servicePort;
    return port === undefined ? [] : [{ name, port, protocol, ...(appProtocol ? { appProtocol } : {}) }];
  });

function findPort({ targetPort, protocol }: ServicePortSpec, pod: ApiObject): number | undefined {
  if (typeof targetPort === 'number') return targetPort;
  // Init containers that stay are sidecars (KEP-753).
  const sidecars = arrayAt(pod, 'spec', 'initContainers').filter((each) => textAt(each, 'restartPolicy') === 'Always');
  const ports = [...arrayAt(pod, 'spec', 'containers'), ...sidecars].flatMap((each) => arrayAt(each, 'ports'));
  const found = ports.find(
    (port) => textAt(port, 'name') === targetPort && (textAt(port, 'protocol') || 'TCP') === protocol,
  );
  const number = isJsonObject(found) ? valueAt(found, 'containerPort') : undefined;
  return typeof number === 'number' ? number : undefined;
}
