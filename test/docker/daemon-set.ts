/** deploy/tulle.yaml as kubelet reads it: what a node's runtime is told about the agent's pod. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseAllDocuments } from 'yaml';
import type { ContainerConfig, SandboxConfig } from '../../lab/cri.ts';

export const MANIFEST = fileURLToPath(new URL('../../deploy/tulle.yaml', import.meta.url));

interface Metadata {
  readonly name: string;
  readonly namespace?: string;
}

interface EnvironmentVariable {
  readonly name: string;
  readonly value?: string;
  readonly valueFrom?: { readonly fieldRef: { readonly fieldPath: string } };
}

export interface Probe {
  readonly httpGet: { readonly host: string; readonly port: number; readonly path: string };
}

export interface Mount {
  readonly name: string;
  readonly mountPath: string;
  readonly readOnly?: boolean;
  readonly mountPropagation?: 'HostToContainer' | 'Bidirectional' | 'None';
}

export interface Volume {
  readonly name: string;
  readonly hostPath?: { readonly path: string; readonly type: string };
  readonly configMap?: { readonly name: string };
  readonly secret?: { readonly secretName: string; readonly optional?: boolean };
}

export interface Container {
  readonly name: string;
  readonly image: string;
  readonly args: readonly string[];
  readonly env: readonly EnvironmentVariable[];
  readonly securityContext: {
    readonly privileged?: boolean;
    readonly readOnlyRootFilesystem?: boolean;
    readonly seccompProfile?: { readonly type: 'RuntimeDefault' | 'Unconfined' };
    readonly capabilities: { readonly add: readonly string[]; readonly drop: readonly string[] };
  };
  readonly livenessProbe: Probe;
  readonly readinessProbe: Probe;
  readonly volumeMounts: readonly Mount[];
}

export interface PodSpec {
  readonly serviceAccountName: string;
  readonly hostNetwork: boolean;
  readonly hostPID?: boolean;
  readonly containers: readonly [Container];
  readonly volumes: readonly Volume[];
}

// biome-ignore lint/suspicious/noExplicitAny: objects of many kinds, written in this repository.
type AnyObject = { readonly kind: string; readonly metadata: Metadata; readonly [field: string]: any };

/** All objects of a manifest, in their order. Throws the parser's error for the first that is no YAML. */
export function readManifest(file = MANIFEST): readonly AnyObject[] {
  return parseAllDocuments(readFileSync(file, 'utf8')).map((document) => {
    const [error] = document.errors;
    if (error) throw error;
    return document.toJS() as AnyObject;
  });
}

/** The only object of a kind. */
export function objectOf(kind: string, objects = readManifest()): AnyObject {
  const [object, ...others] = objects.filter((candidate) => candidate.kind === kind);
  if (!object || others.length > 0) throw new Error(`expected one ${kind}, got ${object ? others.length + 1 : 0}`);
  return object;
}

export const podSpec = (): PodSpec => objectOf('DaemonSet')['spec'].template.spec;

export interface Placement {
  readonly nodeName: string;
  readonly uid: string;
  /** Counts the containers of this pod, as kubelet does when one ended. */
  readonly attempt: number;
  readonly api: { readonly host: string; readonly port: string; readonly token: string; readonly ca: string };
  /** Environment variables of the agent, as its container would have them from a ConfigMap. */
  readonly settings: Readonly<Record<string, string>>;
  /** Where the node's files are seen from here. */
  readonly pathOnHost: (path: string) => string;
  /** In the node: volumes that are no hostPath are made below. */
  readonly volumeDir: string;
}

/** Where the runtime of a node writes what containers print. */
export const LOG_DIR = '/run/pod-logs';
const SERVICE_ACCOUNT_DIR = '/var/run/secrets/kubernetes.io/serviceaccount';
const PROPAGATION = {
  None: 'PROPAGATION_PRIVATE',
  HostToContainer: 'PROPAGATION_HOST_TO_CONTAINER',
  Bidirectional: 'PROPAGATION_BIDIRECTIONAL',
} as const;

/** The sandbox of the agent's pod on one node. */
export function sandboxOf({ uid }: Placement): SandboxConfig {
  const { metadata } = objectOf('DaemonSet');
  const { hostNetwork, hostPID } = podSpec();
  return {
    metadata: { namespace: metadata.namespace ?? 'default', name: `${metadata.name}-${uid}`, uid },
    hostname: '',
    logDirectory: LOG_DIR,
    linux: {
      securityContext: {
        namespaceOptions: { network: hostNetwork ? 'NODE' : 'POD', pid: hostPID ? 'NODE' : 'CONTAINER' },
      },
    },
  };
}

/** Its container; makes the volumes on the node. */
export function containerOf(placement: Placement): ContainerConfig {
  const { containers, volumes } = podSpec();
  const [{ name, image, args, env, securityContext, volumeMounts }] = containers;
  const { capabilities, privileged, readOnlyRootFilesystem, seccompProfile } = securityContext;
  return {
    metadata: { name, attempt: placement.attempt },
    image: { image: `docker.io/library/${image}` },
    args,
    envs: [
      ...env.map((variable) => ({ key: variable.name, value: valueFor(variable, placement) })),
      ...Object.entries(placement.settings).map(([key, value]) => ({ key, value })),
      { key: 'KUBERNETES_SERVICE_HOST', value: placement.api.host },
      { key: 'KUBERNETES_SERVICE_PORT', value: placement.api.port },
    ],
    mounts: [
      ...volumeMounts.map(({ name, mountPath, readOnly = false, mountPropagation = 'None' }) => ({
        containerPath: mountPath,
        hostPath: makeVolume(
          volumes.find((volume) => volume.name === name),
          placement,
        ),
        readonly: readOnly,
        propagation: PROPAGATION[mountPropagation],
      })),
      { containerPath: SERVICE_ACCOUNT_DIR, hostPath: makeServiceAccount(placement), readonly: true },
    ],
    logPath: `${name}-${placement.attempt}.log`,
    linux: {
      securityContext: {
        capabilities: { addCapabilities: capabilities.add, dropCapabilities: capabilities.drop },
        privileged: privileged ?? false,
        readonlyRootfs: readOnlyRootFilesystem ?? false,
        seccomp: { profileType: seccompProfile?.type ?? 'Unconfined' },
        maskedPaths: DEFAULT_MASKED_PATHS,
        readonlyPaths: DEFAULT_READONLY_PATHS,
        namespaceOptions: { network: 'NODE', pid: 'CONTAINER' },
      },
    },
  };
}

/** kubelet passes these for `procMount: Default` (kubernetes, pkg/securitycontext/util.go). */
const DEFAULT_MASKED_PATHS = [
  ...['/proc/asound', '/proc/acpi', '/proc/kcore', '/proc/keys', '/proc/latency_stats', '/proc/timer_list'],
  ...['/proc/timer_stats', '/proc/sched_debug', '/proc/scsi', '/sys/firmware'],
];
const DEFAULT_READONLY_PATHS = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'];

function valueFor({ name, value, valueFrom }: EnvironmentVariable, { nodeName }: Placement): string {
  if (value !== undefined) return value;
  if (valueFrom?.fieldRef.fieldPath === 'spec.nodeName') return nodeName;
  throw new Error(`cannot set ${name}: expected a value or spec.nodeName, got ${JSON.stringify(valueFrom)}`);
}

/** Path on the node. */
function makeVolume(volume: Volume | undefined, placement: Placement): string {
  if (volume?.hostPath) return makeHostPath(volume.hostPath, placement);
  if (volume?.configMap) return makeFiles(volume.name, objectOf('ConfigMap')['data'], placement);
  // Nobody has made the Secret.
  if (volume?.secret?.optional) return makeFiles(volume.name, {}, placement);
  throw new Error(
    `cannot make a volume: expected a hostPath, a ConfigMap or an optional Secret, got ${JSON.stringify(volume)}`,
  );
}

function makeHostPath({ path, type }: { path: string; type: string }, { pathOnHost }: Placement): string {
  if (type === 'DirectoryOrCreate') mkdirSync(pathOnHost(path), { recursive: true });
  if (type === 'FileOrCreate') {
    mkdirSync(pathOnHost(dirname(path)), { recursive: true });
    writeFileSync(pathOnHost(path), '', { flag: 'a' });
  }
  return path;
}

const makeServiceAccount = (placement: Placement): string =>
  makeFiles('service-account', { token: placement.api.token, 'ca.crt': placement.api.ca }, placement);

function makeFiles(name: string, files: Readonly<Record<string, string>>, placement: Placement): string {
  const directory = join(placement.volumeDir, name);
  mkdirSync(placement.pathOnHost(directory), { recursive: true });
  for (const [file, text] of Object.entries(files)) writeFileSync(placement.pathOnHost(join(directory, file)), text);
  return directory;
}
