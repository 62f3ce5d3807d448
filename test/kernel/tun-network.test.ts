/** What networks do to a tunnel: narrow links, loss, other orders, copies; and the errors that come back. */
import { closeSync } from 'node:fs';
import test from 'ava';
import { inNetns, openInetSocket, sendDatagramTo, setsockoptInt } from '../../agent/kernel/libc.ts';
import { socketAddress } from '../../agent/kernel/socket-address.ts';
import { FAMILIES } from '../../agent/model/ip.ts';
import { ip } from '../support/cluster-values.ts';
import { waitFor } from '../support/netns.ts';
import { UDP_PORT } from '../support/tun-end.ts';
import {
  createWorld,
  describeWay,
  innerMtu,
  openTunnel,
  PLAN,
  type Place,
  relay,
  SLOT,
  type Way,
} from '../support/tun-world.ts';

const families = ['ipv4', 'ipv6'] as const;
const NARROW = 1400;

/** What the kernel learnt about the way to an address. */
async function learntMtu({ netns }: Place, to: string): Promise<number | undefined> {
  const { stdout } = await netns.run('ip', 'route', 'get', to);
  const told = /\bmtu (\d+)/.exec(stdout)?.[1];
  return told === undefined ? undefined : Number(told);
}

for (const outer of families) {
  for (const encryption of ['none', 'aes-gcm'] as const) {
    const way: Way = { outer, carriage: 'segments', encryption };
    test.serial(
      `a narrower link on the way, ${describeWay(way)}: senders learn what fits, streams go on`,
      async (t) => {
        const world = await createWorld(t);
        const tunnel = await openTunnel(t, world, way);
        const stream = async (bytes: number) => {
          for (const inner of families) t.is(await world.a.ask({ kind: 'tcp', to: PLAN.b.inner[inner], bytes }), bytes);
        };
        await stream(100_000);
        await world.r.netns.run('ip', 'link', 'set', 'to-b', 'mtu', String(NARROW));
        await world.b.netns.run('ip', 'link', 'set', 'up0', 'mtu', String(NARROW));
        // b has a route that is too narrow for what it would cut; a is told by the router, and tells the senders.
        await stream(500_000);
        const fits = innerMtu(way, NARROW);
        for (const inner of families) {
          const size = innerMtu(way) - (inner === 'ipv4' ? 28 : 48);
          const to = PLAN.b.inner[inner];
          const said = await world.a.netns
            .run('ping', '-n', '-c3', '-i0.2', '-W1', '-Mdo', '-s', String(size), to)
            .catch((error: { stdout: string; stderr: string }) => error);
          t.regex(said.stdout + said.stderr, new RegExp(`mtu[ :=]+${fits}`), 'the answer of the tunnel');
          t.is(await learntMtu(world.a, to), fits, inner);
        }
        t.is(tunnel.threads.a.pathMtus[SLOT], fits);
        t.is(tunnel.threads.b.pathMtus[SLOT], fits);
        t.true(tunnel.threads.a.outbound.read(SLOT).tooLarge > 0);
        // What may be cut is: within the tunnel where it fits, else by the host around it.
        for (const inner of families) {
          const sizes = [fits - 48, fits - 28, fits, 1_440, 3_000, 30_000];
          t.deepEqual(await world.a.ask({ kind: 'udp', to: PLAN.b.inner[inner], sizes }), [], inner);
        }
        const before = tunnel.threads.a.outbound.read(SLOT);
        await stream(500_000);
        const after = tunnel.threads.a.outbound.read(SLOT);
        t.is(after.tooLarge, before.tooLarge, 'once told, nobody sends what is too large');
        t.is(after.unreachable + after.overflow, 0);
      },
    );
  }
}

test.serial('a narrower link on the way, whole: fragments fit by themselves', async (t) => {
  const world = await createWorld(t);
  await openTunnel(t, world, { outer: 'ipv4', carriage: 'whole', encryption: 'none' });
  await world.r.netns.run('ip', 'link', 'set', 'to-b', 'mtu', String(NARROW));
  await world.b.netns.run('ip', 'link', 'set', 'up0', 'mtu', String(NARROW));
  for (const inner of families) {
    t.is(await world.a.ask({ kind: 'tcp', to: PLAN.b.inner[inner], bytes: 500_000 }), 500_000);
    const call = { kind: 'udp', to: PLAN.b.inner[inner], sizes: [1_300, 1_400, 1_412, 30_000] } as const;
    // That a way is narrow is learnt by what is lost: at this end, and at the other when what is sent arrives there.
    for (const _ of ['a', 'b']) await world.a.ask({ ...call, answerMs: 300 });
    t.deepEqual(await world.a.ask(call), []);
  }
});

const ways: readonly Way[] = [
  { outer: 'ipv4', carriage: 'segments', encryption: 'none' },
  { outer: 'ipv6', carriage: 'segments', encryption: 'chacha20-poly1305' },
  { outer: 'ipv6', carriage: 'whole', encryption: 'aes-gcm' },
];
for (const way of ways) {
  test.serial(`${describeWay(way)}: streams survive loss, copies and another order`, async (t) => {
    const world = await createWorld(t);
    const tunnel = await openTunnel(t, world, way, { relayed: { shuffled: 6, lost: 0.01, doubled: 0.02 } });
    const calls = [world.a, world.b].flatMap((place, i) =>
      families.map((inner) => place.ask({ kind: 'tcp', to: PLAN[i === 0 ? 'b' : 'a'].inner[inner], bytes: 150_000 })),
    );
    t.deepEqual(await Promise.all(calls), [150_000, 150_000, 150_000, 150_000]);
    t.true((await relay<number>(world, { kind: 'count' })) > 100);
    const { replayed, forged, malformed, foreignSource } = tunnel.threads.b.inbound.read(SLOT);
    t.is(forged + malformed + foreignSource, 0);
    if (way.encryption !== 'none') t.true(replayed > 0, 'copies are not delivered twice');
  });
}

test.serial('loss in the network: a stream of super-packets arrives all the same', async (t) => {
  const world = await createWorld(t);
  const lose = ['-m', 'statistic', '--mode', 'random', '--probability', '0.02', '-j', 'DROP'];
  await world.r.netns.run('iptables', '-A', 'FORWARD', ...lose);
  for (const carriage of ['segments', 'whole'] as const) {
    const tunnel = await openTunnel(t, world, { outer: 'ipv4', carriage, encryption: 'none' });
    t.is(await world.a.ask({ kind: 'tcp', to: PLAN.b.inner.ipv6, bytes: 500_000 }), 500_000, carriage);
    await tunnel.stop();
  }
  const { stdout } = await world.r.netns.run('iptables', '-nvxL', 'FORWARD');
  t.true(Number((stdout.split('\n')[2] ?? '').trim().split(/\s+/)[0]) > 0, 'something was lost');
});

/** UDP_SEGMENT (linux/udp.h). */
const segmentsOf = (fd: number, size: number): void => setsockoptInt(fd, 17, 103, size);

test.serial('datagrams that a program sends many at once are one datagram each at the other end', async (t) => {
  const world = await createWorld(t);
  const expected: number[] = [];
  for (const carriage of ['segments', 'whole'] as const) {
    const tunnel = await openTunnel(t, world, { outer: 'ipv4', carriage, encryption: 'none' });
    for (const inner of families) {
      const fd = inNetns(world.a.netnsFd, () => openInetSocket(FAMILIES[inner].addressFamily, 'datagram', 17));
      segmentsOf(fd, 1_111);
      const address = socketAddress(ip(PLAN.b.inner[inner]), UDP_PORT);
      sendDatagramTo(fd, Buffer.alloc(20 * 1_111 + 7, 7), address, { operation: 'send', object: 'test' });
      expected.push(...Array.from({ length: 20 }, () => 1_111), 7);
      const received = () => world.b.ask<number[]>({ kind: 'received' });
      await waitFor(async () => (await received()).length === expected.length, {
        describe: `${expected.length} datagrams`,
      });
      t.deepEqual(await received(), expected);
      closeSync(fd);
    }
    const { packets, datagrams } = tunnel.threads.a.outbound.read(SLOT);
    t.true(packets >= 42);
    if (carriage === 'whole') t.true(datagrams <= packets - 40, `${datagrams} datagrams`);
    await tunnel.stop();
  }
});
