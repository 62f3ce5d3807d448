/**
 * A Kubernetes API server in one process and in memory, for the lab and for tests: the real REST protocol over TLS for
 * the kinds of kinds.ts, with switches for the faults that clients must live through.
 */

import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import type { Logger } from 'pino';
import type { Cidr } from '../../agent/model/ip.ts';
import { Access } from './auth.ts';
import { type ControllerOptions, startControllers } from './controllers.ts';
import { discover, PUBLIC_PATHS } from './discovery.ts';
import { type Encoding, jsonEncoding, negotiate } from './encoding.ts';
import { handlers } from './handlers.ts';
import { KINDS, type KindRow, kinds } from './kinds.ts';
import { parseRoute, type ResourceRequest, resourceOf } from './routes.ts';
import { ServiceAllocator } from './service-allocator.ts';
import { badRequest, internalError, methodNotAllowed, pathNotFound, StatusError, statusBody } from './status.ts';
import { Store, type StoreOptions } from './store.ts';
import { parseWatch, Watch } from './watch.ts';

export interface ApiServerOptions
  extends Omit<StoreOptions, 'allocators'>,
    Omit<ControllerOptions, 'clusterCidrs' | 'serviceCidrs'> {
  /** Address to listen on. */
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** PEM texts: the serving certificate, its key, and the authority that signs client certificates. */
  readonly tls: { readonly cert: string; readonly key: string; readonly clientCa: string };
  /** Bearer token to user. */
  readonly tokens?: ReadonlyMap<string, string>;
  /** What Nodes get their pod CIDRs from, at most one a family; none: Nodes keep what they bring. */
  readonly clusterCidrs?: readonly Cidr[];
  /**
   * What Services get their cluster IPs from, at most one a family, that of the default family first; none: they keep what
   * they bring, node ports included.
   */
  readonly serviceCidrs?: readonly Cidr[];
  readonly bookmarkIntervalMs?: number;
  readonly log?: Logger;
}

/** A body larger than this is refused with 413, as by a real server (bytes). */
const BODY_LIMIT = 3 * 1024 * 1024;

/** Listens when it resolves; ends with the signal or with close(). Rejects when the address cannot be used. */
export async function startApiServer(options: ApiServerOptions, signal: AbortSignal): Promise<ApiServer> {
  signal.throwIfAborted();
  const server = new ApiServer(options);
  await server.listen(options.host, options.port);
  signal.addEventListener('abort', () => void server.close(), { once: true });
  return server;
}

export class ApiServer {
  readonly store: Store;
  readonly access: Access;
  readonly #server: Server;
  readonly #encodings: ReadonlyMap<KindRow, Encoding> = new Map(kinds.map((row) => [row, jsonEncoding(row)]));
  readonly #bookmarkIntervalMs: number;
  readonly #log: Logger | undefined;
  readonly #stopped = new AbortController();
  readonly #sockets = new Set<Socket>();
  readonly #watches = new Set<Watch>();
  readonly #requests = new Map<string, number>();
  #unavailable = false;
  /** Pending while the server is stalled. */
  #stalled: PromiseWithResolvers<void> | undefined;

  constructor({
    tls,
    tokens = new Map(),
    bookmarkIntervalMs = 60_000,
    log,
    clusterCidrs = [],
    serviceCidrs = [],
    ...rest
  }: ApiServerOptions) {
    const allocators = new Map(serviceCidrs.length > 0 ? [[KINDS.service, new ServiceAllocator(serviceCidrs)]] : []);
    this.store = new Store({ ...rest, allocators });
    this.access = new Access(tokens);
    this.#bookmarkIntervalMs = bookmarkIntervalMs;
    this.#log = log;
    const { cert, key, clientCa } = tls;
    // A client without a certificate, or with one of another authority, may still present a token.
    this.#server = createServer({ cert, key, ca: clientCa, requestCert: true, rejectUnauthorized: false });
    this.#server.keepAliveTimeout = 120_000;
    this.#server.on('connection', (socket: Socket) => this.#accept(socket));
    this.#server.on('request', (request, response) => void this.#serve(request, response));
    startControllers(this.store, { ...rest, clusterCidrs, serviceCidrs }, log, this.#stopped.signal);
  }

  async listen(host: string, port: number): Promise<void> {
    this.#server.listen({ host, port });
    await once(this.#server, 'listening');
  }

  /** `https://HOST:PORT`, with the port that was taken. */
  get url(): string {
    return `https://${this.#address}`;
  }

  get watchCount(): number {
    return this.#watches.size;
  }

  get connectionCount(): number {
    return this.#sockets.size;
  }

  /** Requests that arrived so far, refused ones included, by `<verb> <resource>`: `list nodes`. */
  get requests(): ReadonlyMap<string, number> {
    return this.#requests;
  }

  /** While unavailable every connection is reset, present ones at once and new ones on arrival. */
  setUnavailable(unavailable: boolean): void {
    this.#unavailable = unavailable;
    if (unavailable) this.#resetConnections();
  }

  /** While stalled, connections and requests are accepted and nothing at all is sent. */
  stall(stalled = true): void {
    if (stalled) this.#stalled ??= Promise.withResolvers();
    for (const watch of this.#watches) watch.pause(stalled);
    if (stalled) return;
    this.#stalled?.resolve();
    this.#stalled = undefined;
  }

  /** Ends every watch in good order: after what has happened so far, but without a bookmark. */
  closeWatches(): void {
    for (const watch of this.#watches) watch.close();
  }

  /** Forgets all history, so that older resourceVersions and continue tokens are answered with 410. */
  compact(): void {
    this.store.compact();
  }

  /** Resets every connection and stops listening. Can be called twice. */
  async close(): Promise<void> {
    this.#stopped.abort();
    if (!this.#server.listening) return;
    const closed = once(this.#server, 'close');
    this.#server.close();
    this.#resetConnections();
    await closed;
  }

  get #address(): string {
    const { address, port, family } = this.#server.address() as AddressInfo;
    return family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`;
  }

  #accept(socket: Socket): void {
    if (this.#unavailable) {
      socket.resetAndDestroy();
      return;
    }
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
  }

  #resetConnections(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const { path, query } = parseUrl(request.url ?? '/');
      const resource = parseRoute(request.method ?? 'GET', path, query);
      if (resource) this.#count(resource);
      await this.#stalled?.promise;
      if (!request.socket.destroyed) await this.#answer({ path, query, resource }, request, response);
    } catch (error) {
      // A client that went away while it was sending is nobody's failure.
      if (request.socket.destroyed) return;
      const failure = error instanceof StatusError ? error : this.#internal(error);
      send(response, failure.code, JSON.stringify(statusBody(failure)));
    }
  }

  async #answer({ path, query, resource }: Asked, request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (PUBLIC_PATHS.includes(path)) return this.#discover(path, response);
    const user = this.access.authenticate(request);
    if (!resource) return this.#discover(path, response);
    this.access.authorize(user, resource);
    await this.#answerResource(resource, query, request, response);
  }

  async #answerResource(
    resource: ResourceRequest,
    query: URLSearchParams,
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<void> {
    const { row, verb } = resource;
    const encoding = negotiate(request.headers.accept ?? '', row, query, this.#encodings.get(row) as Encoding);
    if (verb === undefined) throw methodNotAllowed();
    if (verb === 'watch') return this.#watch(resource, query, encoding, response);
    const [contentType = ''] = (request.headers['content-type'] ?? '').split(';');
    const body = await readBody(request);
    const readJson = () => parseJson(body);
    const call = { store: this.store, request: resource, query, encoding, contentType: contentType.trim(), readJson };
    const reply = handlers[verb](call);
    send(response, reply.code, reply.body);
  }

  #watch({ row, ref }: ResourceRequest, query: URLSearchParams, encoding: Encoding, response: ServerResponse): void {
    const request = parseWatch(row, ref, query);
    const watch = new Watch(this.store, request, encoding, response, this.#bookmarkIntervalMs);
    this.#watches.add(watch);
    response.once('close', () => this.#watches.delete(watch));
  }

  #discover(path: string, response: ServerResponse): void {
    const found = discover(path, this.#address);
    if (found === undefined) throw pathNotFound();
    if (typeof found === 'string') send(response, 200, found, 'text/plain; charset=utf-8');
    else send(response, 200, JSON.stringify(found));
  }

  #count(request: ResourceRequest): void {
    const name = `${request.verb ?? 'unknown'} ${resourceOf(request)}`;
    this.#requests.set(name, (this.#requests.get(name) ?? 0) + 1);
  }

  #internal(error: unknown): StatusError {
    this.#log?.error({ err: error }, 'cannot answer a request');
    return internalError(String(error), error);
  }
}

interface Asked {
  readonly path: string;
  readonly query: URLSearchParams;
  /** Undefined for a path that is no resource. */
  readonly resource: ResourceRequest | undefined;
}

function parseUrl(url: string): Omit<Asked, 'resource'> {
  const [path = '/', ...query] = url.split('?');
  return { path, query: new URLSearchParams(query.join('?')) };
}

/** Throws StatusError 413. */
async function readBody(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  // Leaving the loop early must not destroy the connection that the refusal is sent over.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > BODY_LIMIT) {
      throw new StatusError(413, 'RequestEntityTooLarge', `Request entity too large: limit is ${BODY_LIMIT}`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function parseJson(body: Buffer): unknown {
  if (body.length === 0) return undefined;
  try {
    return JSON.parse(body.toString());
  } catch (cause) {
    throw badRequest(`the body is not JSON: ${String(cause)}`, cause);
  }
}

function send(response: ServerResponse, code: number, body: Buffer | string, contentType = 'application/json'): void {
  response.writeHead(code, { 'content-type': contentType, 'content-length': Buffer.byteLength(body) });
  response.end(body);
}
