/** The answering side of control.ts: a small table of routes on a Unix socket. */
import { once } from 'node:events';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { json } from 'node:stream/consumers';
import type { Logger } from 'pino';
import { createServer } from '../agent/telemetry/http.ts';
import type { ApiFault, ApiRequest, NamespacedObject, UncheckedKind } from './control.ts';
import type { Lab } from './lab.ts';
import { messageOf } from './lab-error.ts';
import type { PhantomServices } from './phantom-services.ts';
import type { LabPodRequest } from './pods.ts';

type Handler = (lab: Lab, parts: readonly string[], body: unknown, signal: AbortSignal) => Promise<unknown>;

/** `METHOD /path`, a star for each part that is given to the handler. */
const ROUTES: Readonly<Record<string, Handler>> = {
  'GET /status': (lab) => lab.status(),
  'POST /pods': (lab, _, body, signal) => lab.pods.run(body as LabPodRequest, signal),
  'POST /pods/*/*/check': (lab, [namespace = '', name = ''], _, signal) => lab.pods.check({ namespace, name }, signal),
  'POST /pods/*/*/ready': (lab, [namespace = '', name = ''], body, signal) =>
    lab.pods.setReady({ namespace, name }, (body as { ready: boolean }).ready, signal),
  'POST /pods/*/*/terminate': (lab, [namespace = '', name = ''], body, signal) =>
    lab.pods.terminate({ namespace, name }, (body as { graceSeconds: number }).graceSeconds, signal),
  'DELETE /pods/*/*': (lab, [namespace = '', name = ''], _, signal) => lab.pods.remove({ namespace, name }, signal),
  'POST /nodes/*/kill-agent': async (lab, [node = '']) => ({ pid: await lab.killAgent(node) }),
  'POST /nodes/*/stop-agent': (lab, [node = ''], _, signal) => lab.stopAgent(node, signal),
  'POST /nodes/*/start-agent': async (lab, [node = '']) => lab.startAgent(node),
  'POST /api-fault': async (lab, _, body) => lab.setApiFault((body as { fault: ApiFault }).fault),
  'POST /api': (lab, _, body, signal) => lab.callApi(body as ApiRequest, signal),
  'POST /unchecked/*': async (lab, [kind = ''], body) =>
    lab.putUnchecked(kind as UncheckedKind, body as NamespacedObject),
  'POST /phantom-services': (lab, _, body) => lab.loadPhantomServices(body as PhantomServices),
};

/** Listens when it resolves. Calls live as long as the lab, not as long as the caller: half an ADD is nothing to leave. */
export async function listenForControl(
  socketPath: string,
  lab: Lab,
  log: Logger,
  signal: AbortSignal,
): Promise<Server> {
  const server = createServer((request, response) => {
    answer(lab, request, signal).then(
      (value) => reply(response, 200, value ?? {}),
      (error: unknown) => {
        log.warn({ method: request.method, path: request.url, err: error }, 'cannot answer a call');
        reply(response, 500, { error: messageOf(error) });
      },
    );
  });
  server.listen(socketPath);
  await once(server, 'listening');
  return server;
}

async function answer(lab: Lab, request: IncomingMessage, signal: AbortSignal): Promise<unknown> {
  const { method = '', url = '' } = request;
  const given = url.slice(1).split('/').map(decodeURIComponent);
  for (const [route, handler] of Object.entries(ROUTES)) {
    const [routeMethod, path = ''] = route.split(' ');
    const parts = routeMethod === method ? matchPath(path.slice(1).split('/'), given) : undefined;
    if (parts) return handler(lab, parts, method === 'POST' ? await readBody(request) : undefined, signal);
  }
  throw new Error(`no route for ${method} ${url}`);
}

/** What stands for the stars, or undefined. */
function matchPath(pattern: readonly string[], given: readonly string[]): readonly string[] | undefined {
  const matches = pattern.length === given.length && pattern.every((part, i) => part === '*' || part === given[i]);
  return matches ? given.filter((_, i) => pattern[i] === '*') : undefined;
}

const readBody = (request: IncomingMessage): Promise<unknown> =>
  request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) > 0
    ? json(request)
    : Promise.resolve(undefined);

function reply(response: ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(value));
}
