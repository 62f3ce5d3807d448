/** Whether this node reaches the others, on the underlay and in the pod network, with small and with full packets. */

import type { Config } from '../config.ts';
import { type Probe, type ProbeAnswer, sendProbes } from '../kernel/probe.ts';
import type { Node } from '../model/cluster.ts';
import { type Family, familyOf, type IpAddress } from '../model/ip.ts';
import { BACKENDS } from '../plan/backends.ts';
import { findLosses, heldCidrs } from '../plan/claims.ts';
import { nodeIpOf, type Underlay, underlayIpOf } from '../plan/underlay.ts';

/** What one address of a peer said. */
export interface EndReach {
  readonly ip: IpAddress;
  readonly small: ProbeAnswer;
  /** Size of the full probe, in bytes of the whole IP packet. */
  readonly fullBytes: number;
  /** Absent when the small one was not answered. */
  readonly full?: ProbeAnswer;
  /** After a full one that vanished: the largest that was answered. */
  readonly passesBytes?: number;
}

export interface PodReach extends EndReach {
  /** Full UDP datagrams to a closed port, with and (IPv4) without a checksum. */
  readonly udp?: ProbeAnswer;
  readonly udpUnchecked?: ProbeAnswer;
}

export interface PeerReach {
  readonly name: string;
  /** The tunnel's far end, or the next hops of plain routes. */
  readonly underlay: readonly EndReach[];
  /** The peer's own addresses in the pod network; none without a tunnel. */
  readonly pods: readonly PodReach[];
  /** What a datagram to the tunnel port was answered, where an address in the pod network was silent. */
  readonly port?: ProbeAnswer;
  /** What one to the port of another backend was answered then, by the backend: closed nearly everywhere. */
  readonly otherPorts?: ReadonlyMap<string, ProbeAnswer>;
}

export interface Reach {
  readonly peers: readonly PeerReach[];
  /** How many Nodes there are besides this one and those that were asked. */
  readonly unasked: number;
}

/** A larger cluster is judged by a part of it, always the same. */
const MAX_PEERS = 200;
/** Those for which the size that passes is searched. */
const MAX_SEARCHES = 16;
const SMALL_BYTES = 84;
const TIMEOUT_MS = 800;
/** Where traceroute knocks: closed nearly everywhere, and often let through. */
const CLOSED_PORT = 33_434;

export async function readReach(
  nodes: ReadonlyMap<string, Node>,
  underlay: Underlay,
  config: Config,
  signal: AbortSignal,
): Promise<Reach> {
  const others = [...nodes.values()].filter(({ name }) => name !== config.nodeName);
  const asked = others.sort((a, b) => (a.name < b.name ? -1 : 1)).slice(0, MAX_PEERS);
  const losses = findLosses(nodes.values());
  const peers = asked.map((node) => ({
    name: node.name,
    underlay: underlayEnds(node, underlay, config),
    pods: underlay.tunnel ? podEnds(heldCidrs(node, losses), underlay) : [],
  }));
  const underlays = await probeEnds(
    peers.flatMap((peer) => peer.underlay),
    signal,
  );
  const pods = await probeUdp(
    await probeEnds(
      peers.flatMap((peer) => peer.pods),
      signal,
    ),
    signal,
  );
  const joined = peers.map(({ name, ...ends }) => ({
    name,
    underlay: ends.underlay.map(({ ip }) => underlays.get(ip) as EndReach),
    pods: ends.pods.map(({ ip }) => pods.get(ip) as PodReach),
  }));
  return { peers: await knock(joined, config, signal), unasked: others.length - asked.length };
}

type End = Pick<EndReach, 'ip' | 'fullBytes'>;

/** The packets of the tunnel as the underlay sees them, without their Ethernet header; plain routes carry them as they are. */
function underlayEnds(node: Node, { tunnel, mtuBytes, podNetworks }: Underlay, config: Config): readonly End[] {
  const overheadBytes = (family: Family) => BACKENDS[config.backend].overheadBytes?.(family, config) ?? 0;
  const used = tunnel ? [tunnel.family] : podNetworks.map(({ family }) => family);
  return [...new Set(used)].flatMap((family) => {
    const ip = underlayIpOf(node, family);
    return ip ? [{ ip, fullBytes: mtuBytes + overheadBytes(family) }] : [];
  });
}

function podEnds(cidrs: Node['podCidrs'], { podNetworks, mtuBytes }: Underlay): readonly End[] {
  const used = cidrs.filter((cidr) => podNetworks.some(({ family }) => family === familyOf(cidr)));
  return used.flatMap((cidr) => nodeIpOf(cidr) ?? []).map((ip) => ({ ip, fullBytes: mtuBytes }));
}

const isAnswered = (answer: ProbeAnswer | undefined): boolean => answer?.kind === 'answered';

/** Small ones first; only who answers them is asked with full ones. */
async function probeEnds(ends: readonly End[], signal: AbortSignal): Promise<ReadonlyMap<IpAddress, EndReach>> {
  const echo = (bytesOf: (end: End) => number, asked: readonly End[]) =>
    askTwice(asked, ({ ip, ...end }) => ({ to: ip, bytes: bytesOf({ ip, ...end }), kind: 'echo' }), signal);
  const small = await echo(() => SMALL_BYTES, ends);
  const answering = ends.filter((end) => isAnswered(small.get(end)));
  const full = await echo(({ fullBytes }) => fullBytes, answering);
  const vanished = answering.filter((end) => full.get(end)?.kind === 'silent').slice(0, MAX_SEARCHES);
  const passes = await searchSizes(vanished, signal);
  return new Map(
    ends.map((end) => {
      const [answer, passesBytes] = [full.get(end), passes.get(end)];
      const reach = { ...end, small: small.get(end) as ProbeAnswer };
      return [end.ip, { ...reach, ...(answer && { full: answer }), ...(passesBytes !== undefined && { passesBytes }) }];
    }),
  );
}

/** One packet may be lost: who is silent is asked once more. */
async function askTwice<T>(
  asked: readonly T[],
  probeOf: (each: T) => Probe,
  signal: AbortSignal,
): Promise<ReadonlyMap<T, ProbeAnswer>> {
  const answers = new Map<T, ProbeAnswer>();
  for (let attempt = 1; attempt <= 2; attempt++) {
    const open = asked.filter((each) => (answers.get(each)?.kind ?? 'silent') === 'silent');
    if (open.length === 0) break;
    const found = await sendProbes(open.map(probeOf), TIMEOUT_MS, signal);
    for (const [i, each] of open.entries()) answers.set(each, found[i] as ProbeAnswer);
  }
  return answers;
}

/** Halves the interval for all of them at once. */
async function searchSizes(ends: readonly End[], signal: AbortSignal): Promise<ReadonlyMap<End, number>> {
  const ranges = new Map(ends.map((end) => [end, { passes: SMALL_BYTES, fails: end.fullBytes }]));
  for (;;) {
    const open = [...ranges].filter(([, { passes, fails }]) => fails - passes > 1);
    if (open.length === 0) return new Map([...ranges].map(([end, { passes }]) => [end, passes]));
    const probes = open.map(
      ([{ ip }, { passes, fails }]): Probe => ({ to: ip, bytes: (passes + fails) >> 1, kind: 'echo' }),
    );
    const answers = await sendProbes(probes, TIMEOUT_MS, signal);
    for (const [i, [, range]] of open.entries()) {
      const middle = (range.passes + range.fails) >> 1;
      if (isAnswered(answers[i])) range.passes = middle;
      else range.fails = middle;
    }
  }
}

async function probeUdp(
  ends: ReadonlyMap<IpAddress, EndReach>,
  signal: AbortSignal,
): Promise<ReadonlyMap<IpAddress, PodReach>> {
  const whole = [...ends.values()].filter(({ full }) => isAnswered(full));
  const ask = (kind: Probe['kind'], port: number, asked: readonly EndReach[]) =>
    askTwice(asked, ({ ip, fullBytes }) => ({ to: ip, bytes: fullBytes, kind, port }), signal);
  const udp = await ask('udp', CLOSED_PORT, whole);
  const silent = whole.filter((end) => udp.get(end)?.kind === 'silent' && familyOf(end.ip) === 'ipv4');
  const unchecked = await ask('udp-unchecked', CLOSED_PORT + 1, silent);
  return new Map(
    [...ends].map(([ip, end]) => {
      const [checked, other] = [udp.get(end), unchecked.get(end)];
      return [ip, { ...end, ...(checked && { udp: checked }), ...(other && { udpUnchecked: other }) }];
    }),
  );
}

/** An open tunnel port is silent; a closed one, and a firewall that rejects, say so. */
async function knock(peers: readonly PeerReach[], config: Config, signal: AbortSignal): Promise<readonly PeerReach[]> {
  const silent = peers.filter(({ pods }) => pods.length > 0 && pods.every(({ small }) => !isAnswered(small)));
  const own = await knockAt(silent, BACKENDS[config.backend].tunnel?.(config).port, signal);
  // Where the own port is closed, another one may be open.
  const closed = silent.filter((peer) => isAnswered(own.get(peer)));
  const others = Object.values(BACKENDS).filter(({ name, tunnel }) => tunnel && name !== config.backend);
  const found = await Promise.all(
    others.map(async ({ name, tunnel }) => [name, await knockAt(closed, tunnel?.(config).port, signal)] as const),
  );
  return peers.map((peer) => {
    const port = own.get(peer);
    const answers = found.flatMap(([name, answered]) => {
      const answer = answered.get(peer);
      return answer ? [[name, answer] as const] : [];
    });
    return { ...peer, ...(port && { port }), ...(answers.length > 0 && { otherPorts: new Map(answers) }) };
  });
}

async function knockAt(
  peers: readonly PeerReach[],
  port: number | undefined,
  signal: AbortSignal,
): Promise<ReadonlyMap<PeerReach, ProbeAnswer>> {
  const asked = port === undefined ? [] : peers.filter(({ underlay }) => underlay[0] !== undefined);
  return askTwice(
    asked,
    ({ underlay }): Probe => ({
      to: (underlay[0] as EndReach).ip,
      bytes: SMALL_BYTES,
      kind: 'udp',
      port: port as number,
    }),
    signal,
  );
}

/** An answer in words, for evidence. */
export function describeAnswer(answer: ProbeAnswer | undefined): string {
  switch (answer?.kind) {
    case undefined:
      return 'not asked';
    case 'answered':
      return 'answered';
    case 'silent':
      return 'no answer';
    case 'too-big':
      return answer.by === undefined
        ? 'too big for the link of this host'
        : `too big, says ${answer.by}: at most ${answer.mtuBytes} bytes`;
    case 'unreachable':
      return `${answer.by} says: ${answer.code < 0 ? 'time exceeded' : `unreachable, code ${answer.code}`}`;
    case 'not-sent':
      return answer.error.message;
    default:
      return answer satisfies never;
  }
}
