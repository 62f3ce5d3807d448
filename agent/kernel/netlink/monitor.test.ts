import { EventEmitter } from 'node:events';
import test, { type ExecutionContext } from 'ava';
import { until } from '../../../test/support/until.ts';
import { KernelError } from '../errors.ts';
import { Links } from './links.ts';
import { NetlinkMonitor } from './monitor.ts';
import type { openRawNetlink } from './monitor-socket.ts';

class FakeSocket extends EventEmitter {
  isClosed = false;
  addMembership(): void {}
  unref(): void {}
  close(): void {
    this.isClosed = true;
  }
}

const failure = () => new KernelError({ code: 'EMFILE', operation: 'open', object: 'socket' });
/** One notification without a payload: nlmsghdr of RTM_NEWNETCONF. */
const datagram = Buffer.from([16, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

function open(t: ExecutionContext) {
  const sockets: FakeSocket[] = [];
  const faults: unknown[] = [];
  const lost: string[] = [];
  let refusals = 0;
  const options = {
    links: new Links(undefined as never),
    netnsFd: undefined as number | undefined,
    onFault: (error: unknown) => faults.push(error),
    openSocket: () => {
      if (refusals-- > 0) throw failure();
      const socket = new FakeSocket();
      sockets.push(socket);
      return { socket, inode: 'none' } as unknown as ReturnType<typeof openRawNetlink>;
    },
  };
  const monitor = new NetlinkMonitor(options as ConstructorParameters<typeof NetlinkMonitor>[0]);
  t.teardown(() => monitor.close());
  const { signal } = new AbortController();
  monitor.subscribe({ message: () => {}, lost: (reason) => lost.push(reason) }, signal);
  const refuse = (times: number) => {
    refusals = times;
  };
  return { monitor, options, sockets, faults, lost, signal, refuse };
}

test('monitor: a count of drops that cannot be read is a loss, not the end', (t) => {
  const { monitor, options, lost } = open(t);
  monitor.check();
  t.deepEqual(lost, []);
  options.netnsFd = -1;
  monitor.check();
  t.is(lost.length, 1);
  t.regex(lost[0] ?? '', /^the dropped notifications cannot be counted: cannot enter network namespace/);
});

test('monitor: a socket that cannot be opened again is tried until it can', async (t) => {
  const { monitor, sockets, lost, refuse } = open(t);
  refuse(2);
  sockets[0]?.emit('error', new Error('broken'));
  t.true(sockets[0]?.isClosed);
  t.deepEqual(lost, [], 'nothing can be listened to yet');
  t.notThrows(() => monitor.check());
  await until(() => lost.length > 0, 'another socket');
  t.deepEqual(lost, ['broken']);
  t.is(sockets.length, 2);
});

test('monitor: a listener that throws is told of a loss, and the others hear all', (t) => {
  const { monitor, sockets, faults, lost, signal } = open(t);
  const fault = new Error('a fault');
  const heard: string[] = [];
  const broken = {
    message: () => {
      throw fault;
    },
    lost: (reason: string) => heard.push(reason),
  };
  let messages = 0;
  monitor.subscribe(broken, signal);
  monitor.subscribe({ message: () => messages++, lost: () => {} }, signal);
  sockets[0]?.emit('message', datagram);
  t.is(messages, 1);
  t.deepEqual(heard, ['a notification could not be taken up']);
  t.deepEqual(faults, [fault]);
  t.deepEqual(lost, []);
});
