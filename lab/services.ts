/** Services of a lab for people: what `lab svc expose` writes, and what the API has of them. Pure. */

import { type IpAddress, parseIp } from '../agent/model/ip.ts';
import { ipPortText } from '../agent/model/ip-port.ts';
import { SERVICE_NAME_LABEL } from './api-server/endpoint-slices.ts';
import { type ApiObject, arrayAt, textAt, valueAt } from './api-server/objects.ts';
import { type ServicePortSpec, specOf } from './api-server/service-spec.ts';

export interface ServiceRequest {
  readonly namespace: string;
  readonly name: string;
  readonly type: string;
  readonly port: number;
  /** Number or name; the port unless given. */
  readonly targetPort?: string;
  readonly protocol: string;
  readonly selector: Readonly<Record<string, string>>;
  readonly nodePort?: number;
  /** `None` makes it headless. */
  readonly clusterIp?: string;
  readonly families?: 'single' | 'dual';
  readonly affinitySeconds?: number;
  readonly internalPolicy?: string;
  readonly externalPolicy?: string;
  readonly distribution?: string;
  readonly externalIps?: readonly string[];
}

/** core/v1 Service. */
export function serviceObject(request: ServiceRequest): unknown {
  const { namespace, name, type, port, protocol, selector, nodePort, targetPort, affinitySeconds } = request;
  const target =
    targetPort === undefined ? {} : { targetPort: /^\d+$/.test(targetPort) ? Number(targetPort) : targetPort };
  const timeout = { clientIP: { timeoutSeconds: affinitySeconds } };
  const optional = {
    clusterIP: request.clusterIp,
    ipFamilyPolicy: request.families && (request.families === 'dual' ? 'RequireDualStack' : 'SingleStack'),
    internalTrafficPolicy: request.internalPolicy,
    externalTrafficPolicy: request.externalPolicy,
    trafficDistribution: request.distribution,
    externalIPs: request.externalIps,
    ...(affinitySeconds !== undefined && { sessionAffinity: 'ClientIP', sessionAffinityConfig: timeout }),
  };
  const ports = [{ port, protocol, ...target, ...(nodePort !== undefined && { nodePort }) }];
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { namespace, name },
    spec: { type, selector, ports, ...optional },
  };
}

/** One port of one Service. */
export interface ServiceRow {
  /** `<namespace>/<name>`, and `:<port name>` where the port has one. */
  readonly service: string;
  readonly type: string;
  /** `10.96.1.1:80/TCP`, and `node:30080/TCP` for the node port. */
  readonly frontends: readonly string[];
  /** Whose endpoints these are tells the state of all but ready ones: `10.84.0.2:8080 (not ready)`. */
  readonly endpoints: readonly string[];
}

/** As the API has them, in its order; a Service without ports has a row as well. */
export function serviceRows(services: readonly ApiObject[], slices: readonly ApiObject[]): readonly ServiceRow[] {
  const keyOf = (namespace: unknown, name: unknown) => `${String(namespace)}/${String(name)}`;
  const byService = Map.groupBy(slices, ({ metadata: { namespace, labels } }) =>
    keyOf(namespace, labels?.[SERVICE_NAME_LABEL]),
  );
  return services.flatMap((service) => {
    const { namespace, name } = service.metadata;
    const key = keyOf(namespace, name);
    const { ports = [{}], type = 'ClusterIP' } = specOf(service);
    return ports.map((port) => ({
      service: port.name === undefined ? key : `${key}:${port.name}`,
      type,
      frontends: frontendsOf(service, port),
      endpoints: (byService.get(key) ?? []).flatMap((slice) => endpointsOf(slice, port)),
    }));
  });
}

function frontendsOf(service: ApiObject, { port = 0, nodePort, protocol = 'TCP' }: ServicePortSpec): readonly string[] {
  const { clusterIPs = [], externalIPs = [], externalName } = specOf(service);
  const balancers = arrayAt(service, 'status', 'loadBalancer', 'ingress').map((ingress) => textAt(ingress, 'ip'));
  const ips = [...clusterIPs, ...externalIPs, ...balancers].flatMap((text) => parseIp(text) ?? []);
  return [
    ...ips.map((ip) => `${ipPortText({ ip, port })}/${protocol}`),
    ...(nodePort ? [`node:${nodePort}/${protocol}`] : []),
    ...(clusterIPs[0] === 'None' ? ['headless'] : []),
    ...(externalName ? [externalName] : []),
  ];
}

/** A Service without ports (headless) has endpoints without them. */
function endpointsOf(slice: ApiObject, { name = '', protocol }: ServicePortSpec): readonly string[] {
  const ports = arrayAt(slice, 'ports').filter(
    (port) => textAt(port, 'name') === name && textAt(port, 'protocol') === (protocol ?? ''),
  );
  const numbers = protocol === undefined ? [undefined] : ports.map((port) => Number(valueAt(port, 'port')));
  return numbers.flatMap((port) =>
    arrayAt(slice, 'endpoints').flatMap((endpoint) =>
      arrayAt(endpoint, 'addresses').map((ip) => {
        const place = port === undefined ? String(ip) : ipPortText({ ip: ip as IpAddress, port });
        return `${place}${stateOf(endpoint)}`;
      }),
    ),
  );
}

/** Absent conditions mean: ready, serving as far as ready, not terminating (discovery.k8s.io/v1). */
function stateOf(endpoint: unknown): string {
  const ready = valueAt(endpoint, 'conditions', 'ready') ?? true;
  if (ready === true) return '';
  return valueAt(endpoint, 'conditions', 'terminating') === true ? ' (terminating)' : ' (not ready)';
}
