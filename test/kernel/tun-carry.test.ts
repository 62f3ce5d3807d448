import test, { type ExecutionContext } from 'ava';
import type { Family } from '../../agent/model/ip.ts';
import { waitFor } from '../support/netns.ts';
import {
  createWorld,
  describeWay,
  innerMtu,
  LINK,
  openTunnel,
  PLAN,
  SLOT,
  type Tunnel,
  type Way,
  type World,
} from '../support/tun-world.ts';

const families = ['ipv4', 'ipv6'] as const;
const carriages = ['segments', 'whole'] as const;
const encryptions = ['none', 'aes-gcm', 'chacha20-poly1305'] as const;
const MEGABYTE = 1_000_000;

/** Around what fits, and up to what UDP takes. */
function sizesAround(mtuBytes: number, inner: Family): readonly number[] {
  const fits = mtuBytes - (inner === 'ipv4' ? 28 : 48);
  return [0, 1, 2, 11, 12, 13, 700, fits - 2, fits - 1, fits, fits + 1, fits + 2, 2 * fits, 9_000, 40_001, 65_000];
}

async function assertPings(t: ExecutionContext, { a }: World, way: Way): Promise<void> {
  const ping = (to: string, size: number, mayBeCut: boolean) =>
    a.netns.run('ping', '-nc1', '-W5', '-M', mayBeCut ? 'dont' : 'do', '-s', String(size), to);
  const pings = families.flatMap((inner) => {
    const fits = innerMtu(way) - (inner === 'ipv4' ? 28 : 48);
    const to = PLAN.b.inner[inner];
    return [ping(to, 56, false), ping(to, fits, false), ping(to, fits + 1, true), ping(to, 60_000, true)];
  });
  for (const each of await Promise.all(pings)) t.regex(each.stdout, / 0% packet loss/, describeWay(way));
}

/** Datagrams and segments of a stream: what super-packets are for. */
async function assertStream(t: ExecutionContext, { a }: World, tunnel: Tunnel, inner: Family): Promise<void> {
  const { way, threads } = tunnel;
  const before = threads.a.outbound.read(SLOT);
  t.is(await a.ask({ kind: 'tcp', to: PLAN.b.inner[inner], bytes: MEGABYTE }), MEGABYTE, describeWay(way));
  const came = () => threads.b.inbound.read(SLOT).packets === threads.a.outbound.read(SLOT).packets;
  await waitFor(came, { describe: `all packets at the other end ${describeWay(way)}` });
  const [sent, received] = [threads.a.outbound.read(SLOT), threads.b.inbound.read(SLOT)];
  t.is(received.datagrams, sent.datagrams, describeWay(way));
  const packets = sent.packets - before.packets;
  const datagrams = sent.datagrams - before.datagrams;
  t.true(packets > MEGABYTE / innerMtu(way), `${packets} packets ${describeWay(way)}`);
  if (way.carriage === 'segments') t.is(datagrams, packets, 'a segment a datagram');
  else t.true(datagrams < packets, `${datagrams} datagrams for ${packets} packets ${describeWay(way)}`);
}

for (const outer of families) {
  test(`packets of both families over ${outer}: every carriage and cipher`, async (t) => {
    const world = await createWorld(t);
    for (const carriage of carriages) {
      for (const encryption of encryptions) {
        const way = { outer, carriage, encryption };
        const tunnel = await openTunnel(t, world, way);
        await assertPings(t, world, way);
        for (const inner of families) {
          const to = PLAN.b.inner[inner];
          const sizes = sizesAround(innerMtu(way), inner);
          t.deepEqual(await world.a.ask({ kind: 'udp', to, sizes }), [], `sizes lost ${describeWay(way)}`);
          await assertStream(t, world, tunnel, inner);
          t.is(await world.b.ask({ kind: 'refused', to: PLAN.a.inner[inner] }), 'ECONNREFUSED', describeWay(way));
        }
        assertNothingDropped(t, tunnel);
        await tunnel.stop();
      }
    }
  });
}

function assertNothingDropped(t: ExecutionContext, { threads, way, said }: Tunnel): void {
  for (const side of ['a', 'b'] as const) {
    const { packets, bytes, datagrams, ...outbound } = threads[side].outbound.read(SLOT);
    const { packets: _packets, bytes: _bytes, datagrams: _datagrams, ...inbound } = threads[side].inbound.read(SLOT);
    t.true(packets > 0 && bytes > 0 && datagrams > 0);
    for (const [reason, count] of Object.entries({ ...outbound, ...inbound })) {
      t.is(count, 0, `${reason} at ${side} ${describeWay(way)}`);
    }
    t.deepEqual(said[side], []);
  }
}

test('without super-packets a datagram is a packet, in both carriages', async (t) => {
  const world = await createWorld(t);
  for (const { netns } of [world.a, world.b]) await netns.run('ip', 'link', 'set', LINK, 'gso_max_segs', '1');
  for (const carriage of carriages) {
    const tunnel = await openTunnel(t, world, { outer: 'ipv4', carriage, encryption: 'none' });
    for (const inner of families) {
      t.is(await world.a.ask({ kind: 'tcp', to: PLAN.b.inner[inner], bytes: MEGABYTE }), MEGABYTE);
    }
    const { packets, datagrams } = tunnel.threads.a.outbound.read(SLOT);
    t.is(datagrams, packets);
    t.true(packets > (2 * MEGABYTE) / 1460);
    assertNothingDropped(t, tunnel);
    await tunnel.stop();
  }
});
