/** An HTTPS server on the loopback whose answers a test writes by hand: for faults that no honest API server makes. */
import { once } from 'node:events';
import type { IncomingHttpHeaders, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import type { ExecutionContext } from 'ava';
import { ApiClient, type ApiClientLimits } from '../../agent/cluster/api-client.ts';
import { type Credentials, tlsSettings } from '../../agent/cluster/credentials.ts';
import { type Authority, createAuthority, type KeyPair } from './certificates.ts';

export interface ScriptedRequest {
  /** From 1 on, in the order of arrival. */
  readonly number: number;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingHttpHeaders;
  /** Count of the TCP connections before this request's own. */
  readonly connection: number;
}

export type Script = (request: ScriptedRequest, response: ServerResponse) => unknown;

export interface ScriptedApi {
  readonly url: string;
  readonly authority: Authority;
  readonly requests: readonly ScriptedRequest[];
  readonly credentials: Credentials;
  /** Cuts every connection without a word. */
  cut(): void;
  /** A client that is closed with the test. */
  client(options?: { credentials?: Partial<Credentials>; limits?: Partial<ApiClientLimits> }): ApiClient;
}

export interface ScriptedApiOptions {
  readonly authority?: Authority;
  /** Names in the server's certificate, as openssl writes them. */
  readonly names?: readonly string[];
  /** In place of a certificate with these names. */
  readonly serving?: KeyPair;
}

export async function startScriptedApi(
  t: ExecutionContext,
  script: Script,
  options: ScriptedApiOptions = {},
): Promise<ScriptedApi> {
  const authority = options.authority ?? (await createAuthority(t));
  const { certificate, key } =
    options.serving ?? (await authority.issue('server', { names: options.names ?? ['IP:127.0.0.1'] }));
  const requests: ScriptedRequest[] = [];
  const sockets: Socket[] = [];
  const server = createServer(
    { cert: certificate, key, ca: authority.certificate, requestCert: true, rejectUnauthorized: false },
    (request, response) => {
      const url = new URL(request.url ?? '/', 'https://server');
      const connection = sockets.indexOf(request.socket);
      requests.push({
        number: requests.length + 1,
        path: url.pathname,
        query: url.searchParams,
        headers: request.headers,
        connection,
      });
      script(requests.at(-1) as ScriptedRequest, response);
    },
  );
  server.on('secureConnection', (socket: Socket) => sockets.push(socket));
  server.on('tlsClientError', () => {});
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
    cut();
  });
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const credentials: Credentials = {
    server: url,
    tls: tlsSettings({ server: url, ca: authority.certificate }),
    token: 'secret',
    description: 'the token of the test',
  };
  const client: ScriptedApi['client'] = ({ credentials: other = {}, limits = {} } = {}) => {
    const used = { ...credentials, ...other };
    const made = new ApiClient({ credentials: { current: async () => used, expire: () => {} }, limits });
    t.teardown(() => made.close());
    return made;
  };
  return { url, authority, requests, credentials, cut, client };
}

/** A list as the API server writes it. */
export const listOf = (kind: string, items: readonly unknown[], resourceVersion: string, next?: string): object => ({
  apiVersion: 'v1',
  kind: `${kind}List`,
  metadata: { resourceVersion, ...(next !== undefined && { continue: next }) },
  items,
});

export const sendJson = (
  response: ServerResponse,
  body: unknown,
  status = 200,
  headers: Record<string, string> = {},
): void => {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify(body));
};

export const statusBody = (code: number, reason: string, message: string): object => ({
  kind: 'Status',
  apiVersion: 'v1',
  metadata: {},
  status: 'Failure',
  code,
  reason,
  message,
});

/** One line of a watch. */
export const eventLine = (type: string, object: unknown): string => `${JSON.stringify({ type, object })}\n`;

export const nodeObject = (name: string, resourceVersion: string, podCidr?: string): object => ({
  kind: 'Node',
  apiVersion: 'v1',
  metadata: { name, uid: `uid-${name}`, resourceVersion, creationTimestamp: '2026-01-02T03:04:05Z' },
  spec: podCidr === undefined ? {} : { podCIDR: podCidr, podCIDRs: [podCidr] },
  status: { addresses: [{ type: 'InternalIP', address: '192.0.2.1' }] },
});
