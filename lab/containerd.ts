/**
 * containerd in a node of the lab, and the pods that it runs there: started, asked and told over CRI as kubelet would.
 * Everything that it has lies in the node's own /run, and ends with the node.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import type { Logger } from 'pino';
import { createCgroup, removeCgroup } from './cgroup.ts';
import { BIN_DIR, CONF_DIR, cachedResult } from './cni-client.ts';
import type { ContainerdStatus } from './control.ts';
import { Cri, type SandboxConfig } from './cri.ts';
import { DIR_IN_NODE, type NodeLayout } from './layout.ts';
import { inNode, type NodeRef, pathOnHost, podCgroup } from './node.ts';
import { NodeProcess } from './node-process.ts';
import { PAUSE_IMAGE } from './pause-image.ts';
import { attachmentOf, networkFor, type PodRequest, type PodRuntime, type Sandbox, sandboxOf } from './runtime.ts';
import { until } from './until.ts';

/** In the node, where containerd's own tools look for it. */
export const CONTAINERD_SOCKET = '/run/containerd/containerd.sock';
const CONFIG_FILE = 'containerd.toml';
const ROOT = '/run/containerd-root';
/** containerd's namespace of what CRI made. */
const CRI_NAMESPACE = 'k8s.io';
const IMPORT_TIMEOUT_MS = 60_000;
const READY_DEADLINE_MS = 30_000;
/** HOST_NAME_MAX less one, as kubelet cuts names. */
const HOSTNAME_CHARACTERS = 63;

/** Why each line that is not a path is there stands beside it. */
const CONFIG = `version = 2
root = "${ROOT}"
state = "/run/containerd"
[grpc]
  address = "${CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "${ROOT}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE_IMAGE}"
  # The node has a cgroup tree of version 2 without the controllers that runc asks for.
  disable_cgroup = true
  # Lowering it takes CAP_SYS_RESOURCE, which root in a container often lacks.
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "${BIN_DIR}"
  conf_dir = "${CONF_DIR}"
`;

export interface ContainerdOptions {
  readonly node: NodeRef;
  readonly layout: NodeLayout;
  /** It runs until this is aborted. */
  readonly life: AbortSignal;
  /** See buildPauseImage. */
  readonly pauseImage: Buffer;
  readonly log: Logger;
}

/** Resolves when it can run pods, but for the network. Throws LabError. */
export async function startContainerd(options: ContainerdOptions): Promise<Containerd> {
  const { node, layout, life, pauseImage, log } = options;
  await writeFile(join(layout.dir, CONFIG_FILE), CONFIG);
  const process = new NodeProcess({
    name: 'containerd',
    node,
    argv: ['containerd', '--config', `${DIR_IN_NODE}/${CONFIG_FILE}`],
    logFile: layout.containerdLog,
    log,
  });
  void process.run(life);
  const containerd = new Containerd(node, process, layout.containerdLog);
  await process.ready('the condition RuntimeReady', () => containerd.is('RuntimeReady', life), life);
  await importImage(node, pauseImage, life);
  await containerd.hasPauseImage(life);
  return containerd;
}

/** One node's containerd. */
export class Containerd implements PodRuntime {
  readonly #node: NodeRef;
  readonly #process: NodeProcess;
  readonly #logFile: string;
  readonly #cri: Cri;

  constructor(node: NodeRef, process: NodeProcess, logFile: string) {
    this.#node = node;
    this.#process = process;
    this.#logFile = logFile;
    this.#cri = new Cri(this.#socket);
  }

  async status(): Promise<ContainerdStatus> {
    return { ...(await this.#process.status()), socket: this.#socket, log: this.#logFile };
  }

  /** A condition of the runtime; false when nobody answers, too. */
  async is(condition: 'RuntimeReady' | 'NetworkReady', signal: AbortSignal): Promise<boolean> {
    const conditions = await this.#cri.conditions(signal).catch(() => []);
    return conditions.some(({ type, status }) => type === condition && status);
  }

  /** Resolves when it has read the network configuration of the node. Throws LabError. */
  async networkReady(signal: AbortSignal): Promise<void> {
    await this.#process.ready('the condition NetworkReady', () => this.is('NetworkReady', signal), signal);
  }

  /** CRI learns of an imported image by an event; before that it would ask a registry for it. Throws LabError. */
  async hasPauseImage(signal: AbortSignal): Promise<void> {
    const wait = { describe: `containerd of ${this.#node.name} to have its image`, deadlineMs: READY_DEADLINE_MS };
    await until(() => this.#cri.hasImage(PAUSE_IMAGE, signal), { ...wait, signal });
  }

  async addPod(node: NodeRef, pod: PodRequest, signal: AbortSignal): Promise<Sandbox> {
    const id = await this.#cri.runPodSandbox(sandboxConfigOf(pod), signal);
    try {
      return await this.#readSandbox(node, pod, id, signal);
    } catch (error) {
      // The caller is about to learn why; that the undoing fails as well would only hide it.
      await this.#cri.removePodSandbox(id, signal).catch(() => undefined);
      throw error;
    }
  }

  async removePod(node: NodeRef, { containerId, netns }: Sandbox, signal: AbortSignal): Promise<void> {
    await removeCgroup(podCgroup(node, netns), signal);
    await this.#cri.stopPodSandbox(containerId, signal);
    await this.#cri.removePodSandbox(containerId, signal);
  }

  async #readSandbox(node: NodeRef, pod: PodRequest, id: string, signal: AbortSignal): Promise<Sandbox> {
    const { netns } = await this.#cri.podSandboxStatus(id, signal);
    const network = await networkFor(node);
    const attachment = attachmentOf(pod, id, netns);
    const sandbox = sandboxOf(pod, attachment, network, (await cachedResult(node, network, attachment)) ?? {});
    await createCgroup(podCgroup(node, sandbox.netns));
    return sandbox;
  }

  get #socket(): string {
    return pathOnHost(this.#node, CONTAINERD_SOCKET);
  }
}

/** As kubelet fills it in for a pod. */
export function sandboxConfigOf({ namespace, name, uid, annotations = {}, hostPorts = [] }: PodRequest): SandboxConfig {
  return {
    metadata: { namespace, name, uid },
    hostname: name.slice(0, HOSTNAME_CHARACTERS),
    labels: {
      'io.kubernetes.pod.namespace': namespace,
      'io.kubernetes.pod.name': name,
      'io.kubernetes.pod.uid': uid,
    },
    annotations,
    portMappings: hostPorts,
  };
}

async function importImage(node: NodeRef, image: Buffer, signal: AbortSignal): Promise<void> {
  const [file, ...args] = inNode(node, ['ctr', '--namespace', CRI_NAMESPACE, 'images', 'import', '-']);
  await execa(file, args, { input: image, timeout: IMPORT_TIMEOUT_MS, cancelSignal: signal });
}
