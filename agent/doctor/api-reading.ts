/** What the agent needs of the API server, asked for with its own credentials: to list and to watch, and every Node. */
import type { ApiClient } from '../cluster/api-client.ts';
import { isForbidden } from '../cluster/api-error.ts';
import type { CredentialsSource } from '../cluster/credentials.ts';
import { narrowNode } from '../cluster/narrow.ts';
import type { Node } from '../model/cluster.ts';

export interface ApiReading {
  /** Address of the server; absent when the credentials cannot be used. */
  readonly server?: string;
  /** Absent when they could not be listed. */
  readonly nodes?: ReadonlyMap<string, Node>;
  /** What was refused or failed, the first failure of each request. */
  readonly failures: readonly Error[];
  /** The server's clock minus this host's, in milliseconds; absent when no answer told. Precise to a second. */
  readonly skewMs?: number;
}

const PAGE = 500;
const WATCH_IDLE_MS = 5_000;

export async function readApi(
  client: ApiClient,
  credentials: CredentialsSource,
  nodeName: string,
  signal: AbortSignal,
): Promise<ApiReading> {
  const failures: Error[] = [];
  const attempt = async <T>(work: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await work();
    } catch (error) {
      failures.push(error as Error);
      return undefined;
    }
  };
  const server = await attempt(async () => (await credentials.current()).server);
  if (server === undefined) return { failures };
  const nodes = await attempt(() => listNodes(client, signal));
  const local = { fieldSelector: `spec.nodeName=${nodeName}` };
  // Where nothing answers, or nobody is believed, the same failure four times says no more than once.
  if (nodes !== undefined || isForbidden(failures[0])) {
    await attempt(() => client.list('/api/v1/pods', { ...local, limit: '1' }, signal));
    await attempt(() => firstBatch(client, '/api/v1/nodes', {}, signal));
    await attempt(() => firstBatch(client, '/api/v1/pods', local, signal));
  }
  const { skewMs } = client;
  return { server, failures, ...(nodes && { nodes }), ...(skewMs !== undefined && { skewMs }) };
}

async function listNodes(client: ApiClient, signal: AbortSignal): Promise<ReadonlyMap<string, Node>> {
  const nodes = new Map<string, Node>();
  for (let next: string | undefined = ''; next !== undefined; ) {
    const query = { limit: String(PAGE), ...(next !== '' && { continue: next }) };
    const page = (await client.list('/api/v1/nodes', query, signal)) as NodeList;
    for (const raw of page.items ?? []) {
      const { value } = narrowNode(raw);
      if (value) nodes.set(value.name, value);
    }
    next = page.metadata?.continue || undefined;
  }
  return nodes;
}

interface NodeList {
  readonly items?: readonly unknown[];
  readonly metadata?: { readonly continue?: string };
}

/** Begins a watch, which is a right of its own, and ends it as soon as the server has accepted. */
async function firstBatch(
  client: ApiClient,
  path: string,
  query: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<void> {
  const asked = { ...query, watch: 'true', timeoutSeconds: '5' };
  for await (const _ of client.watch(path, asked, { idleMs: WATCH_IDLE_MS, signal })) return;
}
