/** Reads the Kubernetes API over HTTPS: whole answers and streams of watch events. It has no way to write. */
import type { IncomingMessage } from 'node:http';
import { Agent, request as httpsRequest } from 'node:https';
import { checkServerIdentity, type PeerCertificate } from 'node:tls';
import type { IpAddress } from '../model/ip.ts';
import { statusOf } from './answers.ts';
import {
  ApiError,
  type ApiRequest,
  failure,
  malformed,
  refusal,
  type StatusBody,
  timedOut,
  tooLarge,
} from './api-error.ts';
import type { Credentials, CredentialsSource, TlsSettings } from './credentials.ts';
import { Deadline } from './deadline.ts';
import { lineBatches } from './line-batches.ts';

export type Query = Readonly<Record<string, string>>;

export interface ApiClientLimits {
  /** A whole answer, in bytes; a page of 500 Nodes is about 10 MiB at its worst. */
  readonly answerBytes: number;
  /** One watch event, in bytes; etcd refuses objects of more than 1.5 MiB. */
  readonly lineBytes: number;
  /** For a whole answer, and for the first byte of a watch's, in milliseconds. */
  readonly answerMs: number;
}

const LIMITS: ApiClientLimits = { answerBytes: 64 * 2 ** 20, lineBytes: 4 * 2 ** 20, answerMs: 30_000 };

export interface WatchOptions {
  /** The longest silence, in milliseconds, before the connection counts as lost. */
  readonly idleMs: number;
  readonly signal: AbortSignal;
}

/** What is read of an answer that refuses. */
const REFUSAL_BYTES = 64 * 1024;

/** TCP keepalive after this much silence; Linux then gives up after 10 probes, one a second (libuv's choice). */
const KEEPALIVE_MS = 15_000;
/** An unused connection is closed after this long: before the server may do so, which would lose the next request. */
const UNUSED_MS = 10_000;

/** One server, its connections kept open between requests. Throws ApiError, or ConfigError from the credentials. */
export class ApiClient {
  readonly #source: CredentialsSource;
  readonly #limits: ApiClientLimits;
  #agent: Agent | undefined;
  #agentTls: TlsSettings | undefined;
  #skewMs: number | undefined;

  constructor({ credentials, limits }: { credentials: CredentialsSource; limits?: Partial<ApiClientLimits> }) {
    this.#source = credentials;
    this.#limits = { ...LIMITS, ...limits };
  }

  /** The parsed JSON of a whole answer. `path` begins with `/api`. Rejects with the signal's reason when it aborts. */
  async list(path: string, query: Query, signal: AbortSignal): Promise<unknown> {
    using deadline = new Deadline(this.#limits.answerMs, signal);
    const { request, response } = await this.#open({ verb: 'list', path }, query, deadline);
    try {
      const limit = this.#limits.answerBytes;
      return parseJson(request, await readBody(response, limit, () => tooLarge(request, 'an answer', limit)));
    } catch (error) {
      throw explain(error, request, deadline);
    }
  }

  /**
   * The events of a watch as parsed JSON, in batches of what had arrived together; an empty first batch says that the
   * server accepted. Ends when the server ends it properly. Only when a batch is asked for is more read, so a slow
   * consumer slows the server. Silence of more than `idleMs` is an ApiError (reason Timeout).
   */
  async *watch(path: string, query: Query, { idleMs, signal }: WatchOptions): AsyncGenerator<readonly unknown[]> {
    using deadline = new Deadline(this.#limits.answerMs, signal);
    const { request, response } = await this.#open({ verb: 'watch', path }, query, deadline);
    try {
      deadline.renew(idleMs);
      yield [];
      const lines = lineBatches(renewing(response, deadline, idleMs), {
        maxBytes: this.#limits.lineBytes,
        tooLong: () => tooLarge(request, 'an event', this.#limits.lineBytes),
        cutOff: () =>
          failure(request, Object.assign(new Error('the end in the middle of an event'), { code: 'Truncated' })),
      });
      for await (const batch of lines) yield batch.map((line) => parseJson(request, line));
    } catch (error) {
      throw explain(error, request, deadline);
    } finally {
      response.destroy();
    }
  }

  /** The server's clock minus this host's by the last answer, in milliseconds; answers tell it in whole seconds (RFC 9110 section 6.6.1). */
  get skewMs(): number | undefined {
    return this.#skewMs;
  }

  /** Closes all connections; requests under way fail. */
  close(): void {
    this.#agent?.destroy();
  }

  /**
   * Ends the connections from addresses that this host no longer has: nothing would ever come over them, and TCP would notice
   * only after its last keepalive. What was under way fails as if the server had ended it.
   */
  closeConnectionsFrom(gone: ReadonlySet<IpAddress>): void {
    const { sockets, freeSockets } = this.#agent ?? {};
    for (const socket of [sockets, freeSockets].flatMap((each) => Object.values(each ?? {}).flat()))
      if (gone.has(socket?.localAddress as IpAddress))
        socket?.destroy(new Error(`the host no longer has ${socket.localAddress}`));
  }

  /** An answer of status 200, its body unread. */
  async #open(
    what: ApiRequest,
    query: Query,
    deadline: Deadline,
  ): Promise<{ request: ApiRequest; response: IncomingMessage }> {
    const credentials = await this.#source.current();
    const request = { ...what, server: credentials.server };
    try {
      const response = await this.#send(credentials, `${what.path}?${new URLSearchParams(query)}`, deadline.signal);
      const serverMs = Date.parse(response.headers.date ?? '');
      if (!Number.isNaN(serverMs)) this.#skewMs = serverMs - Date.now();
      if (response.statusCode !== 200) throw await this.#refused(request, response, credentials.description);
      return { request, response };
    } catch (error) {
      throw explain(error, request, deadline);
    }
  }

  async #refused(request: ApiRequest, response: IncomingMessage, credential: string): Promise<ApiError> {
    const status = response.statusCode ?? 0;
    if (status === 401) this.#source.expire();
    const body = await readBody(response, REFUSAL_BYTES, () => new Error('too long')).catch(() => '');
    return refusal(request, status, parseStatus(body), {
      credential,
      retryAfterMs: retryAfterMs(response.headers['retry-after']),
    });
  }

  #send({ server, tls, token }: Credentials, pathAndQuery: string, signal: AbortSignal): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const request = httpsRequest(`${server}${pathAndQuery}`, {
        agent: this.#agentFor(tls),
        signal,
        headers: {
          accept: 'application/json',
          'user-agent': 'tulle',
          ...(token !== undefined && { authorization: `Bearer ${token}` }),
        },
      });
      request.on('socket', (socket) => socket.setKeepAlive(true, KEEPALIVE_MS));
      request.on('response', resolve);
      request.on('error', reject);
      request.end();
    });
  }

  /** Other TLS settings need other connections; the old ones end by themselves once unused. */
  #agentFor(tls: TlsSettings): Agent {
    if (this.#agent && this.#agentTls === tls) return this.#agent;
    this.#agentTls = tls;
    this.#agent = new Agent({
      keepAlive: true,
      timeout: UNUSED_MS,
      maxCachedSessions: 0,
      rejectUnauthorized: !tls.insecure,
      servername: tls.greeting ?? '',
      checkServerIdentity: (_host: string, certificate: PeerCertificate) => checkNames(tls.names, certificate),
      ...(tls.ca !== undefined && { ca: tls.ca }),
      ...(tls.certificate !== undefined && { cert: tls.certificate, key: tls.key }),
    });
    return this.#agent;
  }
}

function explain(error: unknown, request: ApiRequest, deadline: Deadline): unknown {
  if (deadline.outer.aborted) return deadline.outer.reason;
  if (error instanceof ApiError) return error;
  return deadline.passed ? timedOut(request, deadline.ms) : failure(request, error);
}

/** An error unless the certificate has one of the names; says what it has instead. */
function checkNames(names: readonly string[], certificate: PeerCertificate): Error | undefined {
  const errors = names.map((name) => checkServerIdentity(name, certificate));
  if (errors.includes(undefined)) return undefined;
  const has = certificate.subjectaltname?.replaceAll(/(DNS|IP Address):/g, '') ?? 'no names at all';
  const message = `a certificate for ${has} instead of ${names.join(' or ')}`;
  return Object.assign(new Error(message, { cause: errors[0] }), { code: 'ERR_TLS_CERT_ALTNAME_INVALID' });
}

async function readBody(response: IncomingMessage, maxBytes: number, tooLong: () => Error): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw tooLong();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, bytes).toString('utf8');
}

async function* renewing(response: IncomingMessage, deadline: Deadline, ms: number): AsyncGenerator<Buffer> {
  for await (const chunk of response as AsyncIterable<Buffer>) {
    deadline.renew(ms);
    yield chunk;
  }
}

function parseJson(request: ApiRequest, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw malformed(request, 'JSON', (cause as Error).message, cause);
  }
}

/** The useful part of a `metav1.Status`; a proxy's error page has none. */
function parseStatus(body: string): StatusBody {
  let parsed: unknown;
  try {
    parsed = JSON.parse(body);
  } catch {
    // Not every refusal comes from the API server itself; its status number is enough then.
    return {};
  }
  return statusOf(parsed);
}

/** RFC 9110 section 10.2.3, the form in seconds, which is the one that the API server sends. */
const retryAfterMs = (value: string | undefined): number | undefined =>
  value !== undefined && /^\d{1,6}$/.test(value) ? Number(value) * 1000 : undefined;
