/**
 * The HTTP endpoint of metrics and health, for Prometheus and kubelet. It answers whoever reaches its address, so whoever
 * that is may cost the agent little: few connections, the oldest of which goes when there are too many (one that says
 * nothing cannot keep a probe out), short deadlines, one request each, and no request has a body that is read.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { type IpPort, ipPortText } from '../model/ip-port.ts';

export interface Page {
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
}

/** By path: `/metrics`. */
export type Pages = Readonly<Record<string, () => Page | Promise<Page>>>;

export interface EndpointOptions {
  readonly address: IpPort;
  readonly pages: Pages;
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

export class Endpoint {
  readonly #options: EndpointOptions;
  /** In the order of their arrival. */
  readonly #connections = new Set<Socket>();
  #server: Server | undefined;
  #reason: string | undefined;
  #closed = false;

  constructor(options: EndpointOptions) {
    this.#options = options;
  }

  /** Listens unless it does already; says once in the log what keeps it from that. Never rejects: the agent goes on. */
  async listen(): Promise<void> {
    if (this.#server || this.#closed) return;
    const server = this.#createServer();
    this.#server = server;
    const { address, log } = this.#options;
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(address.port, address.ip, resolve);
      });
      this.#reason = undefined;
      log.info({ address: ipPortText(address) }, 'metrics and health are served');
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
    const address = ipPortText(this.#options.address);
    const reason = `cannot serve metrics and health on ${address}: expected to listen there, got ${cause.code}; ${remedyFor(cause.code, this.#options.address)}`;
    if (reason !== this.#reason)
      this.#options.log.error({ err: new Error(reason, { cause }) }, 'no metrics and health');
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
    server.on('connection', (socket) => this.#admit(socket));
    return server;
  }

  #admit(socket: Socket): void {
    this.#connections.add(socket);
    socket.once('close', () => this.#connections.delete(socket));
    if (this.#connections.size <= MAX_CONNECTIONS) return;
    const [oldest] = this.#connections;
    oldest?.destroy();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const page = await this.#page(request);
    if (response.destroyed) return;
    const { status, contentType, body } = page;
    response.writeHead(status, {
      'content-type': contentType,
      'content-length': Buffer.byteLength(body),
      connection: 'close',
      ...(status === 405 && { allow: 'GET' }),
    });
    response.end(request.method === 'HEAD' ? undefined : body);
  }

  async #page({ method, url = '' }: IncomingMessage): Promise<Page> {
    const { pages, log } = this.#options;
    const path = url.split('?', 1)[0] as string;
    const page = Object.hasOwn(pages, path) ? pages[path] : undefined;
    if (!page) return plainPage(404, [`expected one of ${Object.keys(pages).join(', ')}`]);
    if (method !== 'GET') return plainPage(405, [`expected GET, got ${method}`]);
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

function remedyFor(code: string | undefined, { ip, port }: IpPort): string {
  const elsewhere = 'or set metrics.address to another one';
  const again = 'it is tried again from time to time';
  if (code === 'EADDRINUSE') return `stop what has port ${port} (ss -ltnp sport = :${port}) ${elsewhere}; ${again}`;
  if (code === 'EADDRNOTAVAIL') return `give this host the address ${ip} ${elsewhere}; ${again}`;
  return `${again}; metrics.address changes the address, off ends this`;
}
