/** What the command line and the supervisor say to each other: HTTP with JSON over a Unix socket. This is the asking side. */
import { json } from 'node:stream/consumers';
import type { Family, IpAddress } from '../agent/model/ip.ts';
import { request } from '../agent/telemetry/http.ts';
import type { ApiObject } from './api-writer.ts';
import { LabError } from './lab-error.ts';
import type { LabLayout } from './layout.ts';
import type { NodeRef } from './node.ts';
import type { ProcessStatus } from './node-process.ts';
import type { PhantomServices } from './phantom-services.ts';
import type { LabPodRequest, PodStatus } from './pods.ts';

/** What attaches pods: the lab itself, as containerd would, or containerd. */
export type RuntimeName = (typeof RUNTIMES)[number];
export const RUNTIMES = ['lab', 'containerd'] as const;

/** How a lab is made. Plain data. */
export interface LabOptions {
  readonly nodes: number;
  readonly families: readonly Family[];
  readonly segments: number;
  /** Zones that the nodes are spread over, round robin; 0: Nodes without a zone. */
  readonly zones: number;
  readonly runtime: RuntimeName;
  /** The agent's command without the arguments that the lab adds: `tulle agent`. */
  readonly agentCommand: readonly string[];
  /** Further arguments of every agent. */
  readonly agentArgs: readonly string[];
}

export interface AgentStatus extends ProcessStatus {
  /** A conflist is there: the runtime may attach pods. */
  readonly ready: boolean;
}

export interface ContainerdStatus extends ProcessStatus {
  /** Of its CRI and its own services, as the host sees it. */
  readonly socket: string;
  readonly log: string;
}

export interface LabNodeStatus extends NodeRef {
  readonly state: 'up' | 'ended';
  readonly segment: number;
  readonly zone?: string;
  readonly addresses: readonly IpAddress[];
  readonly podCidrs: readonly string[];
  readonly agent: AgentStatus;
  readonly agentLog: string;
  /** In a lab whose pods it runs. */
  readonly containerd?: ContainerdStatus;
}

export interface LabStatus {
  readonly dir: string;
  /** The fabric's network namespace is this process's. */
  readonly supervisorPid: number;
  readonly families: readonly Family[];
  readonly segments: number;
  readonly apiServer: { readonly url: string; readonly kubeconfig: string };
  readonly nodes: readonly LabNodeStatus[];
  readonly pods: readonly PodStatus[];
}

/** What the supervisor writes on its progress pipe while it boots: JSON, one a line. */
export type Progress =
  | { readonly step: string; readonly durationMs: number }
  | { readonly ready: true }
  | { readonly failed: string };

/** Longer than an ADD may take. */
const TIMEOUT_MS = 100_000;

/** What the API server does to everybody: reset every connection, accept and say nothing, or work. */
export type ApiFault = 'unavailable' | 'stalled' | 'none';

/** What a user or a controller does with kubectl: create (POST), JSON merge patch (PATCH), get, delete. */
export interface ApiRequest {
  readonly method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  /** `/api/v1/nodes/node-1`, see apiPath. */
  readonly path: string;
  readonly object?: unknown;
}

export type UncheckedKind = 'service' | 'endpointSlice';

/** As far as it takes to find its place; the rest is as it comes. */
export interface NamespacedObject {
  readonly metadata: { readonly namespace: string; readonly name: string };
}

export interface LabControl {
  status(): Promise<LabStatus>;
  runPod(pod: LabPodRequest): Promise<PodStatus>;
  checkPod(namespace: string, name: string): Promise<void>;
  removePod(namespace: string, name: string): Promise<void>;
  setPodReady(namespace: string, name: string, ready: boolean): Promise<void>;
  /** Marks it as about to go: its endpoints are terminating until it is removed. */
  terminatePod(namespace: string, name: string, graceSeconds: number): Promise<void>;
  /** The process that was killed. */
  killAgent(node: string): Promise<{ readonly pid: number }>;
  /** Ends the agent and keeps it away until startAgent. */
  stopAgent(node: string): Promise<void>;
  startAgent(node: string): Promise<void>;
  setApiFault(fault: ApiFault): Promise<void>;
  /** Answers with the object as it is then. */
  callApi(request: ApiRequest): Promise<ApiObject>;
  /**
   * What a faulty API server would serve: an object of this kind as it is, new or in the place of the one of that name,
   * past all checks. Its spec has the right types.
   */
  putUnchecked(kind: UncheckedKind, object: NamespacedObject): Promise<void>;
  /** Creates them past the REST interface, which would take minutes. */
  loadPhantomServices(request: PhantomServices): Promise<void>;
}

/** Each call throws LabError: with what the supervisor objects to, or when no lab is up. */
export function labControl({ controlSocket }: Pick<LabLayout, 'controlSocket'>, signal?: AbortSignal): LabControl {
  const ask = (method: string, path: string, body?: unknown) => call({ controlSocket, method, path, body, signal });
  const nodePath = (node: string, call: string) => `/nodes/${encodeURIComponent(node)}/${call}`;
  const podPath = (namespace: string, name: string) =>
    `/pods/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;
  return {
    status: async () => (await ask('GET', '/status')) as LabStatus,
    runPod: async (pod) => (await ask('POST', '/pods', pod)) as PodStatus,
    checkPod: async (namespace, name) => void (await ask('POST', `${podPath(namespace, name)}/check`)),
    removePod: async (namespace, name) => void (await ask('DELETE', podPath(namespace, name))),
    setPodReady: async (namespace, name, ready) =>
      void (await ask('POST', `${podPath(namespace, name)}/ready`, { ready })),
    terminatePod: async (namespace, name, graceSeconds) =>
      void (await ask('POST', `${podPath(namespace, name)}/terminate`, { graceSeconds })),
    killAgent: async (node) => (await ask('POST', nodePath(node, 'kill-agent'))) as { pid: number },
    stopAgent: async (node) => void (await ask('POST', nodePath(node, 'stop-agent'))),
    startAgent: async (node) => void (await ask('POST', nodePath(node, 'start-agent'))),
    setApiFault: async (fault) => void (await ask('POST', '/api-fault', { fault })),
    callApi: async (request) => (await ask('POST', '/api', request)) as ApiObject,
    putUnchecked: async (kind, object) => void (await ask('POST', `/unchecked/${kind}`, object)),
    loadPhantomServices: async (request) => void (await ask('POST', '/phantom-services', request)),
  };
}

interface Call {
  readonly controlSocket: string;
  readonly method: string;
  readonly path: string;
  readonly body: unknown;
  readonly signal: AbortSignal | undefined;
}

async function call({ controlSocket, method, path, body, signal }: Call): Promise<unknown> {
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  const { status, answer } = await new Promise<{ status: number; answer: unknown }>((resolve, reject) => {
    const sent = request({
      socketPath: controlSocket,
      method,
      path,
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    sent.on('error', (error) => reject(unreachable(controlSocket, error)));
    sent.on('response', (response) => {
      json(response).then((value) => resolve({ status: response.statusCode ?? 0, answer: value }), reject);
    });
    sent.end(body === undefined ? undefined : JSON.stringify(body));
  });
  if (status === 200) return answer;
  throw new SupervisorError((answer as { error: string }).error);
}

/** The supervisor's own words about a call that it could not answer. */
export class SupervisorError extends Error {
  override readonly name = 'SupervisorError';
}

function unreachable(controlSocket: string, cause: NodeJS.ErrnoException): Error {
  if (cause.code !== 'ENOENT' && cause.code !== 'ECONNREFUSED') return cause;
  return new LabError({
    operation: 'ask the lab',
    expected: `a supervisor that listens on ${controlSocket}`,
    received: cause.code,
    remedy: 'no lab is up (start one with `tulle lab up`), or it crashed (`tulle lab down` removes what is left)',
    cause,
  });
}
