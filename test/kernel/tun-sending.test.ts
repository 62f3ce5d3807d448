/** How the threads use their socket, on the loopback of a namespace: what is sent at once, what is refused, what a turn may take. */
import { closeSync, openSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import {
  bindSocket,
  inNetns,
  openInetSocket,
  receiveDatagram,
  sendDatagramTo,
  setsockoptInt,
} from '../../agent/kernel/libc.ts';
import { socketAddress } from '../../agent/kernel/socket-address.ts';
import { Counters, INBOUND, OUTBOUND } from '../../agent/kernel/tun/counters.ts';
import { Inbound } from '../../agent/kernel/tun/inbound.ts';
import { arena } from '../../agent/kernel/tun/memory.ts';
import { Outbound } from '../../agent/kernel/tun/outbound.ts';
import { Peer, Peers } from '../../agent/kernel/tun/peers.ts';
import { Sending } from '../../agent/kernel/tun/sending.ts';
import { openTunnelSocket } from '../../agent/kernel/tun/socket.ts';
import { ip } from '../support/cluster-values.ts';
import { createNetns } from '../support/netns.ts';

const PORT = 8285;
const FROM = ip('127.0.0.1');
const ENDS = [ip('127.0.0.2'), ip('127.0.0.3')] as const;

async function createHost(t: ExecutionContext) {
  const netns = await createNetns(t, 'host');
  const netnsFd = openSync(netns.path, 'r');
  t.teardown(() => closeSync(netnsFd));
  const open = (address = FROM): number => {
    const fd = inNetns(netnsFd, () => openTunnelSocket(address, PORT));
    t.teardown(() => closeSync(fd));
    return fd;
  };
  return { netns, netnsFd, open };
}

const peerAt = (slot: number, end: (typeof ENDS)[number]): Peer =>
  new Peer({
    slot,
    socketAddress: Uint8Array.from(socketAddress(end, PORT)),
    prefixes: [],
    carriage: 'segments',
  });

/** All that has come, as messages: datagrams that were sent as one come as one (UDP_GRO). */
function receiveAll(fd: number): readonly Buffer[] {
  const into = Buffer.alloc(65_536);
  const messages: Buffer[] = [];
  for (;;) {
    try {
      const length = receiveDatagram(fd, into, { operation: 'receive', object: 'test' });
      messages.push(Buffer.from(into.subarray(0, length)));
    } catch {
      return messages;
    }
  }
}

interface Sent {
  readonly to: 0 | 1;
  readonly bytes: number;
  readonly fits: boolean;
  /** All before it was sent already. */
  readonly isFirst: boolean;
}

/** Lengths of the messages to one end: equal ones that fit are one, a shorter one ends it, 64 at most and what UDP takes. */
function messagesOf(sent: readonly Sent[], to: 0 | 1): readonly number[] {
  const messages: { length: number; size: number; count: number; isOpen: boolean }[] = [];
  let former: Sent | undefined;
  for (const each of sent) {
    const last = messages.at(-1);
    const isNext = former?.to === to && !each.isFirst;
    former = each;
    if (each.to !== to) continue;
    const joins = isNext && last?.isOpen && each.fits && each.bytes <= last.size;
    if (joins && last.count < 64 && last.length + each.bytes <= 65_507) {
      last.length += each.bytes;
      last.count++;
      last.isOpen = each.bytes === last.size;
    } else messages.push({ length: each.bytes, size: each.bytes, count: 1, isOpen: each.fits });
  }
  return messages.map(({ length }) => length);
}

test('datagrams arrive as they were gathered; those of one size to one peer leave as one message', async (t) => {
  const { open } = await createHost(t);
  const sender = open();
  const receivers = ENDS.map((end) => open(end));
  const peers = ENDS.map((end, i) => peerAt(i + 1, end));
  const drops: string[] = [];
  const sending = new Sending({
    fd: sender,
    waitWritable: () => true,
    drop: (_peer, _count, why) => drops.push(why),
    isTooNarrow: () => false,
    onPending: () => undefined,
  });
  const memory = arena(1 << 22);
  for (let i = 0; i < memory.bytes.length; i++) memory.bytes[i] = (i * 7919) >>> 3;
  const some = fc.record({
    to: fc.constantFrom(0 as const, 1 as const),
    bytes: fc.constantFrom(1, 40, 1_400, 1_452),
    fits: fc.boolean(),
    pieces: fc.integer({ min: 1, max: 3 }),
    times: fc.constantFrom(1, 1, 2, 3, 70),
  });
  fc.assert(
    fc.property(fc.array(some, { minLength: 1, maxLength: 8 }), (trains) => {
      const sent: Sent[] = [];
      const expected: [Buffer[], Buffer[]] = [[], []];
      let at = 0;
      for (const { to, bytes, fits, pieces, times } of trains) {
        for (let left = times; left > 0; left--) {
          const isFirst = !sending.begin(peers[to] as Peer, bytes, fits);
          if (isFirst) {
            sending.flush();
            sending.begin(peers[to] as Peer, bytes, fits);
          }
          sent.push({ to, bytes, fits, isFirst });
          let rest = bytes;
          for (let piece = pieces; piece > 0 && rest > 0; piece--) {
            const length = piece === 1 ? rest : Math.ceil(rest / 2);
            sending.piece(memory.address + at, length);
            expected[to].push(Buffer.from(memory.bytes.subarray(at, at + length)));
            at += length + (at % 2);
            rest -= length;
          }
        }
      }
      sending.flush();
      for (const to of [0, 1] as const) {
        const messages = receiveAll(receivers[to] as number);
        t.deepEqual(
          messages.map(({ length }) => length),
          messagesOf(sent, to),
        );
        t.true(Buffer.concat(messages).equals(Buffer.concat(expected[to])));
      }
    }),
    { numRuns: 150 },
  );
  t.deepEqual(drops, []);
});

test('a queue below that is full drops and is counted; nobody waits for it', async (t) => {
  const { netns, open } = await createHost(t);
  await netns.run('tc', 'qdisc', 'add', 'dev', 'lo', 'root', 'tbf', 'rate', '1mbit', 'burst', '5000', 'limit', '20000');
  const drops = { overflow: 0, tooLarge: 0, unreachable: 0 };
  let waits = 0;
  const sending = new Sending({
    fd: open(),
    waitWritable: () => ++waits < 10_000,
    drop: (_peer, count, why) => {
      drops[why] += count;
    },
    isTooNarrow: () => false,
    onPending: () => undefined,
  });
  const receiver = open(ENDS[0]);
  const peer = peerAt(1, ENDS[0]);
  const memory = arena(1_000);
  for (let i = 0; i < 100; i++) {
    sending.begin(peer, 1_000, false);
    sending.piece(memory.address, 1_000);
  }
  sending.flush();
  t.true(drops.overflow > 50 && drops.overflow < 100, `${drops.overflow} dropped`);
  t.deepEqual([drops.tooLarge, drops.unreachable, waits], [0, 0, 0]);
  t.true(receiveAll(receiver).length <= 100 - drops.overflow);
});

test('datagrams that the route would have to fragment: the sender is asked, and goes on cutting for others', async (t) => {
  const { netns, open } = await createHost(t);
  await netns.run('ip', 'route', 'add', 'local', `${ENDS[0]}/32`, 'dev', 'lo', 'table', 'local', 'mtu', '600');
  const asked: number[] = [];
  const drops: string[] = [];
  const sending = new Sending({
    fd: open(),
    waitWritable: () => true,
    drop: (_peer, count, why) => drops.push(`${count} ${why}`),
    isTooNarrow: (_peer, bytes) => asked.push(bytes) > 0,
    onPending: () => undefined,
  });
  const receivers = ENDS.map((end) => open(end));
  const memory = arena(4_000);
  const sendTo = (to: 0 | 1, fits: boolean): void => {
    const peer = peerAt(to + 1, ENDS[to]);
    for (let i = 0; i < 4; i++) {
      sending.begin(peer, 1_000, fits);
      sending.piece(memory.address + 1_000 * i, 1_000);
    }
    sending.flush();
  };
  sendTo(0, true);
  t.deepEqual([asked, drops], [[1_000], ['4 tooLarge']]);
  sendTo(0, false);
  sendTo(1, true);
  const lengths = receivers.map((fd) => receiveAll(fd).map(({ length }) => length));
  t.deepEqual(lengths, [[1_000, 1_000, 1_000, 1_000], [4_000]]);
  t.is(drops.length, 1);
});

test('a turn of the inbound thread ends though there is more: the main thread is heard under a flood', async (t) => {
  const { netnsFd, open } = await createHost(t);
  const counters = new Counters(INBOUND);
  const none = openSync('/dev/null', 'w');
  t.teardown(() => closeSync(none));
  const inbound = new Inbound({
    tunFd: none,
    socketFd: open(),
    port: PORT,
    peers: new Peers(),
    counters,
    isEncrypted: false,
    takesUdp: true,
    onPending: () => undefined,
    onControl: () => true,
    onUnknownSession: () => {},
  });
  const stranger = inNetns(netnsFd, () => openInetSocket(2, 'datagram', 17));
  t.teardown(() => closeSync(stranger));
  setsockoptInt(stranger, 1, 32, 1 << 22);
  const sent = 2_000;
  for (let i = 0; i < sent; i++) {
    sendDatagramTo(stranger, Buffer.alloc(8), socketAddress(FROM, PORT), { operation: 'send', object: 'test' });
  }
  t.true(inbound.turn());
  const first = counters.read(0).stranger;
  t.true(first > 0 && first < sent, `${first} in the first turn`);
  while (counters.read(0).stranger < sent) t.true(inbound.turn());
  t.is(counters.read(0).stranger, sent);
});

test('packets that wait are read and sent many at once, after a few that seemed to come alone', async (t) => {
  const { netnsFd, open } = await createHost(t);
  const [socketFd, receiver] = [open(), open(ENDS[0])];
  // A socket stands for the device: what it gives is read in the same way.
  const device = socketAddress(FROM, PORT + 1);
  const [tunFd, kernel] = [0, 1].map(() => inNetns(netnsFd, () => openInetSocket(2, 'datagram', 17))) as [
    number,
    number,
  ];
  t.teardown(() => {
    for (const fd of [tunFd, kernel]) closeSync(fd);
  });
  bindSocket(tunFd, device, { operation: 'bind', object: 'device' });
  const peers = new Peers();
  const to = Uint8Array.of(10, 84, 1, 0);
  peers.set({ ...peerAt(1, ENDS[0]).entry, prefixes: [{ bytes: to, length: 24 }] });
  const counters = new Counters(OUTBOUND);
  const outbound = new Outbound({
    tunFd,
    socketFd,
    peers,
    counters,
    isEncrypted: false,
    pathMtus: new Int32Array(2),
    waitWritable: () => true,
    onPending: () => undefined,
    askPathMtu: () => undefined,
    onTooLarge: () => undefined,
  });
  const packet = Buffer.alloc(12 + 20 + 100);
  packet[12] = 0x45;
  packet.set(to, 12 + 16);
  const count = 100;
  for (let i = 0; i < count; i++) sendDatagramTo(kernel, packet, device, { operation: 'send', object: 'test' });
  let turns = 0;
  for (; counters.read(1).packets < count; turns++) t.true(outbound.turn());
  t.true(turns <= 17, `${turns} turns`);
  const messages = receiveAll(receiver).map(({ length }) => length / packet.length);
  t.is(
    messages.reduce((sum, each) => sum + each, 0),
    count,
  );
  t.is(Math.max(...messages), 64, 'as many as the kernel cuts');
});
