/** Writes to the lab's API server as kubelet, a user or a controller would: over its REST interface. */
import { Agent, request } from 'node:https';
import { json } from 'node:stream/consumers';
import { LabError } from './lab-error.ts';

export interface ApiAccess {
  /** `https://host:port`. */
  readonly url: string;
  /** PEM of the certificate authority. */
  readonly ca: string;
  readonly token: string;
}

export type ApiObject = Readonly<Record<string, unknown>> & {
  readonly metadata: Readonly<Record<string, unknown>> & { readonly name: string; readonly uid: string };
};

const TIMEOUT_MS = 10_000;

/** Paths of objects and of their collections. */
export const apiPath = {
  nodes: '/api/v1/nodes',
  node: (name: string) => `/api/v1/nodes/${encodeURIComponent(name)}`,
  pods: (namespace: string) => `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods`,
  pod: (namespace: string, name: string) => `${apiPath.pods(namespace)}/${encodeURIComponent(name)}`,
  allServices: '/api/v1/services',
  services: (namespace: string) => `/api/v1/namespaces/${encodeURIComponent(namespace)}/services`,
  service: (namespace: string, name: string) => `${apiPath.services(namespace)}/${encodeURIComponent(name)}`,
  allEndpointSlices: '/apis/discovery.k8s.io/v1/endpointslices',
  endpointSlice: (namespace: string, name: string) =>
    `/apis/discovery.k8s.io/v1/namespaces/${encodeURIComponent(namespace)}/endpointslices/${encodeURIComponent(name)}`,
} as const;

/** One kept-alive connection pool; end it with close(). */
export class ApiWriter {
  readonly #access: ApiAccess;
  readonly #agent: Agent;

  constructor(access: ApiAccess) {
    this.#access = access;
    this.#agent = new Agent({ keepAlive: true, ca: access.ca });
  }

  get(path: string, signal: AbortSignal): Promise<ApiObject> {
    return this.send('GET', path, undefined, signal);
  }

  create(path: string, object: unknown, signal: AbortSignal): Promise<ApiObject> {
    return this.send('POST', path, object, signal);
  }

  /** JSON merge patch (RFC 7396). */
  patch(path: string, patch: unknown, signal: AbortSignal): Promise<ApiObject> {
    return this.send('PATCH', path, patch, signal);
  }

  /** At once, without a grace period. */
  async remove(path: string, signal: AbortSignal): Promise<void> {
    await this.send('DELETE', `${path}?gracePeriodSeconds=0`, undefined, signal);
  }

  close(): void {
    this.#agent.destroy();
  }

  /** Any request: `object` is created by POST and merged by PATCH. */
  async send(method: string, path: string, body: unknown, signal: AbortSignal): Promise<ApiObject> {
    const { url, token } = this.#access;
    const contentType = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json';
    const { status, answer } = await new Promise<{ status: number; answer: unknown }>((resolve, reject) => {
      const sent = request(new URL(path, url), {
        method,
        agent: this.#agent,
        signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]),
        headers: { authorization: `Bearer ${token}`, accept: 'application/json', 'content-type': contentType },
      });
      sent.on('error', reject);
      sent.on('response', (response) => {
        json(response).then((answer) => resolve({ status: response.statusCode ?? 0, answer }), reject);
      });
      sent.end(body === undefined ? undefined : JSON.stringify(body));
    });
    if (status >= 200 && status < 300) return answer as ApiObject;
    throw refused(method, path, status, answer);
  }
}

function refused(method: string, path: string, status: number, answer: unknown): LabError {
  const { message } = (answer ?? {}) as { message?: unknown };
  return new LabError({
    operation: `${method} ${path}`,
    expected: 'the API server to accept it',
    received: `${status} ${typeof message === 'string' ? message : 'without a message'}`,
  });
}
