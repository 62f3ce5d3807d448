import { closeSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import test from 'ava';
import { openInetSocket, receiveDatagramFrom, sendDatagramInBackground } from './libc.ts';

setFlagsFromString('--expose-gc');
const collectGarbage: () => void = runInNewContext('gc');

const AF_INET = 2;
const UDP = 17;
/** Of libuv's pool, unless somebody has set UV_THREADPOOL_SIZE. */
const THREADS = Number(process.env['UV_THREADPOOL_SIZE'] ?? 4);
const what = { operation: 'send', object: 'a test' };

/** A socket on which nothing ever arrives. */
function openSilent(t: { teardown(end: () => void): void }): number {
  const fd = openInetSocket(AF_INET, 'datagram', UDP);
  t.teardown(() => closeSync(fd));
  return fd;
}

test('what a thread of the pool works with lives until it has', async (t) => {
  const sockets = Array.from({ length: THREADS + 2 }, () => openSilent(t));
  const busy = sockets.slice(2).map((fd) => receiveDatagramFrom(fd, Buffer.alloc(1), Buffer.alloc(28), 400));
  // In functions of their own, so that nobody else holds the buffers.
  const sending = (() => {
    const bytes = Buffer.alloc(100_000);
    const sent = sendDatagramInBackground(sockets[0] as number, bytes, what);
    return { end: sent.catch((error: Error) => error.message), memory: [new WeakRef(bytes.buffer)] };
  })();
  const receiving = (() => {
    const buffers = [Buffer.alloc(100_000), Buffer.alloc(28)] as const;
    const end = receiveDatagramFrom(sockets[1] as number, ...buffers, 1);
    return { end, memory: buffers.map(({ buffer }) => new WeakRef(buffer)) };
  })();
  for (let i = 0; i < 3; i++) {
    await delay(10);
    collectGarbage();
  }
  t.deepEqual(
    [...sending.memory, ...receiving.memory].map((memory) => memory.deref() !== undefined),
    [true, true, true],
  );
  await Promise.all(busy);
  // It was sent to nobody.
  t.regex(String(await sending.end), /cannot send a test/);
  t.is(await receiving.end, undefined);
});
