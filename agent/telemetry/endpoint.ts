/**
 * An HTTP endpoint for machines that look after this one: Prometheus, kubelet, load balancers. It answers whoever reaches
 * its address, so whoever that is may cost the agent little: few connections, the oldest of which goes when there are too many (one that says
 * nothing cannot keep a probe out), short deadlines, one request each, and no request has a body that is read.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { type IpPort, ipPortText } from '../model/ip-port.ts';
import { createServer } from './http.ts';

export interface Page {
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** By path: `/metrics`, for GET and HEAD. The page `*` is for whatever else is asked, by any method. */
export type Pages = Readonly<Record<string, () => Page | Promise<Page>>>;

export interface EndpointOptions {
  readonly address: IpPort;
  readonly pages: Pages;
  /** What is served, for people: `metrics and health`. */
  readonly purpose: string;
  /** What to do where that cannot be served there, in a clause: `set metrics.address to another one`. */
  readonly alternative: string;
  /** Who is connected, where several endpoints share one bound. */
  readonly visitors?: Visitors;
  readonly log: Logger;
}

const MAX_CONNECTIONS = 32;
const MAX_HEADER_BYTES = 8 * 1024;
/** For the whole request, from the first byte on. */
const REQUEST_MS = 5_000;
/** How often that is looked at. */
const CHECK_MS = 5_000;
/** Silence of a connection, before or during the answer. */
const SILENCE_MS = 10_000;

/** The open connections, in the order of their arrival; the oldest ends when there are too many. */
export class Visitors {
  readonly #max: number;
  readonly #connections = new Set<Socket>();

  constructor(max: number) {
    this.#max = max;
  }

  admit(socket: Socket): void {
    this.#connections.add(socket);
    socket.once('close', () => this.#connections.delete(socket));
    if (this.#connections.size <= this.#max) return;
    const [oldest] = this.#connections;
    if (!oldest) return;
    oldest.destroy();
    // Its end is told later only, and another one may arrive before that.
    this.#connections.delete(oldest);
  }
}

export class Endpoint {
  readonly #options: EndpointOptions;
  readonly #visitors: Visitors;
  #server: Server | undefined;
  #reason: string | undefined;
  #closed = false;

  constructor(options: EndpointOptions) {
    this.#options = options;
    this.#visitors = options.visitors ?? new Visitors(MAX_CONNECTIONS);
  }

  /** What keeps it from being served, with the remedy; undefined: nothing that is known. */
  get problem(): string | undefined {
    return this.#reason;
  }

  /** Listens unless it does already; says once in the log what keeps it from that. Never rejects: the agent goes on. */
  async listen(): Promise<void> {
    if (this.#server || this.#closed) return;
    const server = this.#createServer();
    this.#server = server;
    const { address, purpose, log } = this.#options;
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        // Closed before it listened: neither of the others comes.
        server.once('close', resolve);
        server.listen(address.port, address.ip, resolve);
      });
      this.#reason = undefined;
      if (this.#closed) return this.close();
      log.info({ address: ipPortText(address), purpose }, 'served over HTTP');
    } catch (cause) {
      this.#server = undefined;
      this.#report(cause as NodeJS.ErrnoException);
    }
  }

  close(): void {
    this.#closed = true;
    this.#server?.close();
    this.#server?.closeAllConnections();
  }

  #report(cause: NodeJS.ErrnoException): void {
    const { address, purpose, alternative, log } = this.#options;
    const remedy = remedyFor(cause.code, address, alternative);
    const reason = `cannot serve ${purpose} on ${ipPortText(address)}: expected to listen there, got ${cause.code}; ${remedy}`;
    if (reason !== this.#reason) log.error({ err: new Error(reason, { cause }) }, 'an endpoint is not served');
    this.#reason = reason;
  }

  #createServer(): Server {
    const server = createServer(
      {
        maxHeaderSize: MAX_HEADER_BYTES,
        headersTimeout: REQUEST_MS,
        requestTimeout: REQUEST_MS,
        connectionsCheckingInterval: CHECK_MS,
      },
      (request, response) => void this.#answer(request, response),
    );
    // A connection on which nobody speaks takes the place of one that asks.
    server.setTimeout(SILENCE_MS, (socket) => socket.destroy());
    server.on('connection', (socket) => this.#visitors.admit(socket));
    return server;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const page = await this.#page(request);
    if (response.destroyed) return;
    const { status, contentType, body, headers } = page;
    response.writeHead(status, {
      ...headers,
      'content-type': contentType,
      'content-length': Buffer.byteLength(body),
      connection: 'close',
      ...(status === 405 && { allow: 'GET, HEAD' }),
    });
    response.end(request.method === 'HEAD' ? undefined : body);
  }

  async #page({ method, url = '' }: IncomingMessage): Promise<Page> {
    const { pages, log } = this.#options;
    const path = url.split('?', 1)[0] as string;
    const named = Object.hasOwn(pages, path) ? pages[path] : undefined;
    const page = named ?? pages['*'];
    if (!page) return plainPage(404, [`expected one of ${Object.keys(pages).join(', ')}`]);
    if (named && method !== 'GET' && method !== 'HEAD') return plainPage(405, [`expected GET or HEAD, got ${method}`]);
    try {
      return await page();
    } catch (err) {
      log.error({ err, path }, 'a page cannot be made');
      return plainPage(500, [`cannot make ${path}: ${err instanceof Error ? err.message : String(err)}`]);
    }
  }
}

/** One line a sentence. */
export const plainPage = (status: number, lines: readonly string[]): Page => ({
  status,
  contentType: 'text/plain; charset=utf-8',
  body: `${lines.join('\n')}\n`,
});

function remedyFor(code: string | undefined, { ip, port }: IpPort, alternative: string): string {
  const end = `or ${alternative}; it is tried again from time to time`;
  if (code === 'EADDRINUSE') return `stop what has port ${port} (ss -ltnp sport = :${port}) ${end}`;
  if (code === 'EADDRNOTAVAIL') return `give this host the address ${ip} ${end}`;
  return `make that possible ${end}`;
}
