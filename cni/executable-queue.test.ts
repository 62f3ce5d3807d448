/** The real executable without an agent, or with one that starts just now: what happens to a DEL. */
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { execa } from 'execa';
import {
  CONFIG,
  call,
  IMPATIENT,
  listen,
  makeExecutables,
  makeRunDir,
  outcomeOf,
  queued,
  spawn,
  TIMEOUT_MS,
} from '../test/support/cni-executable.ts';
import { waitFor } from '../test/support/netns.ts';
import { deleteQueueName, parseRequest, renderAnswer } from './protocol.ts';

test.before('make', makeExecutables);

test('a queued DEL is the request itself, in a file for root alone; the same again replaces it', async (t) => {
  const runDir = join(makeRunDir(t), 'run');
  for (const stdin of ['first', CONFIG]) t.is((await call(runDir, 'DEL', { stdin })).exitCode, 0);
  t.is((await call(runDir, 'DEL', { env: { CNI_IFNAME: 'eth1' } })).exitCode, 0);
  t.deepEqual(queued(runDir).sort(), [deleteQueueName('c0ffee', 'eth0'), deleteQueueName('c0ffee', 'eth1')].sort());
  const path = join(runDir, 'delete-queue', deleteQueueName('c0ffee', 'eth0'));
  const request = parseRequest(readFileSync(path));
  t.like(request, { verb: 'DEL', containerId: 'c0ffee', ifName: 'eth0', ignored: [] });
  t.like(request.config, { name: 'tulle' });
  const modes = [runDir, join(runDir, 'delete-queue'), path].map((each) => (statSync(each).mode & 0o777).toString(8));
  t.deepEqual(modes, ['700', '700', '600']);
});

test('past the bound of the queue the runtime has to try again', async (t) => {
  const runDir = makeRunDir(t);
  const queue = join(runDir, 'delete-queue');
  mkdirSync(queue);
  for (let i = 0; i < 255; i++) writeFileSync(join(queue, `${i}`), '');
  writeFileSync(join(queue, '.left-over'), '');
  t.is((await call(runDir, 'DEL')).exitCode, 0, 'the 256th');
  const one = await call(runDir, 'DEL', { env: { CNI_CONTAINERID: 'other' } });
  t.like(one.error, {
    code: 11,
    msg: 'cannot DEL: the tulle agent is not answering, and 256 deletions wait for it already',
  });
  t.is((await call(runDir, 'DEL')).exitCode, 0, 'one that waits already');
  t.is(queued(runDir).length, 257);
});

test('a queue that cannot be written: the runtime has to try again', async (t) => {
  const runDir = makeRunDir(t);
  writeFileSync(join(runDir, 'delete-queue'), 'a file');
  t.like((await call(runDir, 'DEL')).error, {
    code: 11,
    msg: `cannot DEL: the tulle agent is not answering, and ${runDir}/delete-queue: Not a directory`,
  });
  t.like((await call(join(runDir, 'a/b'), 'DEL')).error, { code: 11 });
});

/** Holds the lock as a starting agent does, until the returned function is called. */
async function lockQueue(t: ExecutionContext, runDir: string): Promise<() => Promise<void>> {
  const holder = execa(
    'flock',
    ['--exclusive', join(runDir, 'delete-queue.lock'), 'sh', '-c', 'echo locked; read end'],
    {
      buffer: false,
      reject: false,
      timeout: TIMEOUT_MS,
    },
  );
  t.teardown(async () => {
    holder.stdin.end();
    await holder;
  });
  await once(holder.stdout, 'data');
  return async () => {
    holder.stdin.end();
    await holder;
  };
}

const hasOpen = (pid: number, path: string) =>
  readdirSync(`/proc/${pid}/fd`).some((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === path);

test('a DEL that meets a starting agent waits for its lock and is then heard, not queued', async (t) => {
  const runDir = makeRunDir(t);
  const unlock = await lockQueue(t, runDir);
  const running = spawn(runDir, 'DEL', {});
  const { pid } = running;
  await waitFor(() => pid !== undefined && hasOpen(pid, join(runDir, 'delete-queue.lock')), {
    describe: 'waiting for the lock',
  });
  const heard: string[] = [];
  await listen(t, runDir, (request, socket) => {
    heard.push(parseRequest(request).verb);
    socket.end(renderAnswer(0));
  });
  await unlock();
  t.like(outcomeOf(await running), { exitCode: 0, stdout: '' });
  t.deepEqual(heard, ['DEL']);
  t.false(readdirSync(runDir).includes('delete-queue'));
});

test('a lock that is never released: the runtime has to try again', async (t) => {
  const runDir = makeRunDir(t);
  await lockQueue(t, runDir);
  const { error } = await call(runDir, 'DEL', { executable: IMPATIENT });
  t.like(error, { code: 11 });
  t.regex(error.msg ?? '', /delete-queue\.lock: Operation timed out$/);
});

test('DEL: an agent that never answers finds it in the queue later', async (t) => {
  const runDir = makeRunDir(t);
  await listen(t, runDir, () => undefined);
  t.like(await call(runDir, 'DEL', { executable: IMPATIENT }), { exitCode: 0, stdout: '' });
  t.deepEqual(queued(runDir), [deleteQueueName('c0ffee', 'eth0')]);
});

test('50 DELs at once without an agent are all queued, or refused', async (t) => {
  const runDir = makeRunDir(t);
  const ids = Array.from({ length: 50 }, (_, i) => `container-${i}`);
  const codes = await Promise.all(
    ids.map(async (CNI_CONTAINERID) => (await call(runDir, 'DEL', { env: { CNI_CONTAINERID } })).exitCode),
  );
  t.deepEqual(new Set(codes), new Set([0]));
  t.deepEqual(queued(runDir).sort(), ids.map((id) => deleteQueueName(id, 'eth0')).sort());
});
