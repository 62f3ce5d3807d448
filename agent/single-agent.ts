/** One agent a network namespace: the holder listens on an abstract Unix socket, which any death releases. */
import { createServer } from 'node:net';

/** Abstract sockets belong to the network namespace (unix(7)). */
const LOCK_NAME = '\0tulle-agent';

/** Throws when another agent holds this network namespace. */
export async function holdNetworkNamespace(signal: AbortSignal): Promise<void> {
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) =>
      reject(
        cause.code === 'EADDRINUSE'
          ? new Error(
              "a Tulle agent runs in this network namespace already: stop it first (two would undo each other's work)",
              { cause },
            )
          : cause,
      ),
    );
    server.listen(LOCK_NAME, resolve);
  });
  server.unref();
  signal.addEventListener('abort', () => server.close());
}
