/** The life of the threads: peers that come and go, keys that change, devices that vanish, all of it under traffic. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import type { ExecaError } from 'execa';
import { inNetns } from '../../agent/kernel/libc.ts';
import { Threads } from '../../agent/kernel/tun/threads.ts';
import { ip } from '../support/cluster-values.ts';
import { createNetns, waitFor } from '../support/netns.ts';
import {
  createWorld,
  LINK,
  openTunnel,
  PLAN,
  type Place,
  PORT,
  prefixOf,
  SLOT,
  someKey,
} from '../support/tun-world.ts';

/** A stream over one connection that is not over, however fast it is, before the test is. */
function streaming(from: Place, to: string): { end(): Promise<number> } {
  const bytes = from.ask<number>({ kind: 'tcp-until-done', to });
  bytes.catch(() => {});
  return {
    /** How many bytes came back unchanged. */
    async end() {
      await from.ask({ kind: 'done' });
      return bytes;
    },
  };
}

const plain = { outer: 'ipv4', carriage: 'segments', encryption: 'none' } as const;

test.serial('a peer that is removed and entered again under traffic: the stream goes on', async (t) => {
  const world = await createWorld(t);
  const tunnel = await openTunnel(t, world, plain);
  const { a, b } = tunnel.threads;
  const stream = streaming(world.a, PLAN.b.inner.ipv4);
  const sent = () => a.outbound.read(SLOT).packets;
  await waitFor(() => sent() > 20, { describe: 'traffic' });
  a.remove(SLOT);
  await waitFor(() => a.outbound.read(0).noPeer > 0, { describe: 'packets for nobody' });
  await tunnel.enter('a');
  const before = sent();
  await waitFor(() => sent() > before, { describe: 'traffic to the peer that came back' });
  b.remove(SLOT);
  await waitFor(() => b.inbound.read(0).stranger > 0, { describe: 'datagrams of a stranger' });
  await tunnel.enter('b');
  t.true((await stream.end()) > 0);
});

test.serial('a place in the tables that another peer takes: nothing goes to the former one', async (t) => {
  const world = await createWorld(t);
  const tunnel = await openTunnel(t, world, plain);
  await tunnel.enter('a', { prefixes: [prefixOf('10.84.7.0/24')] });
  const { packets } = tunnel.threads.a.outbound.read(SLOT);
  const { noPeer } = tunnel.threads.a.outbound.read(0);
  await t.throwsAsync(world.a.netns.run('ping', '-nc1', '-W1', PLAN.b.inner.ipv4), { message: /100% packet loss/ });
  t.is(tunnel.threads.a.outbound.read(SLOT).packets, packets);
  // The device itself tells groups of its addresses, when it likes.
  t.true(tunnel.threads.a.outbound.read(0).noPeer > noPeer);
});

for (const encryption of ['aes-gcm', 'chacha20-poly1305'] as const) {
  test.serial(`${encryption}: keys that change under traffic lose nothing`, async (t) => {
    const world = await createWorld(t);
    const tunnel = await openTunnel(t, world, { ...plain, encryption });
    let keys = { a: someKey(encryption), b: someKey(encryption) };
    await Promise.all([
      tunnel.enter('a', { send: keys.a, receive: [keys.b] }),
      tunnel.enter('b', { send: keys.b, receive: [keys.a] }),
    ]);
    const stream = streaming(world.a, PLAN.b.inner.ipv6);
    const sizes = Array.from({ length: 200 }, (_, i) => 6 * i);
    const datagrams = world.b.ask({ kind: 'udp', to: PLAN.a.inner.ipv4, sizes });
    const sent = () => tunnel.threads.a.outbound.read(SLOT).packets;
    for (let round = 0; round < 5; round++) {
      const before = sent();
      await waitFor(() => sent() > before, { describe: 'traffic' });
      const next = { a: someKey(encryption), b: someKey(encryption) };
      // As agents do: what is to come is accepted before it is sent, what was is accepted for a while.
      await Promise.all([
        tunnel.enter('a', { send: keys.a, receive: [next.b, keys.b] }),
        tunnel.enter('b', { send: keys.b, receive: [next.a, keys.a] }),
      ]);
      await Promise.all([
        tunnel.enter('a', { send: next.a, receive: [next.b, keys.b] }),
        tunnel.enter('b', { send: next.b, receive: [next.a, keys.a] }),
      ]);
      keys = next;
    }
    t.true((await stream.end()) > 0);
    t.deepEqual(await datagrams, []);
    for (const { inbound, outbound } of Object.values(tunnel.threads)) {
      const { noSession, forged, replayed, malformed } = inbound.read(SLOT);
      t.deepEqual({ noSession, forged, replayed, malformed }, { noSession: 0, forged: 0, replayed: 0, malformed: 0 });
      t.is(outbound.read(SLOT).noSession, 0);
    }
  });
}

test.serial('without a key nothing leaves; when there is none any more, neither', async (t) => {
  const world = await createWorld(t);
  const tunnel = await openTunnel(t, world, { ...plain, encryption: 'aes-gcm' });
  await tunnel.enter('a', { send: undefined });
  const ping = () => world.a.netns.run('ping', '-nc1', '-W1', PLAN.b.inner.ipv4);
  await t.throwsAsync(ping, { message: /100% packet loss/ });
  t.is(tunnel.threads.a.outbound.read(SLOT).noSession, 1);
  t.is(tunnel.threads.a.outbound.read(SLOT).datagrams, 0);
  await tunnel.enter('a');
  await t.notThrowsAsync(ping);
});

test.serial('a device that is deleted under traffic: told once, nothing spins, the threads end', async (t) => {
  const world = await createWorld(t);
  const tunnel = await openTunnel(t, world, plain);
  const { a } = tunnel.threads;
  // Ends when the test does.
  streaming(world.b, PLAN.a.inner.ipv4);
  await waitFor(() => a.inbound.read(SLOT).packets > 50, { describe: 'traffic' });
  await world.a.netns.run('ip', 'link', 'delete', LINK);
  await waitFor(() => tunnel.said.a.length > 0, { describe: 'what became of the device' });
  t.deepEqual(
    tunnel.said.a.map(({ kind }) => kind),
    ['broken'],
  );
  let sent = -1;
  const isQuiet = (): boolean => {
    const [last, now] = [sent, tunnel.threads.b.outbound.read(SLOT).datagrams];
    sent = now;
    return last === now;
  };
  await waitFor(isQuiet, { describe: 'the end of what the peer still sends' });
  const before = process.cpuUsage();
  // A thread that spins shows by nothing but the processor time that it takes meanwhile.
  await sleep(500);
  const { user, system } = process.cpuUsage(before);
  t.true(user + system < 400_000, `${(user + system) / 1000} ms of CPU in 500 ms`);
  await tunnel.stop();
  t.is(tunnel.said.a.length, 1);
});

test.serial('a device that somebody sets down comes up again: the threads carry on', async (t) => {
  const world = await createWorld(t);
  const tunnel = await openTunnel(t, world, plain);
  await world.a.netns.run('ip', 'link', 'set', LINK, 'down');
  await t.throwsAsync(world.b.netns.run('ping', '-nc1', '-W1', PLAN.a.inner.ipv4));
  await world.a.netns.run('ip', 'link', 'set', LINK, 'up');
  await world.a.netns.run('ip', 'route', 'replace', PLAN.b.prefixes.ipv4, 'dev', LINK, 'src', PLAN.a.inner.ipv4);
  await waitFor(() => tunnel.threads.a.inbound.read(SLOT).datagrams > 0, { describe: 'a datagram' });
  t.is(await world.a.ask({ kind: 'tcp', to: PLAN.b.inner.ipv4, bytes: 100_000 }), 100_000);
  t.deepEqual(tunnel.said.a, []);
});

test.serial('the second one at a device or a port is told who is there, and disturbs nobody', async (t) => {
  const world = await createWorld(t);
  await openTunnel(t, world, plain);
  const open = (local: string, link = LINK) =>
    inNetns(
      world.a.netnsFd,
      () => new Threads({ item: { ...plain, link, local: ip(local), port: PORT }, onMessage: () => {} }),
    );
  t.throws(() => open(PLAN.a.outer.ipv4), { message: /another process has it open/ });
  t.throws(() => open(PLAN.a.outer.ipv4, 'tulle-tux'), { message: /no persistent TUN device/ });
  await world.a.netns.run('ip', 'tuntap', 'add', 'dev', 'tulle-tux', 'mode', 'tun', 'user', '0', 'vnet_hdr');
  t.throws(() => open(PLAN.a.outer.ipv4, 'tulle-tux'), { message: /UDP port 8285 is taken/ });
  t.throws(() => open('192.0.2.77', 'tulle-tux'), { message: /no link of this host has 192\.0\.2\.77/ });
  t.is(await world.a.ask({ kind: 'tcp', to: PLAN.b.inner.ipv4, bytes: 100_000 }), 100_000);
});

test.serial('threads that are stopped under traffic and opened anew: the stream goes on', async (t) => {
  const world = await createWorld(t);
  const first = await openTunnel(t, world, plain);
  const stream = streaming(world.a, PLAN.b.inner.ipv4);
  await waitFor(() => first.threads.a.outbound.read(SLOT).packets > 20, { describe: 'traffic' });
  await first.stop();
  const second = await openTunnel(t, world, plain);
  await waitFor(() => second.threads.a.outbound.read(SLOT).packets > 20, { describe: 'traffic again' });
  t.true((await stream.end()) > 0);
  t.deepEqual(
    [first.said, second.said],
    [
      { a: [], b: [] },
      { a: [], b: [] },
    ],
  );
});

test.serial('a fault of the main thread ends the process, whatever its threads wait for', async (t) => {
  const netns = await createNetns(t);
  await netns.run('ip', 'address', 'add', '192.0.2.1/32', 'dev', 'lo');
  const program = join(import.meta.dirname, '../support/tun-fault.ts');
  const error = await t.throwsAsync(netns.run(process.execPath, program));
  const { exitCode, stderr } = error as ExecaError;
  t.is(exitCode, 1);
  t.regex(String(stderr), /a fault of the main thread/);
});
