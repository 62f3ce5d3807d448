/** The lab's API server for one test, and a client that shows what went over the wire. */
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { ExecutionContext } from 'ava';
import { type ApiServer, type ApiServerOptions, startApiServer } from '../../lab/api-server/server.ts';
import { createCa, createServingCertificate, type KeyPair } from '../../lab/pki.ts';
import { ip } from './cluster-values.ts';

/** A bound against hanging, never a measurement. */
const PATIENCE_MS = 20_000;

export interface Answer {
  readonly code: number;
  readonly headers: IncomingMessage['headers'];
  readonly text: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of many shapes.
  readonly json: any;
}

export interface CallOptions {
  readonly headers?: Readonly<Record<string, string>>;
  readonly clientCert?: Pick<KeyPair, 'cert' | 'key'>;
  readonly signal?: AbortSignal;
}

export interface OpenWatch {
  /** The next line, parsed; undefined at the end. Rejects when nothing comes. */
  // biome-ignore lint/suspicious/noExplicitAny: events carry objects of many shapes.
  next(): Promise<any>;
  /** Everything up to the end. */
  // biome-ignore lint/suspicious/noExplicitAny: as above.
  rest(): Promise<any[]>;
  readonly message: IncomingMessage;
  close(): void;
}

export interface TestApi {
  readonly server: ApiServer;
  readonly ca: KeyPair;
  /** Holds the certificates; goes with the test. */
  readonly directory: string;
  call(method: string, path: string, body?: unknown, options?: CallOptions): Promise<Answer>;
  watch(path: string): Promise<OpenWatch>;
}

export const TOKEN = 'test-token';

/** Starts a server with one user `admin`, who has TOKEN; everything ends with the test. */
export async function startTestApi(t: ExecutionContext, options: Partial<ApiServerOptions> = {}): Promise<TestApi> {
  const stop = new AbortController();
  const directory = await mkdtemp(join(tmpdir(), 'tulle-test-api-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const ca = await createCa({ directory, name: 'ca' }, stop.signal);
  const place = { directory, name: 'serving', ca, names: ['localhost'], ips: [ip('127.0.0.1')] };
  const { cert, key } = await createServingCertificate(place, stop.signal);
  const tls = { cert, key, clientCa: ca.cert };
  const tokens = new Map([[TOKEN, 'admin']]);
  const server = await startApiServer({ host: '127.0.0.1', port: 0, tls, tokens, ...options }, stop.signal);
  t.teardown(() => server.close());
  const send = (method: string, path: string, body: unknown, { clientCert, ...rest }: CallOptions = {}) =>
    open(`${server.url}${path}`, method, body, { ca: ca.cert, ...clientCert }, rest);
  return {
    server,
    ca,
    directory,
    call: async (method, path, body, callOptions) => answerOf(await send(method, path, body, callOptions)),
    watch: async (path) => watchOf(await send('GET', path, undefined)),
  };
}

async function open(
  url: string,
  method: string,
  body: unknown,
  tls: { readonly ca: string; readonly cert?: string; readonly key?: string },
  { headers, signal }: CallOptions,
): Promise<IncomingMessage> {
  const content = typeof body === 'string' || body === undefined ? body : JSON.stringify(body);
  // Node itself sends no length with the body of a DELETE.
  const described = content !== undefined && {
    'content-type': 'application/json',
    'content-length': String(Buffer.byteLength(content)),
  };
  const authorization = tls.cert === undefined && { authorization: `Bearer ${TOKEN}` };
  const sent = request(url, {
    method,
    ...tls,
    agent: false,
    headers: { ...authorization, ...described, ...headers },
    signal: AbortSignal.any([AbortSignal.timeout(PATIENCE_MS), ...(signal ? [signal] : [])]),
  });
  sent.end(content);
  const [message] = (await once(sent, 'response')) as [IncomingMessage];
  // An end of the connection after the answer began is seen by whoever reads the answer.
  sent.on('error', () => undefined);
  return message;
}

async function answerOf(message: IncomingMessage): Promise<Answer> {
  const chunks: Buffer[] = [];
  for await (const chunk of message as AsyncIterable<Buffer>) chunks.push(chunk);
  const text = Buffer.concat(chunks).toString();
  const isJson = message.headers['content-type'] === 'application/json';
  return { code: message.statusCode ?? 0, headers: message.headers, text, json: isJson ? JSON.parse(text) : undefined };
}

function watchOf(message: IncomingMessage): OpenWatch {
  const lines = createInterface({ input: message })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    return done ? undefined : JSON.parse(value);
  };
  const rest = async () => {
    const all = [];
    for (let event = await next(); event !== undefined; event = await next()) all.push(event);
    return all;
  };
  return { next, rest, message, close: () => message.destroy() };
}
