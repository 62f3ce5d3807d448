import { closeSync, existsSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import { deleteQueueName, renderRequest } from '../../cni/protocol.ts';
import { tryLockExclusive } from '../kernel/libc.ts';
import type { Attachments } from './attachments.ts';
import { DeleteQueue } from './delete-queue.ts';

function createQueue(t: ExecutionContext, del: (containerId: string) => Promise<void>) {
  const runDir = mkdtempSync(join(tmpdir(), 'tulle-queue-'));
  t.teardown(() => rmSync(runDir, { recursive: true }));
  const attachments = { del: ({ containerId }: { containerId: string }) => del(containerId) } as unknown as Attachments;
  const queue = new DeleteQueue({ runDir, attachments, log: pino({ level: 'silent' }) });
  const enqueue = (containerId: string) =>
    writeFileSync(
      join(runDir, 'delete-queue', deleteQueueName(containerId, 'eth0')),
      renderRequest({ CNI_COMMAND: 'DEL', CNI_CONTAINERID: containerId, CNI_IFNAME: 'eth0' }, '{}'),
    );
  return { runDir, queue, enqueue, left: () => readdirSync(join(runDir, 'delete-queue')).length };
}

test('queued DELs are carried out before the agent listens, under the lock of the executable', async (t) => {
  const events: string[] = [];
  const { runDir, queue, enqueue, left } = createQueue(t, async (id) => void events.push(id));
  enqueue('one');
  enqueue('two');
  await queue.drainThen(async () => {
    const other = openSync(join(runDir, 'delete-queue.lock'), 'a');
    events.push(tryLockExclusive(other) ? 'unlocked' : 'listen under the lock');
    closeSync(other);
  });
  t.deepEqual([...events.slice(0, 2).sort(), ...events.slice(2)], ['one', 'two', 'listen under the lock']);
  t.is(left(), 0);
  const other = openSync(join(runDir, 'delete-queue.lock'), 'a');
  t.teardown(() => closeSync(other));
  t.true(tryLockExclusive(other), 'the lock is released');
});

test('a DEL that fails stays queued for the next time and does not stop the others', async (t) => {
  let broken = true;
  const done: string[] = [];
  const { queue, enqueue, left } = createQueue(t, async (id) => {
    if (broken && id === 'bad') throw new Error('not now');
    done.push(id);
  });
  enqueue('bad');
  enqueue('good');
  await queue.drain();
  t.deepEqual([done, left()], [['good'], 1]);
  broken = false;
  await queue.drain();
  t.deepEqual([done, left()], [['good', 'bad'], 0]);
});

test('what a killed executable left half written is removed once nobody writes', async (t) => {
  const { runDir, queue, left } = createQueue(t, async () => undefined);
  const leave = () => writeFileSync(join(runDir, 'delete-queue', '.0123456789abcdef.4711'), 'TULLE1');
  leave();
  const writer = openSync(join(runDir, 'delete-queue.lock'), 'a');
  t.true(tryLockExclusive(writer));
  await queue.drain();
  t.is(left(), 1, 'somebody writes');
  closeSync(writer);
  await queue.drain();
  t.is(left(), 0);
  leave();
  await queue.drainThen(async () => {
    t.is(left(), 0);
  });
});

test('the queued DEL of an attachment is carried out before its next ADD, others wait', async (t) => {
  const done: string[] = [];
  const { queue, enqueue, left } = createQueue(t, async (id) => void done.push(id));
  enqueue('again');
  enqueue('other');
  await queue.carryOutBefore({ containerId: 'again', ifName: 'eth0' });
  await queue.carryOutBefore({ containerId: 'fresh', ifName: 'eth0' });
  t.deepEqual([done, left()], [['again'], 1]);
});

test('a file that is no request is set aside and foreign files stay', async (t) => {
  const { runDir, queue, left } = createQueue(t, async () => undefined);
  writeFileSync(join(runDir, 'delete-queue', '0123456789abcdef'), 'nonsense');
  writeFileSync(join(runDir, 'delete-queue', 'notes.txt'), 'nonsense');
  await queue.drain();
  t.is(left(), 1);
  t.true(existsSync(join(runDir, 'delete-queue', 'notes.txt')));
});
