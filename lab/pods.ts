/** The pods of a lab: what kubelet does between the API server and the runtime. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { IpAddress } from '../agent/model/ip.ts';
import { type ApiWriter, apiPath } from './api-writer.ts';
import { LabError } from './lab-error.ts';
import { inPod, type NodeRef } from './node.ts';
import { checkPod, type PodRuntime, type Sandbox } from './runtime.ts';

export interface LabPodRequest {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  /** What runs in the pod; without one the pod is a network and nothing else. */
  readonly command?: readonly string[] | undefined;
}

export interface PodStatus {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  readonly containerId: string;
  /** Name below /run/netns of the node. */
  readonly netns: string;
  readonly addresses: readonly IpAddress[];
  readonly phase: 'Running' | 'Succeeded' | 'Failed';
  /** Output of the pod's command. */
  readonly logFile: string;
  /** How long the runtime took for namespace, loopback and ADD. */
  readonly addMs: number;
}

/** What the pods need to know of a node. */
export interface PodHost extends NodeRef {
  readonly podLogs: string;
  readonly addresses: readonly IpAddress[];
  readonly runtime: PodRuntime;
}

interface Entry {
  readonly host: PodHost;
  readonly sandbox: Sandbox;
  status: PodStatus;
}

export class Pods {
  readonly #hosts: ReadonlyMap<string, PodHost>;
  readonly #api: ApiWriter;
  readonly #log: Logger;
  /** By `<namespace>/<name>`. */
  readonly #entries = new Map<string, Entry>();

  constructor(options: { hosts: ReadonlyMap<string, PodHost>; api: ApiWriter; log: Logger }) {
    this.#hosts = options.hosts;
    this.#api = options.api;
    this.#log = options.log;
  }

  list(): readonly PodStatus[] {
    return [...this.#entries.values()].map(({ status }) => status);
  }

  /** Creates the object, attaches the pod, starts its command. Throws PluginError, CriError, LabError; nothing is left then. */
  async run(request: LabPodRequest, signal: AbortSignal): Promise<PodStatus> {
    const host = this.#host(request.node);
    const { namespace, name } = request;
    const object = await this.#api.create(apiPath.pods(namespace), podObject(request), signal);
    try {
      const startMs = performance.now();
      const sandbox = await host.runtime.addPod(host, { namespace, name, uid: object.metadata.uid }, signal);
      const entry = { host, sandbox, status: statusOf(host, sandbox, performance.now() - startMs) };
      this.#entries.set(keyOf(request), entry);
      await this.#report(entry, signal);
      if (request.command?.length) await this.#start(entry, request.command, signal);
      return entry.status;
    } catch (error) {
      await this.#forget(request, signal);
      throw error;
    }
  }

  /** CHECK. Throws PluginError. */
  async check(pod: PodKey, signal: AbortSignal): Promise<void> {
    const { host, sandbox } = this.#entry(pod);
    await checkPod(host, sandbox, signal);
  }

  /** Ends the command, detaches the pod, removes the object. Throws PluginError, CriError; the pod is still listed then. */
  async remove(pod: PodKey, signal: AbortSignal): Promise<void> {
    const entry = this.#entry(pod);
    // A second removal finds nothing, unless this one fails.
    this.#entries.delete(keyOf(pod));
    try {
      await entry.host.runtime.removePod(entry.host, entry.sandbox, signal);
      await this.#api.remove(apiPath.pod(pod.namespace, pod.name), signal);
    } catch (error) {
      this.#entries.set(keyOf(pod), entry);
      throw error;
    }
  }

  async #start(entry: Entry, command: readonly string[], signal: AbortSignal): Promise<void> {
    const [file, ...args] = inPod(entry.host, entry.sandbox.netns, command);
    const log = await open(entry.status.logFile, 'w');
    const child = spawn(file, args, { stdio: ['ignore', log.fd, log.fd] });
    const end = this.#ended(child, entry, signal);
    await log.close();
    end.catch((err: unknown) => this.#log.warn({ pod: keyOf(entry.status), err }, 'cannot report the end of a pod'));
  }

  async #ended(child: ChildProcess, entry: Entry, signal: AbortSignal): Promise<void> {
    const [code] = (await once(child, 'exit')) as [number | null];
    entry.status = { ...entry.status, phase: code === 0 ? 'Succeeded' : 'Failed' };
    if (this.#entries.get(keyOf(entry.status)) === entry) await this.#report(entry, signal);
  }

  async #report({ host, status }: Entry, signal: AbortSignal): Promise<void> {
    const ips = status.addresses.map((ip) => ({ ip }));
    await this.#api.patch(
      `${apiPath.pod(status.namespace, status.name)}/status`,
      { status: { phase: status.phase, hostIP: host.addresses[0], podIP: status.addresses[0], podIPs: ips } },
      signal,
    );
  }

  /** After a failed start: whatever of the pod is there goes away. */
  async #forget(pod: PodKey, signal: AbortSignal): Promise<void> {
    const entry = this.#entries.get(keyOf(pod));
    this.#entries.delete(keyOf(pod));
    if (entry) await entry.host.runtime.removePod(entry.host, entry.sandbox, signal);
    await this.#api.remove(apiPath.pod(pod.namespace, pod.name), signal);
  }

  #host(node: string): PodHost {
    const host = this.#hosts.get(node);
    if (host) return host;
    const names = [...this.#hosts.keys()].join(', ');
    throw new LabError({
      operation: `use node ${JSON.stringify(node)}`,
      expected: `one of ${names}`,
      received: 'no such node',
    });
  }

  #entry(pod: PodKey): Entry {
    const entry = this.#entries.get(keyOf(pod));
    if (entry) return entry;
    throw new LabError({
      operation: `find pod ${keyOf(pod)}`,
      expected: 'a pod of this lab',
      received: 'none of that name',
      remedy: 'see `tulle lab pod ls`',
    });
  }
}

interface PodKey {
  readonly namespace: string;
  readonly name: string;
}

const keyOf = ({ namespace, name }: PodKey): string => `${namespace}/${name}`;

function statusOf(host: PodHost, sandbox: Sandbox, addMs: number): PodStatus {
  const { namespace, name, containerId, netns, addresses } = sandbox;
  const logFile = join(host.podLogs, `${namespace}_${name}.log`);
  return { namespace, name, node: host.name, containerId, netns, addresses, phase: 'Running', logFile, addMs };
}

const podObject = ({ namespace, name, node, command }: LabPodRequest): unknown => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { namespace, name, labels: { app: name } },
  spec: { nodeName: node, containers: [{ name: 'main', image: 'lab', ...(command?.length && { command }) }] },
});
