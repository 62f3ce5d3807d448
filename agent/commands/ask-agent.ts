import { controlSocket } from '../telemetry/control-server.ts';
import { request } from '../telemetry/http.ts';

/** The agent cannot be asked, or answered with an error. Exit code 1. */
export class AgentUnreachable extends Error {
  override readonly name = 'AgentUnreachable';
}

const TIMEOUT_MS = 60_000;

/** One JSON answer of the running agent; `path` may have a query. Throws AgentUnreachable with what to do. */
export async function askAgent(runDir: string, path: string): Promise<unknown> {
  const { status, body } = await get(controlSocket(runDir), `/${path}`);
  const value = JSON.parse(body) as { error?: string };
  if (status !== 200)
    throw new AgentUnreachable(`the agent cannot answer ${path.split('?', 1)[0]}: ${value.error ?? `HTTP ${status}`}`);
  return value;
}

function get(socketPath: string, path: string): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath, path, timeout: TIMEOUT_MS }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        body += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body }));
      response.on('error', reject);
    });
    call.on('timeout', () => call.destroy(new Error(`no answer within ${TIMEOUT_MS / 1000} s`)));
    call.on('error', (cause: NodeJS.ErrnoException) => reject(unreachable(socketPath, cause)));
    call.end();
  });
}

function unreachable(socketPath: string, cause: NodeJS.ErrnoException): AgentUnreachable {
  const remedy =
    cause.code === 'ENOENT' || cause.code === 'ECONNREFUSED'
      ? 'no agent runs on this node (or it has another --run-dir)'
      : cause.code === 'EACCES'
        ? 'only root may ask the agent'
        : cause.message;
  return new AgentUnreachable(`cannot ask the agent at ${socketPath}: ${remedy}`, { cause });
}
