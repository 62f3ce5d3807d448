/** What the real server objects to in a Service, as far as a network depends on it (core/v1 validation). Pure. */

import { isDeepStrictEqual } from 'node:util';
import { parseCidr, parseIp } from '../../agent/model/ip.ts';
import { PROTOCOLS } from '../../agent/model/services.ts';
import { type ApiObject, valueAt } from './objects.ts';
import { familyNameOf } from './service-families.ts';
import {
  hasClusterIp,
  hasHealthCheck,
  hasNodePorts,
  isExternal,
  isHeadless,
  type ServicePortSpec,
  type ServiceSpec,
  specOf,
} from './service-spec.ts';
import { type Cause, duplicateValue, forbiddenValue, invalidValue, requiredValue, unsupportedValue } from './status.ts';
import { isName } from './validation.ts';

const TYPES = ['ClusterIP', 'ExternalName', 'LoadBalancer', 'NodePort'];
const POLICIES = ['Cluster', 'Local'];
const AFFINITIES = ['ClientIP', 'None'];
const FAMILY_POLICIES = ['PreferDualStack', 'RequireDualStack', 'SingleStack'];
const FAMILY_NAMES = ['IPv4', 'IPv6'];
const DISTRIBUTIONS = ['PreferClose', 'PreferSameNode', 'PreferSameZone'];
const AFFINITY_SECONDS_MAX = 86_400;

/** For an object that went through prepareService. */
export function validateService(service: ApiObject, previous: ApiObject | undefined): readonly Cause[] {
  const spec = specOf(service);
  const before = previous && specOf(previous);
  return [objectToChoices, objectToPorts, objectToAddresses, objectToType, objectToAffinity]
    .flatMap((object) => object(spec))
    .concat(before ? objectToChange(spec, before) : []);
}

const chosen = (field: string, value: string | undefined, supported: readonly string[]): readonly Cause[] =>
  value === undefined || supported.includes(value) ? [] : [unsupportedValue(`spec.${field}`, value, supported)];

const objectToChoices = (spec: ServiceSpec): readonly Cause[] => [
  ...chosen('type', spec.type, TYPES),
  ...chosen('sessionAffinity', spec.sessionAffinity, AFFINITIES),
  ...chosen('internalTrafficPolicy', spec.internalTrafficPolicy, POLICIES),
  ...chosen('externalTrafficPolicy', spec.externalTrafficPolicy, POLICIES),
  ...chosen('ipFamilyPolicy', spec.ipFamilyPolicy, FAMILY_POLICIES),
  ...chosen('trafficDistribution', spec.trafficDistribution, DISTRIBUTIONS),
  ...(spec.ipFamilies ?? []).flatMap((family, i) => chosen(`ipFamilies[${i}]`, family, FAMILY_NAMES)),
];

function objectToPorts(spec: ServiceSpec): readonly Cause[] {
  const { ports = [] } = spec;
  if (ports.length === 0) return hasClusterIp(spec) && !isHeadless(spec) ? [requiredValue('spec.ports')] : [];
  return ports.flatMap((port, i) => {
    const earlier = ports.slice(0, i);
    return [
      ...objectToPort(port, `spec.ports[${i}]`, ports.length > 1),
      ...objectToTwin(port, `spec.ports[${i}]`, earlier),
      ...(port.nodePort && !hasNodePorts(spec)
        ? [forbiddenValue(`spec.ports[${i}].nodePort`, `may not be used when \`type\` is '${spec.type}'`)]
        : []),
    ];
  });
}

function objectToPort(
  { name, port, protocol = '', targetPort }: ServicePortSpec,
  at: string,
  isOneOfMany: boolean,
): readonly Cause[] {
  const causes: Cause[] = [];
  if (name === undefined && isOneOfMany) causes.push(requiredValue(`${at}.name`));
  if (name !== undefined && !isName(name, 'label'))
    causes.push(invalidValue(`${at}.name`, name, 'must be a lower-case RFC 1123 label of at most 63 characters'));
  if (!isPortNumber(port)) causes.push(invalidValue(`${at}.port`, port ?? 0, PORT_RANGE));
  if (!PROTOCOLS.some((known) => known === protocol))
    causes.push(unsupportedValue(`${at}.protocol`, protocol, PROTOCOLS.toSorted()));
  if (typeof targetPort === 'string' ? !isPortName(targetPort) : !isPortNumber(targetPort))
    causes.push(invalidValue(`${at}.targetPort`, targetPort, typeof targetPort === 'string' ? PORT_NAME : PORT_RANGE));
  return causes;
}

const PORT_RANGE = 'must be between 1 and 65535, inclusive';
const PORT_NAME = 'must be at most 15 lower-case letters, digits and hyphens, of which one is a letter';

const isPortNumber = (port: number | undefined): boolean => port !== undefined && port >= 1 && port <= 65_535;

/** RFC 6335 section 5.1, in lower case. */
const isPortName = (name: string): boolean => /^(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*$/.test(name);

function objectToTwin(port: ServicePortSpec, at: string, earlier: readonly ServicePortSpec[]): readonly Cause[] {
  const { name, protocol, nodePort } = port;
  const causes: Cause[] = [];
  if (name !== undefined && earlier.some((other) => other.name === name))
    causes.push(duplicateValue(`${at}.name`, name));
  const same = earlier.filter((other) => other.protocol === protocol);
  if (same.some((other) => other.port === port.port)) causes.push(duplicateValue(at, { protocol, port: port.port }));
  if (nodePort && same.some((other) => other.nodePort === nodePort))
    causes.push(duplicateValue(`${at}.nodePort`, { protocol, nodePort }));
  return causes;
}

function objectToAddresses(spec: ServiceSpec): readonly Cause[] {
  const { clusterIPs = [], externalIPs = [], loadBalancerSourceRanges = [] } = spec;
  return [
    ...objectToClusterIps(spec, clusterIPs),
    ...externalIPs.flatMap((ip, i) =>
      parseIp(ip) ? [] : [invalidValue(`spec.externalIPs[${i}]`, ip, 'must be a valid IP address')],
    ),
    ...loadBalancerSourceRanges.flatMap((range, i) =>
      parseCidr(range.trim())
        ? []
        : [invalidValue(`spec.loadBalancerSourceRanges[${i}]`, range, 'must be a valid CIDR value')],
    ),
  ];
}

function objectToClusterIps(
  { clusterIP, type, ipFamilies = [] }: ServiceSpec,
  clusterIPs: readonly string[],
): readonly Cause[] {
  if (clusterIPs.length === 0) return [];
  const [first] = clusterIPs;
  if (clusterIP === undefined)
    return [invalidValue('spec.clusterIPs', clusterIPs, 'must be empty when `clusterIP` is not specified')];
  if (first !== clusterIP) return [invalidValue('spec.clusterIPs', clusterIPs, 'first value must match `clusterIP`')];
  if (clusterIPs.length > 2) return [invalidValue('spec.clusterIPs', clusterIPs, 'may only hold up to 2 values')];
  if (clusterIPs.length === 2 && clusterIPs.includes('None'))
    return [invalidValue('spec.clusterIPs', clusterIPs, "'None' must be the first and only value")];
  if (first === 'None')
    return type === 'NodePort' || type === 'LoadBalancer'
      ? [invalidValue('spec.clusterIPs[0]', first, `may not be set to 'None' for ${type} services`)]
      : [];
  const names = clusterIPs.map(familyNameOf);
  const causes = clusterIPs.flatMap((ip, i) => {
    if (names[i] === undefined) return [invalidValue(`spec.clusterIPs[${i}]`, ip, 'must be a valid IP address')];
    const family = ipFamilies[i];
    return family === undefined || family === names[i]
      ? []
      : [invalidValue(`spec.clusterIPs[${i}]`, ip, `expected an ${family} value as indicated by \`ipFamilies[${i}]\``)];
  });
  if (causes.length === 0 && names.length === 2 && names[0] === names[1])
    return [invalidValue('spec.clusterIPs', clusterIPs, 'may specify no more than one IP for each IP family')];
  return causes;
}

function objectToType(spec: ServiceSpec): readonly Cause[] {
  const causes: Cause[] = [];
  const { type, externalName, clusterIPs = [], ipFamilies = [] } = spec;
  if (type === 'ExternalName') {
    if (!isName(externalName?.replace(/\.$/, '') ?? '', 'subdomain'))
      causes.push(
        externalName
          ? invalidValue('spec.externalName', externalName, 'must be a DNS name')
          : requiredValue('spec.externalName'),
      );
    if (clusterIPs.length > 0)
      causes.push(forbiddenValue('spec.clusterIPs', 'may not be set for ExternalName services'));
  }
  if (ipFamilies.length > new Set(ipFamilies).size) causes.push(duplicateValue('spec.ipFamilies[1]', ipFamilies[1]));
  if (!isExternal(spec) && spec.externalTrafficPolicy !== undefined)
    causes.push(
      invalidValue(
        'spec.externalTrafficPolicy',
        spec.externalTrafficPolicy,
        'may only be set for externally-accessible services',
      ),
    );
  if (spec.healthCheckNodePort && !hasHealthCheck(spec))
    causes.push(
      invalidValue(
        'spec.healthCheckNodePort',
        spec.healthCheckNodePort,
        "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
      ),
    );
  for (const field of ['loadBalancerSourceRanges', 'allocateLoadBalancerNodePorts'] as const)
    if (type !== 'LoadBalancer' && spec[field] !== undefined)
      causes.push(forbiddenValue(`spec.${field}`, "may only be used when `type` is 'LoadBalancer'"));
  return causes;
}

function objectToAffinity({ sessionAffinity, sessionAffinityConfig }: ServiceSpec): readonly Cause[] {
  if (sessionAffinity !== 'ClientIP') return [];
  const timeoutSeconds = Number(valueAt(sessionAffinityConfig, 'clientIP', 'timeoutSeconds'));
  return timeoutSeconds >= 1 && timeoutSeconds <= AFFINITY_SECONDS_MAX
    ? []
    : [
        invalidValue(
          'spec.sessionAffinityConfig.clientIP.timeoutSeconds',
          timeoutSeconds,
          `must be greater than 0 and less than ${AFFINITY_SECONDS_MAX}`,
        ),
      ];
}

/** A cluster IP stays for as long as the Service is of a type that has one; only the second may come and go. */
function objectToChange(spec: ServiceSpec, before: ServiceSpec): readonly Cause[] {
  const causes: Cause[] = [];
  const [former, present] = [before.clusterIPs ?? [], spec.clusterIPs ?? []];
  if (hasClusterIp(spec) && hasClusterIp(before)) {
    for (const i of [0, 1]) {
      const isKept = former[i] === undefined || former[i] === present[i] || (i === 1 && present[i] === undefined);
      if (!isKept) causes.push(invalidValue(`spec.clusterIPs[${i}]`, present, 'may not change once set'));
    }
    const [family] = before.ipFamilies ?? [];
    if (family !== undefined && spec.ipFamilies?.[0] !== undefined && spec.ipFamilies[0] !== family)
      causes.push(invalidValue('spec.ipFamilies[0]', spec.ipFamilies[0], 'may not change once set'));
  }
  if (
    hasHealthCheck(spec) &&
    hasHealthCheck(before) &&
    !isDeepStrictEqual(spec.healthCheckNodePort, before.healthCheckNodePort)
  )
    causes.push(invalidValue('spec.healthCheckNodePort', spec.healthCheckNodePort, 'field is immutable'));
  return causes;
}
