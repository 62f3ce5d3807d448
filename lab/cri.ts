/** The Container Runtime Interface (version v1) as kubelet speaks it: gRPC over the Unix socket of containerd. */
import { fileURLToPath } from 'node:url';
import { Client, credentials, Metadata, type ServiceDefinition, type ServiceError, status } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

export interface SandboxMetadata {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  /** Of the same pod: the runtime refuses a second sandbox with the same metadata. */
  readonly attempt?: number;
}

type NamespaceMode = 'POD' | 'CONTAINER' | 'NODE';

export interface NamespaceOptions {
  readonly network?: NamespaceMode;
  readonly pid?: NamespaceMode;
  readonly ipc?: NamespaceMode;
}

export interface PortMapping {
  readonly protocol?: 'TCP' | 'UDP' | 'SCTP';
  readonly containerPort: number;
  readonly hostPort: number;
  readonly hostIp?: string;
}

/** Fields that are missing have protobuf's zero: '' , 0, false, the first of an enumeration. */
export interface SandboxConfig {
  readonly metadata: SandboxMetadata;
  /** Must be '' exactly where the sandbox has the network of the node. */
  readonly hostname?: string;
  readonly logDirectory?: string;
  readonly portMappings?: readonly PortMapping[];
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly linux?: {
    readonly cgroupParent?: string;
    readonly securityContext?: { readonly namespaceOptions?: NamespaceOptions; readonly privileged?: boolean };
  };
}

export type SandboxState = 'SANDBOX_READY' | 'SANDBOX_NOTREADY';

export interface SandboxStatus {
  readonly state: SandboxState;
  readonly metadata: Required<SandboxMetadata>;
  /** As the runtime prints them, the pod's first address first; none for the network of the node. */
  readonly ips: readonly string[];
  /** Path of the network namespace in the node, '' when it is gone. */
  readonly netns: string;
  /** Its first process, as the node numbers it; 0 when it is gone. */
  readonly pid: number;
}

export interface SandboxItem {
  readonly id: string;
  readonly metadata: Required<SandboxMetadata>;
  readonly state: SandboxState;
}

export interface RuntimeCondition {
  /** RuntimeReady, NetworkReady. */
  readonly type: string;
  readonly status: boolean;
  readonly reason: string;
  readonly message: string;
}

export interface SecurityProfile {
  readonly profileType: 'RuntimeDefault' | 'Unconfined' | 'Localhost';
  readonly localhostRef?: string;
}

export interface ContainerConfig {
  readonly metadata: { readonly name: string; readonly attempt?: number };
  readonly image: { readonly image: string };
  /** Instead of the image's entry point. */
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  readonly envs?: readonly { readonly key: string; readonly value: string }[];
  readonly mounts?: readonly {
    readonly containerPath: string;
    readonly hostPath: string;
    readonly readonly?: boolean;
    readonly propagation?: 'PROPAGATION_PRIVATE' | 'PROPAGATION_HOST_TO_CONTAINER' | 'PROPAGATION_BIDIRECTIONAL';
  }[];
  /** Below the sandbox's logDirectory. */
  readonly logPath?: string;
  readonly linux?: {
    readonly securityContext?: {
      /** Without the prefix CAP_; `ALL` is understood. */
      readonly capabilities?: {
        readonly addCapabilities?: readonly string[];
        readonly dropCapabilities?: readonly string[];
      };
      readonly privileged?: boolean;
      readonly namespaceOptions?: NamespaceOptions;
      readonly readonlyRootfs?: boolean;
      readonly noNewPrivs?: boolean;
      readonly maskedPaths?: readonly string[];
      readonly readonlyPaths?: readonly string[];
      readonly seccomp?: SecurityProfile;
      readonly apparmor?: SecurityProfile;
    };
  };
}

export interface ContainerStatus {
  readonly state: 'CONTAINER_CREATED' | 'CONTAINER_RUNNING' | 'CONTAINER_EXITED' | 'CONTAINER_UNKNOWN';
  readonly exitCode: number;
  readonly reason: string;
  readonly message: string;
}

export interface ExecResult {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A call that the runtime refused or did not answer in time. */
export class CriError extends Error {
  override readonly name = 'CriError';
  readonly call: string;
  /** Name of the gRPC code: `UNKNOWN`, `NOT_FOUND`, `UNAVAILABLE` (nobody listens), `DEADLINE_EXCEEDED`. */
  readonly code: string;

  constructor(call: string, socketPath: string, cause: ServiceError) {
    const code = status[cause.code] ?? String(cause.code);
    super(`cannot call ${call} at ${socketPath}: expected OK, got ${code}: ${cause.details}`, { cause });
    this.call = call;
    this.code = code;
  }
}

const DEFINITIONS = loadSync(fileURLToPath(new URL('cri.proto', import.meta.url)), {
  enums: String,
  longs: Number,
  defaults: true,
});
const RUNTIME = DEFINITIONS['runtime.v1.RuntimeService'] as ServiceDefinition;
const IMAGES = DEFINITIONS['runtime.v1.ImageService'] as ServiceDefinition;

/** Longer than an ADD may take; kubelet allows two minutes. */
const CALL_DEADLINE_MS = 120_000;
/** After a restart of the runtime. */
const RECONNECT_MS = { 'grpc.initial_reconnect_backoff_ms': 20, 'grpc.max_reconnect_backoff_ms': 200 };

/**
 * A connection to one runtime. It connects when first used and again after a restart of the runtime; calls meanwhile fail
 * with UNAVAILABLE. Every call throws CriError, or the signal's reason when that is aborted.
 */
export class Cri implements Disposable {
  readonly #socketPath: string;
  readonly #client: Client;

  /** Opens nothing yet. */
  constructor(socketPath: string) {
    this.#socketPath = socketPath;
    this.#client = new Client(`unix://${socketPath}`, credentials.createInsecure(), RECONNECT_MS);
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }

  async conditions(signal?: AbortSignal): Promise<readonly RuntimeCondition[]> {
    const { status: answer } = await this.#call<{ status: { conditions: RuntimeCondition[] } }>('Status', {}, signal);
    return answer.conditions;
  }

  /** By the name that a sandbox or container asks for it with. */
  async hasImage(image: string, signal?: AbortSignal): Promise<boolean> {
    const request = { image: { image } };
    return (await this.#call<{ image: unknown }>('ImageStatus', request, signal, IMAGES)).image !== null;
  }

  /** The id: 64 hexadecimal digits, CNI_CONTAINERID. */
  async runPodSandbox(config: SandboxConfig, signal?: AbortSignal): Promise<string> {
    return (await this.#call<{ podSandboxId: string }>('RunPodSandbox', { config }, signal)).podSandboxId;
  }

  async podSandboxStatus(podSandboxId: string, signal?: AbortSignal): Promise<SandboxStatus> {
    return readSandboxStatus(await this.#call('PodSandboxStatus', { podSandboxId, verbose: true }, signal));
  }

  async listPodSandbox(signal?: AbortSignal): Promise<readonly SandboxItem[]> {
    return (await this.#call<{ items: SandboxItem[] }>('ListPodSandbox', {}, signal)).items;
  }

  /** Ends its processes and takes its network away. Idempotent. */
  async stopPodSandbox(podSandboxId: string, signal?: AbortSignal): Promise<void> {
    await this.#call('StopPodSandbox', { podSandboxId }, signal);
  }

  /** Stops it first. Idempotent. */
  async removePodSandbox(podSandboxId: string, signal?: AbortSignal): Promise<void> {
    await this.#call('RemovePodSandbox', { podSandboxId }, signal);
  }

  async createContainer(
    podSandboxId: string,
    config: ContainerConfig,
    sandboxConfig: SandboxConfig,
    signal?: AbortSignal,
  ): Promise<string> {
    const request = { podSandboxId, config, sandboxConfig };
    return (await this.#call<{ containerId: string }>('CreateContainer', request, signal)).containerId;
  }

  async startContainer(containerId: string, signal?: AbortSignal): Promise<void> {
    await this.#call('StartContainer', { containerId }, signal);
  }

  /** SIGTERM, and SIGKILL after so many seconds. Idempotent. */
  async stopContainer(containerId: string, graceSeconds: number, signal?: AbortSignal): Promise<void> {
    await this.#call('StopContainer', { containerId, timeout: graceSeconds }, signal);
  }

  async removeContainer(containerId: string, signal?: AbortSignal): Promise<void> {
    await this.#call('RemoveContainer', { containerId }, signal);
  }

  async containerStatus(containerId: string, signal?: AbortSignal): Promise<ContainerStatus> {
    return (await this.#call<{ status: ContainerStatus }>('ContainerStatus', { containerId }, signal)).status;
  }

  /** Runs a command in a running container to its end; a failure of the command is an answer. */
  async execSync(
    containerId: string,
    cmd: readonly string[],
    timeoutSeconds: number,
    signal?: AbortSignal,
  ): Promise<ExecResult> {
    const request = { containerId, cmd, timeout: timeoutSeconds };
    const { exitCode, stdout, stderr } = await this.#call<{ exitCode: number; stdout: Buffer; stderr: Buffer }>(
      'ExecSync',
      request,
      signal,
    );
    return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
  }

  #call<T>(name: string, request: object, signal?: AbortSignal, service = RUNTIME): Promise<T> {
    signal?.throwIfAborted();
    const method = service[name];
    if (!method) throw new TypeError(`cri.proto has no ${name}`);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const call = this.#client.makeUnaryRequest<object, T>(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      new Metadata(),
      { deadline: Date.now() + CALL_DEADLINE_MS },
      (error, answer) => {
        signal?.removeEventListener('abort', cancel);
        if (error) reject(signal?.aborted ? signal.reason : new CriError(name, this.#socketPath, error));
        else resolve(answer as T);
      },
    );
    const cancel = () => call.cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    return promise;
  }
}

interface RawSandboxStatus {
  readonly status: {
    readonly state: SandboxState;
    readonly metadata: Required<SandboxMetadata>;
    readonly network: { readonly ip: string; readonly additionalIps: readonly { readonly ip: string }[] } | null;
  };
  readonly info: Readonly<Record<string, string>>;
}

/** What containerd tells of itself in `info`, and nowhere else: the process, and the OCI runtime specification. */
interface SandboxInfo {
  readonly pid?: number;
  readonly runtimeSpec?: {
    readonly linux?: { readonly namespaces?: readonly { readonly type: string; readonly path?: string }[] };
  };
}

function readSandboxStatus({ status: { state, metadata, network }, info }: RawSandboxStatus): SandboxStatus {
  const { pid = 0, runtimeSpec } = JSON.parse(info['info'] ?? '{}') as SandboxInfo;
  const netns = runtimeSpec?.linux?.namespaces?.find(({ type }) => type === 'network')?.path ?? '';
  const ips = network?.ip ? [network.ip, ...network.additionalIps.map(({ ip }) => ip)] : [];
  return { state, metadata, ips, netns, pid };
}
