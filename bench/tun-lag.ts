/**
 * Loaded into an agent beside its own program: says how late its main thread's event loop was. Who connects to SOCKET
 * gets one line of JSON about the time since the one before.
 */
import { rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { isMainThread } from 'node:worker_threads';

/** In the node. */
export const SOCKET = '/run/tulle-lag.sock';
/** How often it looks, in milliseconds; the figures are of what comes on top. */
const RESOLUTION_MS = 5;

export interface Lag {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  readonly looks: number;
}

/** A program with this file loaded first is told by the environment, which reaches its threads and children, too. */
export const withLag = (argv: readonly string[]): readonly string[] => [
  'env',
  `NODE_OPTIONS=--import=${import.meta.filename}`,
  ...argv,
];

function serve(): void {
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  const late = (ns: number) => Math.max(0, ns / 1e6 - RESOLUTION_MS);
  delay.enable();
  rmSync(SOCKET, { force: true });
  const server = createServer((connection) => {
    const lag: Lag = {
      p50Ms: late(delay.percentile(50)),
      p99Ms: late(delay.percentile(99)),
      maxMs: late(delay.max),
      looks: delay.count,
    };
    delay.reset();
    connection.end(JSON.stringify(lag));
  });
  server.listen(SOCKET).unref();
}

// The bench imports this file for its names; the agent is told apart by what it was started with.
if (isMainThread && process.env['NODE_OPTIONS']?.includes(import.meta.filename)) serve();
