/** The pods of a lab: what kubelet does between the API server and the runtime. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Logger } from 'pino';
import type { IpAddress } from '../agent/model/ip.ts';
import type { PortMapping } from '../agent/model/port-mapping.ts';
import { type ApiWriter, apiPath } from './api-writer.ts';
import { LabError } from './lab-error.ts';
import { inPod, type NodeRef } from './node.ts';
import { checkPod, type PodRuntime, type Sandbox } from './runtime.ts';
import { until } from './until.ts';

/** A port on which a pod answers with its name; the name of a port is of its TCP side. */
export interface ServedPort {
  readonly name?: string;
  readonly port: number;
}

export interface LabPodRequest {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  /** What runs in the pod; without one the pod is a network and nothing else. */
  readonly command?: readonly string[] | undefined;
  /** Beside `app`, which is the pod's name unless given. */
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** In place of a command: the pod answers with its name on these ports, see pod-server.ts. It is ready when it does. */
  readonly serve?: readonly ServedPort[] | undefined;
  /** Ports of the node that lead to the pod. */
  readonly hostPorts?: readonly PortMapping[] | undefined;
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
  /** As the readiness probe of a kubelet would find it. */
  readonly ready: boolean;
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

const POD_SERVER = fileURLToPath(new URL('pod-server.ts', import.meta.url));
const SERVING_DEADLINE_MS = 30_000;

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
    const { namespace, name, hostPorts = [] } = request;
    const object = await this.#api.create(apiPath.pods(namespace), podObject(request), signal);
    try {
      const startMs = performance.now();
      const { uid } = object.metadata;
      const sandbox = await host.runtime.addPod(host, { namespace, name, uid, hostPorts }, signal);
      const status = { ...statusOf(host, sandbox, performance.now() - startMs), ready: !request.serve };
      const entry = { host, sandbox, status };
      this.#entries.set(keyOf(request), entry);
      await this.#report(entry, signal);
      if (request.serve) await this.#serve(entry, request.serve, signal);
      else if (request.command?.length) await this.#start(entry, request.command, signal);
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

  /** What a readiness probe would say from now on. Throws LabError. */
  async setReady(pod: PodKey, ready: boolean, signal: AbortSignal): Promise<void> {
    const entry = this.#entry(pod);
    entry.status = { ...entry.status, ready };
    await this.#report(entry, signal);
  }

  /** Marks the pod as about to go, as `kubectl delete` does; it runs on until it is removed. Throws LabError. */
  async terminate(pod: PodKey, graceSeconds: number, signal: AbortSignal): Promise<void> {
    const { namespace, name } = this.#entry(pod).status;
    const path = `${apiPath.pod(namespace, name)}?gracePeriodSeconds=${graceSeconds}`;
    await this.#api.send('DELETE', path, undefined, signal);
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

  async #serve(entry: Entry, ports: readonly ServedPort[], signal: AbortSignal): Promise<void> {
    const { name, logFile } = entry.status;
    await this.#start(entry, [process.execPath, POD_SERVER, name, ...ports.map(({ port }) => `${port}`)], signal);
    const describe = `pod ${keyOf(entry.status)} to serve (${logFile} tells why not)`;
    // A server that has ended will not serve.
    const isDecided = async () =>
      (await readFile(logFile, 'utf8')).startsWith('serving') || entry.status.phase !== 'Running';
    await until(isDecided, { describe, deadlineMs: SERVING_DEADLINE_MS, signal });
    if (entry.status.phase === 'Running') return this.setReady(entry.status, true, signal);
    throw new LabError({
      operation: `serve in pod ${keyOf(entry.status)}`,
      expected: `a server on ${ports.map(({ port }) => port).join(', ')}`,
      received: (await readFile(logFile, 'utf8')).trim().slice(-500) || 'its early end',
    });
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
    entry.status = { ...entry.status, phase: code === 0 ? 'Succeeded' : 'Failed', ready: false };
    if (this.#entries.get(keyOf(entry.status)) === entry) await this.#report(entry, signal);
  }

  async #report({ host, status }: Entry, signal: AbortSignal): Promise<void> {
    const { namespace, name, phase, ready, addresses } = status;
    const podIPs = addresses.map((ip) => ({ ip }));
    const conditions = [{ type: 'Ready', status: ready ? 'True' : 'False' }];
    const containerStatuses = [{ name: CONTAINER, ready }];
    const reported = { phase, hostIP: host.addresses[0], podIP: addresses[0], podIPs, conditions, containerStatuses };
    await this.#api.patch(`${apiPath.pod(namespace, name)}/status`, { status: reported }, signal);
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

const CONTAINER = 'main';

function statusOf(host: PodHost, sandbox: Sandbox, addMs: number): Omit<PodStatus, 'ready'> {
  const { namespace, name, containerId, netns, addresses } = sandbox;
  const logFile = join(host.podLogs, `${namespace}_${name}.log`);
  return { namespace, name, node: host.name, containerId, netns, addresses, phase: 'Running', logFile, addMs };
}

function podObject({ namespace, name, node, command, labels, serve = [], hostPorts = [] }: LabPodRequest): unknown {
  const served = serve.flatMap(({ port: containerPort, name: portName }) => [
    { containerPort, protocol: 'TCP', ...(portName && { name: portName }) },
    { containerPort, protocol: 'UDP' },
  ]);
  const ports = [
    ...served,
    ...hostPorts.map(({ hostIp, ...mapping }) => ({ ...mapping, ...(hostIp && { hostIP: hostIp }) })),
  ];
  const container = {
    name: CONTAINER,
    image: 'lab',
    ...(command?.length && { command }),
    ...(ports.length > 0 && { ports }),
  };
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { namespace, name, labels: { app: name, ...labels } },
    spec: { nodeName: node, containers: [container] },
  };
}
