/**
 * What programs at the socket make of real connections, in a namespace and a cgroup of their own. One test after the other,
 * as each has two or three processes.
 */
import { setTimeout as delay } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import type { Entries } from '../../agent/kernel/bpf/commands.ts';
import type { BpfLane } from '../../agent/kernel/bpf/lane.ts';
import type { CounterName } from '../../agent/kernel/bpf/layout.ts';
import type { BpfMap } from '../../agent/kernel/bpf/map.ts';
import { netnsCookie, withFd } from '../../agent/kernel/libc.ts';
import { type Family, families, type IpAddress } from '../../agent/model/ip.ts';
import type { Caller } from '../support/caller.ts';
import {
  createEbpfNode,
  type EbpfNode,
  frontendOf,
  program,
  SERVER_PORT,
  SERVERS,
  setOf,
  VIPS,
} from '../support/ebpf-node.ts';
import { connect, createNetns } from '../support/netns.ts';
import type { Call } from '../support/socket-caller.ts';

const MANNERS = ['tcp', 'udp', 'udp-connected'] as const;
const protocolOf = (how: Call['how']) => (how === 'tcp' ? 'TCP' : 'UDP');

interface Scene {
  readonly node: EbpfNode;
  readonly lane: BpfLane;
  readonly caller: Caller;
}

async function open(t: ExecutionContext): Promise<Scene> {
  const node = await createEbpfNode(t);
  return { node, lane: node.openLane(), caller: await node.caller() };
}

/** The frontends of the VIP for both protocols. */
const bothOf = (family: Family, fields: Parameters<typeof frontendOf>[1]) =>
  (['TCP', 'UDP'] as const).map((protocol) => frontendOf(family, { ...fields, protocol }));

async function answersOf(caller: Caller, call: Call, times: number): Promise<ReadonlySet<string | undefined>> {
  const seen = new Set<string | undefined>();
  for (let i = 0; i < times; i++) {
    const { from, error } = await caller.call(call);
    seen.add(error ?? from);
  }
  return seen;
}

async function firstEntry(map: BpfMap): Promise<Required<Entries>> {
  const found: Required<Entries>[] = [];
  const first = (buffer: Buffer, bytes: number) => Buffer.from(buffer.subarray(0, bytes));
  await map.read(({ keys, values }) => {
    found.push({ keys: first(keys, map.keyBytes), values: first(values, map.valueBytes), count: 1 });
  }, AbortSignal.timeout(10_000));
  return found[0] as Required<Entries>;
}

/** By how much counters went up. */
async function counted(lane: BpfLane, work: () => Promise<unknown>): Promise<(name: CounterName) => number> {
  const before = lane.counters();
  await work();
  const after = lane.counters();
  return (name) => Number(after[name] - before[name]);
}

for (const { family } of families) {
  const vip = VIPS[family];

  for (const how of MANNERS) {
    test.serial(`${family} ${how}: every backend is reached, and whoever asks sees the Service`, async (t) => {
      const { lane, caller } = await open(t);
      const set = setOf(family, 0, 1, 2);
      await program(lane, {
        sets: [set],
        frontends: [frontendOf(family, { target: set.id, protocol: protocolOf(how) })],
      });
      const seen = new Set<string | undefined>();
      const count = await counted(lane, async () => {
        for (let i = 0; i < 40; i++) {
          const { from, peer, error } = await caller.call({ how, ip: vip, port: 80 });
          t.is(error, undefined);
          t.is(peer, `${vip} 80`);
          seen.add(from);
        }
      });
      t.deepEqual([...seen].sort(), [...SERVERS[family]]);
      t.is(count('translated'), 40);
      t.is(count('no-backend') + count('changed-meanwhile') + count('not-remembered'), 0);
    });
  }

  test.serial(
    `${family}: what has no backend, and unknown ports of a known address, are refused at once`,
    async (t) => {
      const { lane, caller } = await open(t);
      const any = frontendOf(family, { port: 0, protocol: 'any' });
      const dropped = bothOf(family, { port: 81, target: 'drop' });
      await program(lane, { frontends: [...bothOf(family, {}), ...dropped, any] });
      for (const [port, counter] of [
        [80, 'refused'],
        [81, 'refused'],
        [7, 'refused-port'],
      ] as const) {
        for (const how of MANNERS) {
          const count = await counted(lane, async () =>
            t.is((await caller.call({ how, ip: vip, port })).error, 'ECONNREFUSED', `${how} ${port}`),
          );
          t.is(count(counter), 1, `${how} ${port}`);
        }
      }
    },
  );

  test.serial(`${family}: what is no Service is left alone, and so is what only packets can judge`, async (t) => {
    const { lane, caller } = await open(t);
    const set = setOf(family, 1);
    const guarded = bothOf(family, {
      target: set.id,
      sourceRanges: [],
      ip: SERVERS[family][0] as IpAddress,
      port: SERVER_PORT,
    });
    await program(lane, { sets: [set], frontends: guarded });
    for (const how of MANNERS) {
      const count = await counted(lane, async () => {
        for (const ip of SERVERS[family].slice(0, 2))
          t.deepEqual(await caller.call({ how, ip, port: SERVER_PORT }), { from: ip, peer: `${ip} ${SERVER_PORT}` });
      });
      t.is(count('passed'), 1);
      t.is(count('not-a-service'), 1);
    }
  });

  test.serial(`${family}: external frontends are none of a socket's business`, async (t) => {
    const { lane, caller } = await open(t);
    const [ip] = SERVERS[family] as [IpAddress];
    await program(lane, { frontends: [frontendOf(family, { scope: 'external', ip, port: SERVER_PORT })] });
    t.is((await caller.call({ how: 'tcp', ip, port: SERVER_PORT })).from, ip);
  });

  test.serial(`${family}: a datagram socket keeps its backend as long as the set has it`, async (t) => {
    const { lane, caller } = await open(t);
    const frontend = (set: ReturnType<typeof setOf>) => [frontendOf(family, { target: set.id, protocol: 'UDP' })];
    const all = setOf(family, 0, 1, 2);
    await program(lane, { sets: [all], frontends: frontend(all) });
    const ask = (socket: string): Call => ({ how: 'udp', ip: vip, port: 80, socket });
    const sockets = Array.from({ length: 12 }, (_, i) => `socket ${i}`);
    const before = new Map<string, string | undefined>();
    for (const socket of sockets) {
      const seen = await answersOf(caller, ask(socket), 5);
      t.is(seen.size, 1, 'one backend a socket');
      before.set(socket, [...seen][0]);
    }
    t.true(new Set(before.values()).size > 1, 'not one for all');
    // The slots of the others move down by one.
    const rest = setOf(family, 1, 2);
    await program(lane, { sets: [rest], frontends: frontend(rest) });
    for (const socket of sockets) {
      const [now, ...more] = await answersOf(caller, ask(socket), 3);
      t.is(more.length, 0);
      const was = before.get(socket);
      if (was === SERVERS[family][0]) t.not(now, was);
      else t.is(now, was);
    }
  });

  test.serial(
    `${family}: affinity holds for a network namespace, over changes of the set, until it is over`,
    async (t) => {
      const { node, lane, caller } = await open(t);
      const other = await createNetns(t, 'pod');
      const isV4 = family === 'ipv4';
      const [near, far] = isV4 ? ['192.0.2.1', '192.0.2.2'] : ['2001:db8::1', '2001:db8::2'];
      const length = isV4 ? '/24' : '/64';
      await connect(
        { netns: node.netns, link: 'pod', addresses: [near + length] },
        { netns: other, link: 'eth0', addresses: [far + length] },
      );
      await other.run('ip', 'route', 'add', 'default', 'via', near as string);
      const pod = await node.caller(other);
      const frontends = (set: ReturnType<typeof setOf>, affinitySeconds: number) =>
        bothOf(family, { target: set.id, affinitySeconds });
      const all = setOf(family, 0, 1, 2);
      await program(lane, { sets: [all], frontends: frontends(all, 3600) });
      const kept = new Map<Caller, string | undefined>();
      for (const who of [caller, pod]) {
        const seen = await answersOf(who, { how: 'tcp', ip: vip, port: 80 }, 15);
        t.is(seen.size, 1);
        kept.set(who, [...seen][0]);
      }
      const mine = kept.get(caller);
      const others = [0, 1, 2].filter((i) => SERVERS[family][i] !== mine);
      const withMine = setOf(family, SERVERS[family].indexOf(mine as IpAddress), others[1] as number);
      await program(lane, { sets: [withMine], frontends: frontends(withMine, 3600) });
      t.deepEqual([...(await answersOf(caller, { how: 'tcp', ip: vip, port: 80 }, 10))], [mine]);
      const without = setOf(family, ...others);
      await program(lane, { sets: [without], frontends: frontends(without, 1) });
      const moved = await answersOf(caller, { how: 'tcp', ip: vip, port: 80 }, 10);
      t.is(moved.size, 1);
      t.false(moved.has(mine));
      const within = await counted(lane, () => caller.call({ how: 'tcp', ip: vip, port: 80 }));
      t.is(within('affinity'), 1);
      await delay(1100);
      const after = await counted(lane, () => caller.call({ how: 'tcp', ip: vip, port: 80 }));
      t.is(after('affinity'), 0);
      // Another frontend of the same client knows nothing of it, and remembers its own.
      t.is((await answersOf(caller, { how: 'udp', ip: vip, port: 80 }, 5)).size, 1);
    },
  );

  test.serial(`${family}: in scope host only the node's own sockets are translated`, async (t) => {
    const { node, lane, caller } = await open(t);
    const other = await createNetns(t, 'pod');
    const pod = await node.caller(other);
    await program(lane, { frontends: [frontendOf(family)] });
    lane.writeSettings({ hostNetns: withFd(node.netns.path, (fd) => netnsCookie(fd)) });
    const call = { how: 'tcp', ip: vip, port: 80 } as const;
    t.is((await caller.call(call)).error, 'ECONNREFUSED');
    const count = await counted(lane, async () => t.is((await pod.call(call)).error, 'ENETUNREACH'));
    t.is(count('other-netns'), 1);
    lane.writeSettings({});
    t.is((await pod.call(call)).error, 'ECONNREFUSED');
  });

  test.serial(`${family}: a set that is not there is refused, not guessed`, async (t) => {
    const { lane, caller } = await open(t);
    const set = setOf(family, 0);
    await program(lane, { sets: [set], frontends: [frontendOf(family, { target: set.id })] });
    // As it looks for a moment to a program that read the frontend before it was switched.
    const driver = lane.drivers['backend-set'];
    await driver.apply(
      [{ action: 'remove', kind: 'backend-set', key: `backend-set ${set.id}`, from: set }],
      AbortSignal.timeout(10_000),
    );
    const count = await counted(lane, async () =>
      t.is((await caller.call({ how: 'tcp', ip: vip, port: 80 })).error, 'ECONNREFUSED'),
    );
    t.is(count('no-backend'), 1);
    t.is(count('changed-meanwhile'), 4);
  });
}

for (const map of ['frontends', 'backends'] as const) {
  test.serial(`an entry of ${map} that does not bear its seal is not believed`, async (t) => {
    const { lane, caller } = await open(t);
    const set = setOf('ipv4', 0);
    await program(lane, { sets: [set], frontends: [frontendOf('ipv4', { target: set.id })] });
    const { keys, values, count } = await firstEntry(lane.maps[map]);
    for (let at = 0; at < values.length; at += 4) {
      const kept = values.readUInt32LE(at);
      values.writeUInt32LE((kept ^ 0x80000000) >>> 0, at);
      lane.maps[map].update({ keys, values, count });
      const counts = await counted(lane, async () =>
        t.is((await caller.call({ how: 'tcp', ip: VIPS.ipv4, port: 80 })).error, 'ECONNREFUSED', `word ${at / 4}`),
      );
      t.is(counts('no-backend'), 1, `word ${at / 4}`);
      values.writeUInt32LE(kept, at);
    }
    lane.maps[map].update({ keys, values, count });
    t.is((await caller.call({ how: 'tcp', ip: VIPS.ipv4, port: 80 })).from, SERVERS.ipv4[0]);
  });
}

for (const how of MANNERS) {
  test.serial(`${how}: a socket of IPv6 reaches a Service of IPv4 by its mapped address`, async (t) => {
    const { lane, caller } = await open(t);
    const set = setOf('ipv4', 1);
    const [frontends, ip] = [bothOf('ipv4', { target: set.id }), `::ffff:${VIPS.ipv4}`];
    await program(lane, { sets: [set], frontends });
    t.deepEqual(await caller.call({ how, ip, port: 80 }), { from: SERVERS.ipv4[1] as string, peer: `${ip} 80` });
    await program(lane, { frontends: bothOf('ipv4', {}) });
    t.is((await caller.call({ how, ip, port: 80 })).error, 'ECONNREFUSED');
  });
}

test.serial('both families of a Service are independent of each other', async (t) => {
  const { lane, caller } = await open(t);
  const set = setOf('ipv6', 2);
  await program(lane, { sets: [set], frontends: [frontendOf('ipv4'), frontendOf('ipv6', { target: set.id })] });
  t.is((await caller.call({ how: 'tcp', ip: VIPS.ipv4, port: 80 })).error, 'ECONNREFUSED');
  t.is((await caller.call({ how: 'tcp', ip: VIPS.ipv6, port: 80 })).from, SERVERS.ipv6[2]);
});
