/** The spec of a Service: its shape, what of it lasts over an update, and its defaults (core/v1 ServiceSpec). Pure. */

import { isDeepStrictEqual } from 'node:util';
import { type ApiObject, isJsonObject, type JsonObject, valueAt, withField } from './objects.ts';
import { badRequest } from './status.ts';

export type IpFamilyName = 'IPv4' | 'IPv6';

export interface ServicePortSpec extends JsonObject {
  readonly name?: string;
  readonly protocol?: string;
  readonly port?: number;
  readonly targetPort?: number | string;
  readonly nodePort?: number;
}

/** As far as the server understands it; whatever else a client sends is kept. */
export interface ServiceSpec extends JsonObject {
  readonly type?: string;
  readonly clusterIP?: string;
  readonly clusterIPs?: readonly string[];
  readonly ipFamilies?: readonly IpFamilyName[];
  readonly ipFamilyPolicy?: string;
  readonly ports?: readonly ServicePortSpec[];
  readonly selector?: Readonly<Record<string, string>>;
  readonly sessionAffinity?: string;
  readonly sessionAffinityConfig?: JsonObject;
  readonly internalTrafficPolicy?: string;
  readonly externalTrafficPolicy?: string;
  readonly healthCheckNodePort?: number;
  readonly allocateLoadBalancerNodePorts?: boolean;
  readonly loadBalancerSourceRanges?: readonly string[];
  readonly externalIPs?: readonly string[];
  readonly externalName?: string;
  readonly publishNotReadyAddresses?: boolean;
  readonly trafficDistribution?: string;
}

const TIMEOUT_SECONDS = 10_800;

/** Without checks: for an object that went through prepareService, or one that is to be wrong and may have none. */
export const specOf = (service: ApiObject): ServiceSpec => (service['spec'] ?? {}) as ServiceSpec;

export const isHeadless = ({ clusterIP }: ServiceSpec): boolean => clusterIP === 'None';
/** Everything but ExternalName, unknown types included. */
export const hasClusterIp = ({ type }: ServiceSpec): boolean => type !== 'ExternalName';
export const hasNodePorts = ({ type }: ServiceSpec): boolean => type === 'NodePort' || type === 'LoadBalancer';
export const hasHealthCheck = ({ type, externalTrafficPolicy }: ServiceSpec): boolean =>
  type === 'LoadBalancer' && externalTrafficPolicy === 'Local';
/** Reached by an address other than its cluster IP. */
export const isExternal = (spec: ServiceSpec): boolean => hasNodePorts(spec) || (spec.externalIPs?.length ?? 0) > 0;

/** Brings what a client sent into the stored form. Throws StatusError 400 for what is no ServiceSpec. */
export function prepareService(service: ApiObject, previous: ApiObject | undefined): ApiObject {
  const sent = decodeSpec(service['spec']);
  const kept = previous ? keepAllocated(sent, specOf(previous)) : sent;
  return withField(service, 'spec', withDefaults(withClusterIps(kept)));
}

/** A copy with these fields, without those that are undefined, which JSON does not have. */
const withFields = (spec: ServiceSpec, fields: JsonObject): ServiceSpec =>
  Object.fromEntries(Object.entries({ ...spec, ...fields }).filter(([, value]) => value !== undefined));

type Check = (value: unknown) => boolean;

const isText: Check = (value) => typeof value === 'string';
const isNumber: Check = (value) => Number.isInteger(value);
const isFlag: Check = (value) => typeof value === 'boolean';
const isMap: Check = (value) => isJsonObject(value) && Object.values(value).every(isText);
const listOf =
  (check: Check): Check =>
  (value) =>
    Array.isArray(value) && value.every(check);
const shaped =
  (shape: Readonly<Record<string, Check>>): Check =>
  (value) =>
    isJsonObject(value) &&
    Object.entries(shape).every(([field, check]) => isAbsent(value[field]) || check(value[field]));
const isAbsent = (value: unknown): boolean => value === undefined || value === null;

const PORT_SHAPE = { name: isText, protocol: isText, port: isNumber, nodePort: isNumber, appProtocol: isText };
const isTargetPort: Check = (value) => isText(value) || isNumber(value);

const SHAPE: Readonly<Record<string, Check>> = {
  type: isText,
  clusterIP: isText,
  clusterIPs: listOf(isText),
  ipFamilies: listOf(isText),
  ipFamilyPolicy: isText,
  ports: listOf(shaped({ ...PORT_SHAPE, targetPort: isTargetPort })),
  selector: isMap,
  sessionAffinity: isText,
  sessionAffinityConfig: shaped({ clientIP: shaped({ timeoutSeconds: isNumber }) }),
  internalTrafficPolicy: isText,
  externalTrafficPolicy: isText,
  healthCheckNodePort: isNumber,
  allocateLoadBalancerNodePorts: isFlag,
  loadBalancerSourceRanges: listOf(isText),
  externalIPs: listOf(isText),
  externalName: isText,
  publishNotReadyAddresses: isFlag,
  trafficDistribution: isText,
};

/** Null, empty text, empty lists and 0 mean absent, as in Go's `omitempty`. */
function decodeSpec(spec: unknown): ServiceSpec {
  if (!isAbsent(spec) && !isJsonObject(spec)) throw badRequest('spec must be an object');
  const given = Object.entries((spec ?? {}) as JsonObject).filter(([, value]) => !isOmitted(value));
  const wrong = given.find(([field, value]) => Object.hasOwn(SHAPE, field) && !SHAPE[field]?.(value));
  if (wrong) throw badRequest(`spec.${wrong[0]} has not the form of a ServiceSpec: ${JSON.stringify(wrong[1])}`);
  return Object.fromEntries(given);
}

const isOmitted = (value: unknown): boolean =>
  isAbsent(value) || value === '' || value === 0 || (Array.isArray(value) && value.length === 0);

/** What the server gave is the client's to repeat or to leave out; what the new type has no use for goes. */
function keepAllocated(sent: ServiceSpec, before: ServiceSpec): ServiceSpec {
  return [keepClusterIps, keepNodePorts, keepHealthCheck, forgetExternalPolicy].reduce(
    (spec, keep) => keep(spec, before),
    sent,
  );
}

function keepClusterIps(spec: ServiceSpec, before: ServiceSpec): ServiceSpec {
  if (!hasClusterIp(before)) return spec;
  if (!hasClusterIp(spec))
    return withoutSame(spec, before, ['clusterIP', 'clusterIPs', 'ipFamilies', 'ipFamilyPolicy']);
  const clusterIP = spec.clusterIP ?? before.clusterIP;
  const clusterIPs = clusterIpsAfter(spec, before, clusterIP);
  const isSame = isDeepStrictEqual(clusterIPs, before.clusterIPs);
  return withFields(spec, {
    clusterIP,
    clusterIPs,
    ipFamilies: spec.ipFamilies ?? (isSame ? before.ipFamilies : undefined),
    ipFamilyPolicy: spec.ipFamilyPolicy ?? before.ipFamilyPolicy,
  });
}

/** A change of the older field alone is a change of the list. */
function clusterIpsAfter({ clusterIPs }: ServiceSpec, before: ServiceSpec, clusterIP: string | undefined): unknown {
  if (clusterIPs && !isDeepStrictEqual(clusterIPs, before.clusterIPs)) return clusterIPs;
  return clusterIP === before.clusterIP ? before.clusterIPs : [clusterIP];
}

/** By the port's name, as the real server does: a port that is renamed gets another number. */
function keepNodePorts(spec: ServiceSpec, before: ServiceSpec): ServiceSpec {
  if (!hasNodePorts(before)) return spec;
  const numbers = new Map(before.ports?.map(({ name, nodePort }) => [name ?? '', nodePort]));
  const ports = spec.ports?.map((port): ServicePortSpec => {
    const former = numbers.get(port.name ?? '');
    if (!hasNodePorts(spec)) return port.nodePort === former ? withField(port, 'nodePort', undefined) : port;
    return port.nodePort || !former ? port : { ...port, nodePort: former };
  });
  return withFields(spec, { ports });
}

function keepHealthCheck(spec: ServiceSpec, before: ServiceSpec): ServiceSpec {
  if (!hasHealthCheck(before)) return spec;
  if (!hasHealthCheck(spec)) return withoutSame(spec, before, ['healthCheckNodePort']);
  return withFields(spec, { healthCheckNodePort: spec.healthCheckNodePort ?? before.healthCheckNodePort });
}

function forgetExternalPolicy(spec: ServiceSpec, before: ServiceSpec): ServiceSpec {
  const unbalanced = before.type === 'LoadBalancer' && spec.type !== 'LoadBalancer';
  const forgotten = unbalanced ? withoutSame(spec, before, ['allocateLoadBalancerNodePorts']) : spec;
  return isExternal(before) && !isExternal(spec)
    ? withoutSame(forgotten, before, ['externalTrafficPolicy'])
    : forgotten;
}

/** Fields that the client changed stay, for the validation to object to. */
const withoutSame = (spec: ServiceSpec, before: ServiceSpec, fields: readonly string[]): ServiceSpec =>
  Object.fromEntries(
    Object.entries(spec).filter(
      ([field, value]) => !fields.includes(field) || !isDeepStrictEqual(value, before[field]),
    ),
  );

/** The older field alone stands for a list of one. */
function withClusterIps(spec: ServiceSpec): ServiceSpec {
  const { clusterIP, clusterIPs } = spec;
  return clusterIP !== undefined && clusterIPs === undefined ? { ...spec, clusterIPs: [clusterIP] } : spec;
}

function withDefaults(spec: ServiceSpec): ServiceSpec {
  const { type = 'ClusterIP', sessionAffinity = 'None', ports } = spec;
  const typed: ServiceSpec = { ...spec, type, sessionAffinity };
  return withFields(typed, {
    ports: ports?.map(portWithDefaults),
    ...(hasClusterIp(typed) && { internalTrafficPolicy: spec.internalTrafficPolicy ?? 'Cluster' }),
    ...(isExternal(typed) && { externalTrafficPolicy: spec.externalTrafficPolicy ?? 'Cluster' }),
    ...(type === 'LoadBalancer' && { allocateLoadBalancerNodePorts: spec.allocateLoadBalancerNodePorts ?? true }),
    sessionAffinityConfig: sessionAffinity === 'ClientIP' ? affinityConfig(spec) : undefined,
  });
}

function portWithDefaults(port: ServicePortSpec): ServicePortSpec {
  const given = Object.fromEntries(
    Object.entries(port).filter(([field, value]) => field === 'port' || !isOmitted(value)),
  );
  return { ...given, protocol: port.protocol || 'TCP', targetPort: port.targetPort || port.port || 0 };
}

function affinityConfig({ sessionAffinityConfig }: ServiceSpec): JsonObject {
  return {
    clientIP: { timeoutSeconds: valueAt(sessionAffinityConfig, 'clientIP', 'timeoutSeconds') ?? TIMEOUT_SECONDS },
  };
}
