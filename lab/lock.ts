/** One `lab up` or `lab down` at a time for a directory. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import { LabError } from './lab-error.ts';

/**
 * Held by an abstract Unix socket, which the kernel frees however its holder ends. Dispose to release. Throws LabError
 * when another process holds it.
 */
export async function lockLab(dir: string): Promise<AsyncDisposable> {
  const server = createServer();
  server.listen({ path: `\0tulle-lab:${dir}` });
  try {
    await once(server, 'listening');
  } catch (cause) {
    throw new LabError({
      operation: `start or stop the lab in ${dir}`,
      expected: 'nobody else doing so',
      received: 'another tulle lab command at work',
      remedy: 'wait for it to end',
      cause,
    });
  }
  return {
    [Symbol.asyncDispose]: async () => {
      server.close();
      await once(server, 'close');
    },
  };
}
