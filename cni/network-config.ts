/** The network configuration on standard input (CNI SPEC, section 3, "Deriving request configuration"), narrowed. */
import { FAMILIES, type IpAddress, parseIp } from '../agent/model/ip.ts';
import type { PortMapping } from '../agent/model/port-mapping.ts';
import { PROTOCOLS } from '../agent/model/services.ts';
import { CNI_CODES, CniError, invalid, shown } from './cni-error.ts';
import { INTERFACE_NAME_EXPECTED, isInterfaceName, NAME_EXPECTED, NAME_PATTERN } from './names.ts';
import { integerAt, isAbsent, type JsonObject, listAt, matchAt, objectAt, parsedAt } from './narrow.ts';
import { type CniVersion, isSupportedVersion, supportedVersions } from './versions.ts';

export interface NetworkConfig {
  readonly cniVersion: CniVersion;
  readonly name: string;
  readonly type: string;
  /** Takes the place of the MTU that the agent derives from the node's network. */
  readonly mtuBytes?: number;
  /** As it came; parsePrevResult narrows it. */
  readonly prevResult?: unknown;
  readonly runtimeConfig: RuntimeConfig;
}

/** What the runtime fills in for the capabilities that our conflist asks for (CNI CONVENTIONS). */
export interface RuntimeConfig {
  readonly portMappings: readonly PortMapping[];
  readonly bandwidth?: Bandwidth;
  /** Addresses asked for; a prefix length is dropped. */
  readonly ips: readonly IpAddress[];
  readonly podAnnotations: ReadonlyMap<string, string>;
}

/** Rates in bits per second, bursts in bits; ingress is towards the pod. Absent or 0: no limit. */
export interface Bandwidth {
  readonly ingressRate?: number;
  readonly ingressBurst?: number;
  readonly egressRate?: number;
  readonly egressBurst?: number;
}

export interface AttachmentId {
  readonly containerId: string;
  readonly ifName: string;
}

const PORT_MAX = 65535;
const MTU_MAX_BYTES = 65535;

/** Throws CniError: 1 for a version that we do not speak, 2 for a field that we cannot honour, 7 for other faults. */
export function parseNetworkConfig(config: JsonObject): NetworkConfig {
  const { cniVersion, name, type, mtu, prevResult, runtimeConfig } = config;
  if (!isSupportedVersion(cniVersion)) {
    throw invalid(CNI_CODES.incompatibleVersion, 'cniVersion', `one of ${supportedVersions.join(', ')}`, cniVersion);
  }
  refuseIpam(config);
  return {
    cniVersion,
    name: matchAt('name', name, NAME_PATTERN, NAME_EXPECTED),
    type: matchAt('type', type, /^[^/]+$/, 'the name of a plugin'),
    ...(!isAbsent(mtu) && { mtuBytes: integerAt('mtu', mtu, FAMILIES.ipv4.minimumMtuBytes, MTU_MAX_BYTES) }),
    ...(!isAbsent(prevResult) && { prevResult }),
    runtimeConfig: parseRuntimeConfig(runtimeConfig),
  };
}

/**
 * The attachments that a GC leaves alone. A missing list is refused: taken for an empty one it would remove every pod's.
 * (A runtime without pods sends an empty list, or null.) Some releases of the reference library leave out `valid-`.
 */
export function parseValidAttachments(config: JsonObject): readonly AttachmentId[] {
  const field = 'cni.dev/valid-attachments';
  const value = config[field] === undefined ? config['cni.dev/attachments'] : config[field];
  if (value === undefined) throw invalid(CNI_CODES.invalidConfig, field, 'a list', value);
  return listAt(field, value, (at, element) => {
    const { containerID, ifname } = objectAt(at, element);
    return {
      containerId: matchAt(`${at}.containerID`, containerID, NAME_PATTERN, NAME_EXPECTED),
      ifName: parsedAt(
        `${at}.ifname`,
        ifname,
        (text) => (isInterfaceName(text) ? text : undefined),
        INTERFACE_NAME_EXPECTED,
      ),
    };
  });
}

/** Addresses come from Node.spec.podCIDRs alone: ignoring a range that somebody configured here would mislead. */
function refuseIpam({ ipam }: JsonObject): void {
  if (isAbsent(ipam) || (typeof ipam === 'object' && Object.keys(ipam).length === 0)) return;
  throw new CniError(CNI_CODES.unsupportedField, `ipam: expected none, got ${shown(ipam)}`, {
    details: "pod addresses come from the Node's spec.podCIDRs; remove ipam from the network configuration",
  });
}

function parseRuntimeConfig(value: unknown): RuntimeConfig {
  const config = isAbsent(value) ? {} : objectAt('runtimeConfig', value);
  const at = (name: string) => `runtimeConfig.${name}`;
  return {
    portMappings: listAt(at('portMappings'), config['portMappings'], parsePortMapping).filter(
      (mapping) => mapping !== undefined,
    ),
    ...(!isAbsent(config['bandwidth']) && { bandwidth: parseBandwidth(at('bandwidth'), config['bandwidth']) }),
    ips: listAt(at('ips'), config['ips'], (field, ip) => parsedAt(field, ip, parseIpOrPrefix, 'an IP address')),
    podAnnotations: parseAnnotations(config['io.kubernetes.cri.pod-annotations']),
  };
}

/** containerd 1.6 writes the names of Go's fields (`HostPort`), others those of the conventions (`hostPort`). */
const withoutCase = (object: JsonObject): ReadonlyMap<string, unknown> =>
  new Map(Object.entries(object).map(([key, value]) => [key.toLowerCase(), value]));

/** Undefined for a container port that is only declared (host port 0). */
function parsePortMapping(field: string, value: unknown): PortMapping | undefined {
  const fields = withoutCase(objectAt(field, value));
  const hostPort = integerAt(`${field}.hostPort`, fields.get('hostport') ?? 0, 0, PORT_MAX);
  if (hostPort === 0) return undefined;
  const hostIp = fields.get('hostip') ?? '';
  return {
    hostPort,
    containerPort: integerAt(`${field}.containerPort`, fields.get('containerport'), 1, PORT_MAX),
    protocol: parsedAt(`${field}.protocol`, fields.get('protocol') ?? 'tcp', parseProtocol, 'tcp, udp or sctp'),
    ...(hostIp !== '' && { hostIp: parsedAt(`${field}.hostIP`, hostIp, parseIp, 'an IP address') }),
  };
}

function parseProtocol(text: string): PortMapping['protocol'] | undefined {
  return PROTOCOLS.find((protocol) => protocol === text.toUpperCase());
}

function parseBandwidth(field: string, value: unknown): Bandwidth {
  const fields = withoutCase(objectAt(field, value));
  const names = ['ingressRate', 'ingressBurst', 'egressRate', 'egressBurst'] as const;
  const given = names.filter((name) => !isAbsent(fields.get(name.toLowerCase())));
  return Object.fromEntries(
    given.map((name) => [
      name,
      integerAt(`${field}.${name}`, fields.get(name.toLowerCase()), 0, Number.MAX_SAFE_INTEGER),
    ]),
  );
}

function parseIpOrPrefix(text: string): IpAddress | undefined {
  return parseIp(text.replace(/\/\d{1,3}$/, ''));
}

function parseAnnotations(value: unknown): ReadonlyMap<string, string> {
  const field = 'runtimeConfig["io.kubernetes.cri.pod-annotations"]';
  const annotations = isAbsent(value) ? {} : objectAt(field, value);
  return new Map(
    Object.entries(annotations).map(([key, text]) => [
      key,
      parsedAt(`${field}.${key}`, text, (same) => same, 'a text'),
    ]),
  );
}
