import { closeSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { inNetns, openInetSocket, sendDatagramTo, setsockoptInt, trySendDatagramTo } from '../../agent/kernel/libc.ts';
import { socketAddress } from '../../agent/kernel/socket-address.ts';
import { firstByteOf } from '../../agent/kernel/tun/wire.ts';
import { FAMILIES, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { ip } from '../support/cluster-values.ts';
import { waitFor } from '../support/netns.ts';
import {
  createWorld,
  delivered,
  LINK,
  openTunnel,
  PLAN,
  type Place,
  PORT,
  relay,
  SLOT,
  setRelay,
  socketDrops,
  someKey,
  type Tunnel,
  type World,
} from '../support/tun-world.ts';

const families = ['ipv4', 'ipv6'] as const;
const SIZES = [0, 64, 900, 1300, 3_000, 20_000];

const assertAlive = async (t: ExecutionContext, { a }: World, when: string): Promise<void> => {
  for (const inner of families) {
    t.is(await a.ask({ kind: 'tcp', to: PLAN.b.inner[inner], bytes: 200_000 }), 200_000, when);
  }
};
/** Some of each kind of datagram: small ones, super-packets, fragments. */
async function carrySome(t: ExecutionContext, world: World): Promise<void> {
  await assertAlive(t, world, 'at first');
  for (const inner of families) {
    t.deepEqual(await world.a.ask({ kind: 'udp', to: PLAN.b.inner[inner], sizes: SIZES }), []);
  }
}

/** A socket in a namespace, not bound. */
function openSocket(t: ExecutionContext, { netnsFd }: Place, to: IpAddress): number {
  const { addressFamily } = FAMILIES[familyOf(to)];
  const fd = inNetns(netnsFd, () => openInetSocket(addressFamily, 'datagram', 17));
  t.teardown(() => closeSync(fd));
  return fd;
}

/** Packets of the device whose source is none of a's pods', as the kernel of b counts them. */
async function watchSources({ b }: World): Promise<() => Promise<number>> {
  const tools = { ipv4: 'iptables', ipv6: 'ip6tables' } as const;
  const rule = (inner: 'ipv4' | 'ipv6') => ['-i', LINK, '!', '-s', PLAN.a.prefixes[inner]];
  for (const inner of families) {
    await b.netns.run(tools[inner], '-t', 'raw', '-A', 'PREROUTING', ...rule(inner));
  }
  return async () => {
    const listed = families.map((inner) => b.netns.run(tools[inner], '-t', 'raw', '-nvxL', 'PREROUTING'));
    const lines = (await Promise.all(listed)).map(({ stdout }) => stdout.split('\n')[2] ?? '');
    return lines.reduce((sum, line) => sum + Number(line.trim().split(/\s+/)[0]), 0);
  };
}

for (const outer of families) {
  test.serial(
    `over ${outer}: nothing is taken from strangers, from other ports, nor of pods that are not the peer's`,
    async (t) => {
      const world = await createWorld(t);
      const tunnel = await openTunnel(t, world, { outer, carriage: 'segments', encryption: 'none' });
      await carrySome(t, world);
      const before = await delivered(world.b);
      const to = ip(PLAN.b.outer[outer]);
      const address = socketAddress(to, PORT);
      const what = { operation: 'send', object: 'test' };
      const foreign = Buffer.alloc(80, firstByteOf('data'));
      for (const place of [world.r, world.a, world.b]) {
        sendDatagramTo(openSocket(t, place, to), foreign, address, what);
        sendDatagramTo(openSocket(t, place, to), Buffer.of(), address, what);
      }
      const strangers = () => tunnel.threads.b.inbound.read(0).stranger;
      await waitFor(() => strangers() === 6, { describe: 'six datagrams of strangers counted' });
      for (const [inner, source] of Object.entries({ ipv4: '10.99.0.1', ipv6: 'fd99::1' })) {
        await world.a.netns.run('ip', 'address', 'add', source, 'dev', 'lo');
        const pinged = world.a.netns.run('ping', '-nc1', '-W1', '-I', source, PLAN.b.inner[inner as 'ipv4']);
        await t.throwsAsync(pinged, { message: /100% packet loss/ });
      }
      t.is(tunnel.threads.b.inbound.read(SLOT).foreignSource, 2);
      t.is(await delivered(world.b), before);
      await assertAlive(t, world, 'after it');
    },
  );
}

/** Why datagrams of the peer went no further. */
function refusedAt({ threads: { b } }: Tunnel): number {
  const {
    packets: _packets,
    bytes: _bytes,
    datagrams: _datagrams,
    stranger: _stranger,
    ...refused
  } = b.inbound.read(SLOT);
  return Object.values(refused).reduce((sum, count) => sum + count, 0);
}

const mutantsPerDatagram = 40;

test.serial(
  'altered datagrams of an encrypted tunnel: none reaches a pod, and the right ones do afterwards',
  async (t) => {
    const world = await createWorld(t);
    const way = { outer: 'ipv4', carriage: 'segments', encryption: 'aes-gcm' } as const;
    const tunnel = await openTunnel(t, world, way, { relayed: {} });
    const { b } = tunnel.threads;
    await carrySome(t, world);
    t.is(refusedAt(tunnel), 0);
    // What is recorded from here on has not come yet: only its tag tells that it was altered.
    await setRelay(world, way.outer, { records: true, lost: 1 });
    const ping = (to: string, size: number) =>
      world.a.netns.run('ping', '-nqc50', '-i0.002', '-W1', '-s', String(size), to).catch(() => {});
    await Promise.all(families.flatMap((inner) => [40, 700, 1_300].map((size) => ping(PLAN.b.inner[inner], size))));
    const before = { delivered: await delivered(world.b), datagrams: b.inbound.read(SLOT).datagrams };
    const [, sent] = await relay(world, { kind: 'replay', mutants: mutantsPerDatagram });
    t.true(sent > 10_000, `${sent} sent`);
    const came = () => b.inbound.read(SLOT).datagrams - before.datagrams + socketDrops(b) >= sent;
    await waitFor(came, { describe: `${sent} altered datagrams counted` });
    t.is(await delivered(world.b), before.delivered);
    const { forged, unknownVersion, noSession, replayed, malformed, overflow } = b.inbound.read(SLOT);
    for (const each of [unknownVersion, noSession, malformed]) t.true(each > 0);
    t.true(forged > sent / 2);
    t.log({ sent, forged, unknownVersion, noSession, replayed, malformed, overflow, said: tunnel.said.b.length });
    t.deepEqual(
      tunnel.said.b.filter(({ kind }) => kind !== 'control' && kind !== 'unknown-session'),
      [],
    );
    // No forgery has taken the place of what was to come.
    const [, right] = await relay(world, { kind: 'replay' });
    await waitFor(async () => (await delivered(world.b)) === before.delivered + right, {
      describe: `${right} packets`,
    });
    await setRelay(world, way.outer, {});
    await assertAlive(t, world, 'after it');
  },
);

test.serial(
  'altered datagrams of a plain tunnel: what reaches a pod has a source of the peer, and all goes on',
  async (t) => {
    const world = await createWorld(t);
    const way = { outer: 'ipv6', carriage: 'whole', encryption: 'none' } as const;
    const tunnel = await openTunnel(t, world, way, { relayed: { records: true } });
    const { b } = tunnel.threads;
    await carrySome(t, world);
    const foreign = await watchSources(world);
    const before = b.inbound.read(SLOT).datagrams;
    const [, sent] = await relay(world, { kind: 'replay', mutants: 2 * mutantsPerDatagram });
    const came = () => b.inbound.read(SLOT).datagrams - before + socketDrops(b) >= sent;
    await waitFor(came, { describe: `${sent} altered datagrams counted` });
    const { malformed, foreignSource, unknownVersion, noSession } = b.inbound.read(SLOT);
    for (const each of [malformed, foreignSource, unknownVersion, noSession]) t.true(each > 0);
    t.log({ sent, malformed, foreignSource, unknownVersion, noSession, said: tunnel.said.b.length });
    t.is(await foreign(), 0);
    t.deepEqual(
      tunnel.said.b.filter(({ kind }) => kind !== 'control'),
      [],
    );
    await assertAlive(t, world, 'after it');
  },
);

for (const encryption of ['aes-gcm', 'chacha20-poly1305'] as const) {
  test.serial(`${encryption}: what was recorded is not delivered again, whatever becomes of the peer`, async (t) => {
    const world = await createWorld(t);
    const way = { outer: 'ipv4', carriage: 'segments', encryption } as const;
    const tunnel = await openTunnel(t, world, way, { relayed: { records: true } });
    const { b } = tunnel.threads;
    await carrySome(t, world);
    const [before, received] = [await delivered(world.b), await world.b.ask<number[]>({ kind: 'received' })];
    const again = async (reason: 'replayed' | 'noSession', when: string): Promise<void> => {
      const refused = b.inbound.read(SLOT)[reason];
      const drops = socketDrops(b);
      const [, sent] = await relay(world, { kind: 'replay' });
      t.true(sent > 100, `${sent} sent`);
      const came = () => b.inbound.read(SLOT)[reason] - refused + socketDrops(b) - drops === sent;
      await waitFor(came, { describe: `${sent} recorded datagrams ${reason} ${when}` });
      t.is(await delivered(world.b), before, when);
    };
    await again('replayed', 'at once');
    await tunnel.enter('b');
    await again('replayed', 'after the peer was entered once more');
    b.remove(SLOT);
    await tunnel.enter('b');
    await again('replayed', 'after it was away');
    const key = someKey(encryption);
    await tunnel.enter('b', { receive: [key] });
    await again('noSession', 'under other keys');
    t.deepEqual(await world.b.ask({ kind: 'received' }), received);
    await tunnel.enter('a', { send: key });
    await assertAlive(t, world, 'under the new key');
  });
}

test.serial('plain data is not taken where encryption is on, nor sealed where it is off', async (t) => {
  const world = await createWorld(t);
  for (const [encryption, encryptionOfB] of [
    ['none', 'aes-gcm'],
    ['aes-gcm', 'none'],
  ] as const) {
    const way = { outer: 'ipv4', carriage: 'segments', encryption } as const;
    const tunnel = await openTunnel(t, world, way, { encryptionOfB });
    const before = await delivered(world.b);
    const ping = (to: string) => world.a.netns.run('ping', '-nc1', '-W1', to);
    await Promise.all(
      families.map((inner) => t.throwsAsync(ping(PLAN.b.inner[inner]), { message: /100% packet loss/ })),
    );
    t.is(tunnel.threads.b.inbound.read(SLOT).noSession, 2);
    t.is(await delivered(world.b), before);
    await tunnel.stop();
  }
});

/** What a stranger sends: so many datagrams, 64 in one call (UDP_SEGMENT, linux/udp.h). */
async function flood(fd: number, to: IpAddress, count: number): Promise<void> {
  const size = 32;
  setsockoptInt(fd, 17, 103, size);
  const bytes = Buffer.alloc(64 * size, firstByteOf('hello'));
  const address = socketAddress(to, PORT);
  for (let sent = 0; sent < count; sent += 64) {
    trySendDatagramTo(fd, bytes, address);
    if (sent % 1024 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

test.serial(
  'a flood from an unknown address: a stream goes on, peers come and go, and memory stays bounded',
  async (t) => {
    const world = await createWorld(t);
    const tunnel = await openTunnel(t, world, { outer: 'ipv4', carriage: 'segments', encryption: 'none' });
    await carrySome(t, world);
    const to = ip(PLAN.b.outer.ipv4);
    const rss = process.memoryUsage.rss();
    const flooding = flood(openSocket(t, world.r, to), to, 200_000);
    t.is(await world.a.ask({ kind: 'tcp', to: PLAN.b.inner.ipv4, bytes: 2_000_000 }), 2_000_000);
    await tunnel.enter('b');
    await flooding;
    const stranger = tunnel.threads.b.inbound.read(0).stranger;
    const grown = process.memoryUsage.rss() - rss;
    t.log({ stranger, drops: socketDrops(tunnel.threads.b), grownMib: grown / 2 ** 20 });
    t.true(stranger > 10_000 && stranger <= 200_000);
    t.true(grown < 64 * 2 ** 20, `${grown} bytes more`);
    t.deepEqual(tunnel.said.b, []);
    await tunnel.stop();
  },
);

for (const kind of ['hello', 'sealed'] as const) {
  test.serial(`a flood of ${kind} with a peer's address: the main thread hears of few`, async (t) => {
    const world = await createWorld(t);
    const way = { outer: 'ipv4', carriage: 'segments', encryption: 'aes-gcm' } as const;
    const tunnel = await openTunnel(t, world, way, { relayed: {} });
    await assertAlive(t, world, 'at first');
    const bytes = Buffer.alloc(1_200, firstByteOf(kind)).toString('base64');
    const before = tunnel.threads.b.inbound.read(SLOT).datagrams;
    await relay(world, { kind: 'send', side: 1, bytes, count: 5_000 });
    const came = () => tunnel.threads.b.inbound.read(SLOT).datagrams - before + socketDrops(tunnel.threads.b) >= 5_000;
    await waitFor(came, { describe: '5000 datagrams counted' });
    t.true(tunnel.said.b.length > 0 && tunnel.said.b.length < 1_000, `${tunnel.said.b.length} messages`);
    await assertAlive(t, world, 'after it');
  });
}
