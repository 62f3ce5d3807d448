/** The agent's settings: one table from which flags, environment names, file keys, defaults, validation and help follow. */
import { readFileSync } from 'node:fs';
import { parse as parseYaml } from 'yaml';
import { ConfigError } from './model/config-error.ts';
import { type Cidr, parseCidr } from './model/ip.ts';
import { ipPortText, parseIpPort } from './model/ip-port.ts';
import { TUN_CARRIAGES, TUN_ENCRYPTIONS } from './model/items.ts';

/** Plugins that work without a configuration of their own: hostPort, and the bandwidth annotations. */
const CHAINED_PLUGINS = ['portmap', 'bandwidth'] as const;

/** How a value is read from text, and how it is described to people. */
interface ValueType<T> {
  readonly expected: string;
  /** Undefined when the text is not such a value. */
  readonly parse: (text: string) => T | undefined;
}

interface Setting<T> {
  readonly type: ValueType<T>;
  readonly default: T;
  readonly help: string;
}

const text: ValueType<string> = { expected: 'text', parse: (value) => value };
const path: ValueType<string> = {
  expected: 'an absolute path',
  parse: (value) => (value === '' || value.startsWith('/') ? value : undefined),
};
const url: ValueType<string> = {
  expected: 'https://HOST:PORT',
  parse: (value) => (value === '' || (URL.canParse(value) && new URL(value).protocol === 'https:') ? value : undefined),
};
const flag: ValueType<boolean> = {
  expected: 'true or false',
  parse: (value) => (value === 'true' ? true : value === 'false' ? false : undefined),
};
const integer = (min: number, max: number): ValueType<number> => ({
  expected: `a whole number from ${min} to ${max}`,
  parse: (value) =>
    /^\d{1,10}$/.test(value) && Number(value) >= min && Number(value) <= max ? Number(value) : undefined,
});
const choice = <const T extends readonly string[]>(...values: T): ValueType<T[number]> => ({
  expected: `one of ${values.join(', ')}`,
  parse: (value) => values.find((candidate) => candidate === value),
});
const listOf = <T>(element: ValueType<T>, expected: string): ValueType<readonly T[]> => ({
  expected,
  parse: (value) => {
    const parts = value.split(',').filter((part) => part !== '');
    const parsed = parts.map((part) => element.parse(part.trim()));
    const values = parsed.filter((each) => each !== undefined);
    return values.length === parts.length ? Object.freeze(values) : undefined;
  },
});

const cidr: ValueType<Cidr> = { expected: 'a CIDR', parse: parseCidr };
const cidrList = listOf(cidr, 'CIDRs joined by commas, such as 10.0.0.0/8,fd00::/8');

/** DNS-1123 label. */
const namespace: ValueType<string> = {
  expected: 'the name of a namespace',
  parse: (value) => (/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(value) ? value : undefined),
};

const listenAddress: ValueType<string> = {
  expected: 'an address and a port, such as 127.0.0.1:9440 or [::1]:9440, or off',
  parse: (value) => {
    const parsed = parseIpPort(value);
    return value === 'off' ? value : parsed && ipPortText(parsed);
  },
};

const setting = <T>(type: ValueType<T>, standard: NoInfer<T>, help: string): Setting<T> => ({
  type,
  default: standard,
  help,
});

export const SETTINGS = {
  nodeName: setting(text, '', 'name of this node in the cluster; required (in a DaemonSet: spec.nodeName)'),
  kubeconfig: setting(path, '', 'kubeconfig file; without one, the in-cluster service account is used'),
  apiServer: setting(
    url,
    '',
    'address of the API server instead of the one in the credentials (kube-proxy may not exist yet)',
  ),
  runDir: setting(path, '/run/tulle', 'sockets, pod records and the queue of deletions; must not survive a reboot'),
  cniConfDir: setting(path, '/etc/cni/net.d', 'where 10-tulle.conflist is written once the agent is ready'),
  cniBinDir: setting(path, '/opt/cni/bin', 'where the CNI executable is installed'),
  cniExecutable: setting(path, '', 'the CNI executable to install; by default the one that belongs to this agent'),
  'cni.chain': setting(
    listOf(choice(...CHAINED_PLUGINS), `${CHAINED_PLUGINS.join(', ')}, joined by commas`),
    [],
    'reference plugins that the network configuration names after Tulle; they have to be in cniBinDir. With portmap Tulle serves no host ports',
  ),
  procSys: setting(
    path,
    '/proc/sys',
    "root of the sysctl files (a container sees its own read-only: mount the host's)",
  ),
  'vxlan.vni': setting(integer(1, 16777215), 84, 'VXLAN network identifier; the device is tulle.<vni>'),
  'vxlan.port': setting(integer(1, 65535), 8472, 'UDP port of the tunnel; 4789 is the IANA port, equal on all nodes'),
  'vxlan.txChecksumOffload': setting(
    choice('auto', 'on', 'off'),
    'auto',
    'transmit checksum offload of the tunnel device; auto: off before Linux 5.7',
  ),
  'vxlan.directRouting': setting(flag, false, 'plain routes to peers on the same segment, the tunnel for the rest'),
  'tun.port': setting(integer(1, 65535), 8285, 'UDP port of the tunnel of backend tun; equal on all nodes'),
  'tun.carriage': setting(
    choice(...TUN_CARRIAGES),
    'segments',
    'how large packets travel; whole: in datagrams that IP fragments, faster where fragments pass: probed, and given up by itself',
  ),
  'tun.encryption': setting(
    choice(...TUN_ENCRYPTIONS),
    'none',
    'how the tunnel of backend tun is sealed, with keys from tun.secretFile; equal on all nodes. See docs/tun.md',
  ),
  'tun.secretFile': setting(
    path,
    '',
    'file of at least 32 bytes that all nodes share, such as a mounted Secret; may change at any time. For tun.encryption',
  ),
  backend: setting(
    choice('vxlan', 'host-gw', 'tun'),
    'vxlan',
    'how pod traffic reaches other nodes; the same on all nodes',
  ),
  podLink: setting(
    choice('routed', 'bridge'),
    'routed',
    'how new pods are connected to the node; those that run keep what they have',
  ),
  tunnelFamily: setting(
    choice('auto', 'ipv4', 'ipv6'),
    'auto',
    'family of the outer packets; auto: the first that all nodes have',
  ),
  mtuBytes: setting(
    integer(0, 65535),
    0,
    "MTU of the tunnel and of pods' routes; 0: that of the underlay minus the tunnel's overhead",
  ),
  masquerade: setting(flag, true, 'masquerade what pods send out of the cluster'),
  clusterCidrs: setting(cidrList, [], "all pod addresses of the cluster; by default the union of the nodes' podCIDRs"),
  nonMasqueradeCidrs: setting(cidrList, [], 'further destinations that see pod addresses unchanged'),
  'iptables.backend': setting(
    choice('auto', 'nft', 'legacy'),
    'auto',
    'which iptables; auto: the one that the host uses',
  ),
  'services.mode': setting(
    choice('off', 'auto', 'ebpf', 'iptables'),
    'off',
    'how Services are served; off: by another proxy, such as kube-proxy',
  ),
  'services.externalAddresses': setting(
    cidrList,
    [],
    "where Services may have external and load-balancer addresses; none: load balancers' addresses anywhere, no externalIPs",
  ),
  'services.nodePortAddresses': setting(
    cidrList,
    [],
    "node ports are open on this node's addresses inside these, never on loopback; none: on the Node's InternalIPs",
  ),
  'services.healthPort': setting(
    integer(0, 65535),
    10_256,
    "where load balancers ask whether this node serves Services (/healthz, /livez; kube-proxy's port), at the addresses of node ports; 0: nowhere",
  ),
  'services.ebpf.scope': setting(
    choice('all', 'host'),
    'all',
    'whose sockets are translated; host: only those of the host, and pods are served by iptables (sidecars, virtual machines)',
  ),
  'services.ebpf.maxFrontends': setting(
    integer(64, 16_777_216),
    262_144,
    'addresses and ports of Services that the map of frontends holds',
  ),
  'services.ebpf.maxBackends': setting(
    integer(64, 16_777_216),
    1_048_576,
    'backends that the map of backend sets holds; equal sets are there once',
  ),
  'services.ebpf.maxClients': setting(
    integer(64, 16_777_216),
    65_536,
    'clients whose choice is remembered, for session affinity and for sockets that send without being connected',
  ),
  cgroupRoot: setting(
    path,
    '/sys/fs/cgroup',
    "root of the node's cgroups, of version 2 or with `unified` below it (a container sees its own: mount the host's)",
  ),
  'ipam.reuseDelaySeconds': setting(
    integer(0, 86400),
    60,
    'how long a released address is not given out again, while others are free',
  ),
  'ipam.staticNamespaces': setting(
    listOf(namespace, 'names of namespaces joined by commas'),
    [],
    'namespaces whose pods may ask for addresses by the annotation tulle.dev/ips',
  ),
  'metrics.address': setting(
    listenAddress,
    '127.0.0.1:9440',
    'where /metrics, /healthz and /readyz are served to everybody who reaches it; [::]:PORT is all addresses of the host',
  ),
  resyncSeconds: setting(integer(5, 86400), 60, 'how often the kernel is listed in full without a reason'),
  logLevel: setting(choice('trace', 'debug', 'info', 'warn', 'error', 'fatal'), 'info', 'least level that is logged'),
} as const;

export type SettingKey = keyof typeof SETTINGS;
export type Config = { readonly [K in SettingKey]: (typeof SETTINGS)[K] extends Setting<infer T> ? T : never };

const settingKeys = Object.keys(SETTINGS) as SettingKey[];

/** `vxlan.txChecksumOffload` → `vxlan-tx-checksum-offload`. */
export const flagName = (key: SettingKey): string =>
  key.replaceAll('.', '-').replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
/** `vxlan.txChecksumOffload` → `TULLE_VXLAN_TX_CHECKSUM_OFFLOAD`. */
export const environmentName = (key: SettingKey): string => `TULLE_${flagName(key).replaceAll('-', '_').toUpperCase()}`;

/** The rows of `--help` and of docs/settings.md. */
export function describeSettings(): readonly {
  key: SettingKey;
  flag: string;
  environment: string;
  default: string;
  help: string;
  expected: string;
}[] {
  return settingKeys.map((key) => ({
    key,
    flag: `--${flagName(key)}`,
    environment: environmentName(key),
    default: String(SETTINGS[key].default),
    help: SETTINGS[key].help,
    expected: SETTINGS[key].type.expected,
  }));
}

type Flags = Readonly<Partial<Record<SettingKey, string>>>;
type Environment = Readonly<Record<string, string | undefined>>;

/** The settings of an agent: those of resolveSettings, with a node's name among them. Throws ConfigError. */
export function resolveConfig(flags: Flags, environment: Environment, file?: ReadonlyMap<string, string>): Config {
  const config = resolveSettings(flags, environment, file);
  requireSecret(config);
  if (config.nodeName !== '') return config;
  throw new ConfigError({
    key: 'nodeName',
    expected: `--node-name or ${environmentName('nodeName')}`,
    received: 'nothing',
    remedy: 'a DaemonSet takes it from spec.nodeName',
  });
}

function requireSecret(config: Config): void {
  if (config['tun.encryption'] === 'none' || config['tun.secretFile'] !== '') return;
  throw new ConfigError({
    key: 'tun.secretFile',
    expected: `a file, since tun.encryption is ${config['tun.encryption']}`,
    received: 'nothing',
    remedy: 'mount a Secret of at least 32 random bytes, the same on all nodes',
  });
}

/**
 * Flags win over the environment, that over the file, that over the defaults. `flags` holds text by setting key.
 * Throws ConfigError.
 */
export function resolveSettings(
  flags: Flags,
  environment: Environment,
  file: ReadonlyMap<string, string> = new Map(),
): Config {
  for (const key of file.keys()) {
    if (!(key in SETTINGS))
      throw new ConfigError({
        key,
        expected: `one of ${settingKeys.join(', ')}`,
        received: 'a key that does not exist',
      });
  }
  const resolved = settingKeys.map((key) => [
    key,
    resolveOne(key, flags[key] ?? environment[environmentName(key)] ?? file.get(key)),
  ]);
  return Object.freeze(Object.fromEntries(resolved)) as Config;
}

function resolveOne(key: SettingKey, given: string | undefined): unknown {
  const { type, default: standard } = SETTINGS[key];
  if (given === undefined) return standard;
  const value = type.parse(given.trim());
  if (value === undefined)
    throw new ConfigError({ key, expected: type.expected, received: JSON.stringify(given.slice(0, 200)) });
  return value;
}

/** Reads a YAML file of nested keys (`vxlan: { vni: 84 }`) into dotted ones; lists are joined by commas. Throws ConfigError. */
export function readConfigFile(file: string): ReadonlyMap<string, string> {
  let document: unknown;
  try {
    document = parseYaml(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw new ConfigError({
      key: 'config',
      expected: 'a readable YAML file',
      received: `${file}: ${(cause as Error).message}`,
      cause,
    });
  }
  const values = new Map<string, string>();
  flatten(document ?? {}, '', values);
  return values;
}

function flatten(value: unknown, key: string, into: Map<string, string>): void {
  if (Array.isArray(value)) into.set(key, value.map(String).join(','));
  else if (typeof value === 'object' && value !== null) {
    for (const [name, inner] of Object.entries(value)) flatten(inner, key === '' ? name : `${key}.${name}`, into);
  } else if (key === '')
    throw new ConfigError({ key: 'config', expected: 'a YAML mapping of settings', received: typeof value });
  else into.set(key, String(value));
}

/** Whether files and processes are those of a container instead of the node's; the image says so, as container managers do. */
export const IN_CONTAINER = (process.env['container'] ?? '') !== '';
