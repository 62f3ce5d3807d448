/**
 * Two namespaces a and b with a router between them, each with the device of a tunnel, and the threads that carry its packets: the
 * data path on a real kernel, without agents. A pod is played by the namespace itself, by an address on the device.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { getsockopt, inNetns } from '../../agent/kernel/libc.ts';
import { tunsOf } from '../../agent/kernel/netlink/tun.ts';
import { socketAddress } from '../../agent/kernel/socket-address.ts';
import type { SessionKey } from '../../agent/kernel/tun/cipher.ts';
import type { FromThread } from '../../agent/kernel/tun/messages.ts';
import type { PeerEntry } from '../../agent/kernel/tun/peers.ts';
import { Threads } from '../../agent/kernel/tun/threads.ts';
import { SEAL_BYTES } from '../../agent/kernel/tun/wire.ts';
import { bytesOf, type Family, networkOf, prefixLengthOf } from '../../agent/model/ip.ts';
import type { TunCarriage, TunEncryption } from '../../agent/model/items.ts';
import { cidr, ip } from './cluster-values.ts';
import { connect, createNetns, type Netns } from './netns.ts';
import type { EndAnswer, EndRequest } from './tun-end.ts';
import type { RelayOptions, RelayRequest } from './tun-relay.ts';

export const LINK = 'tulle-tun';
export const PORT = 8285;
/** The place of the one peer in the tables of counters. */
export const SLOT = 1;

type ByFamily = Readonly<Record<Family, string>>;

interface Plan {
  readonly outer: ByFamily;
  readonly router: ByFamily;
  readonly inner: ByFamily;
  readonly prefixes: ByFamily;
}

export const PLAN: Readonly<Record<'a' | 'b', Plan>> = {
  a: {
    outer: { ipv4: '192.0.2.1', ipv6: '2001:db8:a::1' },
    router: { ipv4: '192.0.2.254', ipv6: '2001:db8:a::fe' },
    inner: { ipv4: '10.84.1.1', ipv6: 'fd84:0:0:1::1' },
    prefixes: { ipv4: '10.84.1.0/24', ipv6: 'fd84:0:0:1::/64' },
  },
  b: {
    outer: { ipv4: '198.51.100.1', ipv6: '2001:db8:b::1' },
    router: { ipv4: '198.51.100.254', ipv6: '2001:db8:b::fe' },
    inner: { ipv4: '10.84.2.1', ipv6: 'fd84:0:0:2::1' },
    prefixes: { ipv4: '10.84.2.0/24', ipv6: 'fd84:0:0:2::/64' },
  },
};
const OTHER = { a: 'b', b: 'a' } as const;

/** A namespace with a program in it that answers and calls. */
export interface Place {
  readonly netns: Netns;
  readonly netnsFd: number;
  ask<T>(request: EndRequest): Promise<T>;
}

export interface World {
  readonly a: Place;
  readonly b: Place;
  readonly r: Place;
}

export async function createWorld(t: ExecutionContext): Promise<World> {
  const [a, r, b] = await Promise.all([createNetns(t, 'a'), createNetns(t, 'r'), createNetns(t, 'b')]);
  const join = (side: 'a' | 'b', netns: Netns) =>
    connect(
      { netns, link: 'up0', addresses: withLengths(PLAN[side].outer) },
      { netns: r, link: `to-${side}`, addresses: withLengths(PLAN[side].router) },
    );
  await Promise.all([join('a', a), join('b', b)]);
  await r.run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1');
  const world = { a: await openPlace(t, a), b: await openPlace(t, b), r: await openPlace(t, r) };
  for (const side of ['a', 'b'] as const) {
    const { outer, router, inner } = PLAN[side];
    const there = PLAN[OTHER[side]];
    tunsOf(world[side].netnsFd).create(LINK);
    await world[side].netns.feed(
      [
        `route add default via ${router.ipv4} src ${outer.ipv4}`,
        `route add ::/0 via ${router.ipv6}`,
        `address add ${inner.ipv4}/32 dev ${LINK}`,
        `address add ${inner.ipv6}/128 dev ${LINK} nodad`,
        `link set ${LINK} up`,
        `route add ${there.prefixes.ipv4} dev ${LINK} src ${inner.ipv4}`,
        `route add ${there.prefixes.ipv6} dev ${LINK} src ${inner.ipv6}`,
      ].join('\n'),
      'ip',
      '-batch',
      '-',
    );
  }
  return world;
}

const withLengths = ({ ipv4, ipv6 }: ByFamily): readonly string[] => [`${ipv4}/24`, `${ipv6}/64`];

async function openPlace(t: ExecutionContext, netns: Netns): Promise<Place> {
  const program = fileURLToPath(new URL('./tun-end.ts', import.meta.url));
  const netnsFd = openSync(netns.path, 'r');
  t.teardown(() => closeSync(netnsFd));
  const child = spawn('ip', ['netns', 'exec', netns.name, process.execPath, program], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  t.teardown(async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  });
  await once(child, 'message', { signal: AbortSignal.timeout(20_000) });
  return { netns, netnsFd, ask: askerOf(child) };
}

function askerOf(child: ChildProcess): Place['ask'] {
  let last = 0;
  const waiting = new Map<number, (answer: EndAnswer) => void>();
  child.on('message', (answer: EndAnswer) => {
    waiting.get(answer.number)?.(answer);
    waiting.delete(answer.number);
  });
  return async <T>(request: EndRequest): Promise<T> => {
    const number = ++last;
    const { promise, resolve } = Promise.withResolvers<EndAnswer>();
    waiting.set(number, resolve);
    child.send({ number, request });
    const { value, error } = await promise;
    if (error !== undefined) throw new Error(`cannot ${request.kind} from ${child.spawnargs.at(3)}: ${error}`);
    return value as T;
  };
}

export interface Way {
  readonly outer: Family;
  readonly carriage: TunCarriage;
  readonly encryption: TunEncryption;
}

export const describeWay = ({ outer, carriage, encryption }: Way): string =>
  `over ${outer}, ${carriage}, encryption ${encryption}`;

/** What a packet of the device may have on links of 1500 bytes. */
export const innerMtu = ({ outer, encryption }: Way, linkMtu = 1500): number =>
  linkMtu - (outer === 'ipv4' ? 20 : 40) - 8 - 12 - (encryption === 'none' ? 0 : SEAL_BYTES);

/** Threads in both namespaces. */
export interface Tunnel {
  readonly way: Way;
  readonly threads: { readonly a: Threads; readonly b: Threads };
  /** What the threads said. */
  readonly said: { readonly a: FromThread[]; readonly b: FromThread[] };
  /** Tells one side about its peer, with changes. */
  enter(side: 'a' | 'b', more?: Partial<PeerEntry>): Promise<void>;
  stop(): Promise<void>;
}

export interface TunnelOptions {
  /** Each side takes the router for its peer; see tun-relay.ts. */
  readonly relayed?: Omit<RelayOptions, 'port' | 'sides'>;
  /** What b does, other than a. */
  readonly encryptionOfB?: TunEncryption;
}

export const someKey = (encryption: TunEncryption): SessionKey => ({
  id: randomBytes(4).readUInt32BE(),
  cipher: encryption === 'aes-gcm' ? 'aes-256-gcm' : 'chacha20-poly1305',
  key: randomBytes(32),
  salt: randomBytes(4),
});

/** Opens the threads, and enters peers that have agreed. Stopped at the end of the test, if not before. */
export async function openTunnel(
  t: ExecutionContext,
  world: World,
  way: Way,
  { relayed, encryptionOfB = way.encryption }: TunnelOptions = {},
): Promise<Tunnel> {
  const { outer, carriage, encryption } = way;
  const said = { a: [] as FromThread[], b: [] as FromThread[] };
  const mtu = String(innerMtu(way));
  await Promise.all([world.a, world.b].map(({ netns }) => netns.run('ip', 'link', 'set', LINK, 'mtu', mtu)));
  const open = (side: 'a' | 'b'): Threads => {
    const local = ip(PLAN[side].outer[outer]);
    const item = { link: LINK, local, port: PORT, carriage, encryption: side === 'a' ? encryption : encryptionOfB };
    return inNetns(world[side].netnsFd, () => new Threads({ item, onMessage: (message) => said[side].push(message) }));
  };
  const threads = { a: open('a'), b: open('b') };
  let stopped: Promise<unknown> | undefined;
  const stop = async (): Promise<void> => {
    stopped ??= Promise.all([threads.a.stop(), threads.b.stop()]);
    await stopped;
  };
  t.teardown(stop);
  const keys = { a: someKey(encryption), b: someKey(encryption) };
  const entryOf = (side: 'a' | 'b'): PeerEntry => {
    const other = OTHER[side];
    const end = relayed ? PLAN[side].router : PLAN[other].outer;
    return {
      slot: SLOT,
      socketAddress: Uint8Array.from(socketAddress(ip(end[outer]), PORT)),
      prefixes: Object.values(PLAN[other].prefixes).map((text) => prefixOf(text)),
      carriage,
      ...(encryption !== 'none' && { send: keys[side], receive: [keys[other]] }),
    };
  };
  const enter: Tunnel['enter'] = async (side, more = {}) => threads[side].enter({ ...entryOf(side), ...more });
  await Promise.all([enter('a'), enter('b')]);
  if (relayed) await setRelay(world, outer, relayed);
  return { way, threads, said, enter, stop };
}

export const prefixOf = (text: string): PeerEntry['prefixes'][number] => ({
  bytes: bytesOf(networkOf(cidr(text))),
  length: prefixLengthOf(cidr(text)),
});

/** Another relay in the place of the former, if there was one. */
export function setRelay({ r }: World, outer: Family, options: NonNullable<TunnelOptions['relayed']>): Promise<void> {
  const sideOf = (side: 'a' | 'b') => ({ own: PLAN[side].router[outer], end: PLAN[side].outer[outer] });
  return r.ask({ kind: 'relay', options: { ...options, port: PORT, sides: [sideOf('a'), sideOf('b')] } });
}

/** Asks the relay. */
export const relay = <T = readonly [toA: number, toB: number]>({ r }: World, request: RelayRequest): Promise<T> =>
  r.ask<T>({ kind: 'relayed', request });

/** SO_MEMINFO and SK_MEMINFO_DROPS (linux/sock_diag.h): what found no room in the socket's queue. */
export function socketDrops({ socketFd }: Threads): number {
  const memory = Buffer.alloc(36);
  getsockopt(socketFd, 1, 55, memory);
  return memory.readUInt32LE(4 * 8);
}

/** Packets that the kernel was given by the device so far, those that it refused left out. */
export async function delivered({ netns }: Place): Promise<number> {
  const { stdout } = await netns.run('cat', `/sys/class/net/${LINK}/statistics/rx_packets`);
  return Number(stdout);
}
