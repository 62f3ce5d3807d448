/** Where `tulle status` and `tulle diff` ask the running agent: HTTP and JSON on a Unix socket that only root can reach. */
import { chmodSync, rmSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { createServer } from './http.ts';

export type Answers = Readonly<Record<string, (signal: AbortSignal, query: URLSearchParams) => unknown>>;

export const controlSocket = (runDir: string): string => join(runDir, 'control.sock');

/** Serves one JSON answer a path (`/status`, `/service?name=default/web`) until the signal aborts. */
export async function serveControl(runDir: string, answers: Answers, signal: AbortSignal): Promise<void> {
  const path = controlSocket(runDir);
  rmSync(path, { force: true });
  const server = createServer((request, response) => {
    const [name = '', query] = (request.url ?? '').slice(1).split('?', 2);
    const answer = Object.hasOwn(answers, name) ? answers[name] : undefined;
    if (request.method !== 'GET' || !answer)
      return send(response, 404, { error: `expected GET of one of ${Object.keys(answers).join(', ')}` });
    const gone = new AbortController();
    response.once('close', () => gone.abort(new Error('the caller went away')));
    Promise.resolve()
      .then(() => answer(AbortSignal.any([signal, gone.signal]), new URLSearchParams(query)))
      .then((value) => send(response, 200, value))
      .catch((error: unknown) =>
        send(response, 500, { error: error instanceof Error ? error.message : String(error) }),
      );
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
  chmodSync(path, 0o600);
  signal.addEventListener('abort', () => {
    server.close();
    server.closeAllConnections();
  });
}

function send(response: ServerResponse, status: number, body: unknown): void {
  if (response.destroyed) return;
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(`${JSON.stringify(body)}\n`);
}
