/**
 * Asks other hosts with real packets: ICMP echoes and UDP datagrams of an exact size that nobody may fragment, and whatever
 * comes back about them, from the host itself or from a router on the way (RFC 792, RFC 4443).
 */
import { closeSync } from 'node:fs';
import { FAMILIES, type Family, type FamilyFacts, familyOf, type IpAddress, ipFromBytes } from '../model/ip.ts';
import { KernelError } from './errors.ts';
import { openInetSocket, receiveDatagramFrom, sendDatagramTo, setsockoptInt } from './libc.ts';
import { socketAddress } from './socket-address.ts';

export interface Probe {
  readonly to: IpAddress;
  /** Length of the whole IP packet. */
  readonly bytes: number;
  /**
   * `echo`: an ICMP echo. `udp`: to a port on which, as a rule, nobody listens, so that the host says so. `udp-unchecked`:
   * the same without a checksum, which IPv4 allows (RFC 768).
   */
  readonly kind: 'echo' | 'udp' | 'udp-unchecked';
  /** UDP destination port. No two probes of one call to one host have the same. */
  readonly port?: number;
}

export type ProbeAnswer =
  /** The echo came back, or the host said that the port is closed: the packet arrived, whole and with a right checksum. */
  | { readonly kind: 'answered' }
  /** `by`: the router that cannot pass it on; absent when it is this host. */
  | { readonly kind: 'too-big'; readonly by?: IpAddress; readonly mtuBytes?: number }
  /** Another refusal: ICMP type 3 or ICMPv6 type 1 with this code, or a time exceeded (code -1). */
  | { readonly kind: 'unreachable'; readonly by: IpAddress; readonly code: number }
  /** This host cannot send it. */
  | { readonly kind: 'not-sent'; readonly error: KernelError }
  | { readonly kind: 'silent' };

interface IcmpFacts {
  readonly protocol: 1 | 58;
  readonly echo: number;
  readonly reply: number;
  readonly unreachable: number;
  readonly portCode: number;
  readonly ipHeaderBytes: 20 | 40;
  /** Level and name of the option "may not be fragmented, whatever is known of the path" (linux/in.h, linux/in6.h). */
  readonly pathMtu: readonly [level: number, name: number];
}

const ICMP: Readonly<Record<Family, IcmpFacts>> = {
  ipv4: { protocol: 1, echo: 8, reply: 0, unreachable: 3, portCode: 3, ipHeaderBytes: 20, pathMtu: [0, 10] },
  ipv6: { protocol: 58, echo: 128, reply: 129, unreachable: 1, portCode: 4, ipHeaderBytes: 40, pathMtu: [41, 23] },
};
const PMTUDISC_PROBE = 3;
const UDP = 17;
const ICMP_TIME_EXCEEDED = { ipv4: 11, ipv6: 3 } as const;
const ICMP4_FRAGMENTATION_NEEDED = 4;
const ICMP6_PACKET_TOO_BIG = 2;
const SOL_SOCKET = 1;
const SO_NO_CHECK = 11;
const SO_RCVBUFFORCE = 33;
const HEADER_BYTES = 8;
/** Room for the answers to all probes of one call. */
const RECEIVE_BUFFER_BYTES = 8 << 20;
/** How long an abort may go unheard. */
const SLICE_MS = 200;

/** All at once; the answers in their order. `timeoutMs` counts from the last packet sent. Throws KernelError without CAP_NET_RAW. */
export async function sendProbes(
  probes: readonly Probe[],
  timeoutMs: number,
  signal: AbortSignal,
): Promise<readonly ProbeAnswer[]> {
  const answers = new Map<Probe, ProbeAnswer>();
  const byFamily = Map.groupBy(probes, ({ to }) => familyOf(to));
  await Promise.all(
    [...byFamily].map(([family, ofFamily]) => exchange(FAMILIES[family], ofFamily, answers, timeoutMs, signal)),
  );
  return probes.map((probe) => answers.get(probe) ?? { kind: 'silent' });
}

async function exchange(
  facts: FamilyFacts,
  probes: readonly Probe[],
  answers: Map<Probe, ProbeAnswer>,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<void> {
  using sockets = new Sockets(facts);
  const id = Math.floor(Math.random() * 0x10000);
  for (const [sequence, probe] of probes.entries()) {
    try {
      sockets.send(probe, id, sequence);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      answers.set(probe, error.code === 'EMSGSIZE' ? { kind: 'too-big' } : { kind: 'not-sent', error });
    }
  }
  const end = performance.now() + timeoutMs;
  const from = Buffer.alloc(28);
  const buffer = Buffer.alloc(65_536);
  for (;;) {
    const leftMs = end - performance.now();
    if (leftMs <= 0 || probes.every((probe) => answers.has(probe))) return;
    signal.throwIfAborted();
    const length = await receiveDatagramFrom(sockets.icmp, buffer, from, Math.min(leftMs, SLICE_MS));
    if (length === undefined) continue;
    const message = readIcmp(facts.family, buffer.subarray(0, length), from);
    const answered = message && match(message, probes, id, ICMP[facts.family]);
    if (answered && !answers.has(answered.probe)) answers.set(answered.probe, answered.answer);
  }
}

class Sockets implements Disposable {
  readonly icmp: number;
  readonly #facts: FamilyFacts;
  readonly #udp = new Map<Probe['kind'], number>();

  constructor(facts: FamilyFacts) {
    this.#facts = facts;
    this.icmp = openInetSocket(facts.addressFamily, 'raw', ICMP[facts.family].protocol);
    setsockoptInt(this.icmp, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES);
    this.#forbidFragments(this.icmp);
  }

  send({ to, bytes, kind, port = 0 }: Probe, id: number, sequence: number): void {
    const { ipHeaderBytes } = ICMP[this.#facts.family];
    const payload = Buffer.alloc(Math.max(0, bytes - ipHeaderBytes - HEADER_BYTES), 0x54);
    const what = { operation: 'send', object: `${bytes} bytes to ${to}` };
    if (kind === 'echo') {
      sendDatagramTo(this.icmp, renderEcho(this.#facts.family, id, sequence, payload), socketAddress(to, 0), what);
    } else sendDatagramTo(this.#udpSocket(kind), payload, socketAddress(to, port), what);
  }

  #udpSocket(kind: Probe['kind']): number {
    const known = this.#udp.get(kind);
    if (known !== undefined) return known;
    const fd = openInetSocket(this.#facts.addressFamily, 'datagram', UDP);
    this.#udp.set(kind, fd);
    this.#forbidFragments(fd);
    if (kind === 'udp-unchecked') setsockoptInt(fd, SOL_SOCKET, SO_NO_CHECK, 1);
    return fd;
  }

  #forbidFragments(fd: number): void {
    setsockoptInt(fd, ...ICMP[this.#facts.family].pathMtu, PMTUDISC_PROBE);
  }

  [Symbol.dispose](): void {
    for (const fd of [this.icmp, ...this.#udp.values()]) closeSync(fd);
  }
}

/** The checksum of ICMPv6 covers addresses, and is the kernel's work (RFC 3542 section 3.1). */
function renderEcho(family: Family, id: number, sequence: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header[0] = ICMP[family].echo;
  header.writeUInt16BE(id, 4);
  header.writeUInt16BE(sequence, 6);
  const message = Buffer.concat([header, payload]);
  if (family === 'ipv4') message.writeUInt16BE(checksum(message), 2);
  return message;
}

/** RFC 1071. */
function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += ((bytes[i] as number) << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

interface IcmpMessage {
  readonly family: Family;
  readonly from: IpAddress;
  readonly type: number;
  readonly code: number;
  /** From the type on. */
  readonly bytes: Buffer;
}

/** IPv4 raw sockets hand over the IP header too; IPv6 ones do not, and tell the sender aside. */
function readIcmp(family: Family, packet: Buffer, from: Buffer): IcmpMessage | undefined {
  const headerBytes = family === 'ipv4' ? ((packet[0] ?? 0) & 0xf) * 4 : 0;
  const bytes = packet.subarray(headerBytes);
  if (bytes.length < HEADER_BYTES) return undefined;
  const sender = ipFromBytes(family === 'ipv4' ? from.subarray(4, 8) : from.subarray(8, 24));
  return { family, from: sender, type: bytes[0] as number, code: bytes[1] as number, bytes };
}

function match(
  message: IcmpMessage,
  probes: readonly Probe[],
  id: number,
  facts: IcmpFacts,
): { probe: Probe; answer: ProbeAnswer } | undefined {
  const { type, bytes, from } = message;
  if (type === facts.reply) {
    const probe = bytes.readUInt16BE(4) === id ? probes[bytes.readUInt16BE(6)] : undefined;
    return probe?.to === from && probe.kind === 'echo' ? { probe, answer: { kind: 'answered' } } : undefined;
  }
  const probe = probeIn(bytes.subarray(HEADER_BYTES), probes, id, message.family);
  const answer = probe && refusalOf(message, probe, facts);
  return probe && answer ? { probe, answer } : undefined;
}

/** The probe that an error message quotes. */
function probeIn(quoted: Buffer, probes: readonly Probe[], id: number, family: Family): Probe | undefined {
  const isIpv4 = family === 'ipv4';
  const headerBytes = isIpv4 ? ((quoted[0] ?? 0) & 0xf) * 4 : 40;
  if (quoted.length < headerBytes + HEADER_BYTES) return undefined;
  const protocol = quoted[isIpv4 ? 9 : 6];
  const to = ipFromBytes(isIpv4 ? quoted.subarray(16, 20) : quoted.subarray(24, 40));
  const inner = quoted.subarray(headerBytes);
  if (protocol === UDP) {
    const port = inner.readUInt16BE(2);
    return probes.find((probe) => probe.to === to && probe.kind !== 'echo' && probe.port === port);
  }
  if (protocol !== ICMP[family].protocol || inner.readUInt16BE(4) !== id) return undefined;
  const probe = probes[inner.readUInt16BE(6)];
  return probe?.to === to && probe.kind === 'echo' ? probe : undefined;
}

function refusalOf(
  { type, code, bytes, from, family }: IcmpMessage,
  probe: Probe,
  facts: IcmpFacts,
): ProbeAnswer | undefined {
  if (family === 'ipv4' && type === facts.unreachable && code === ICMP4_FRAGMENTATION_NEEDED)
    return { kind: 'too-big', by: from, mtuBytes: bytes.readUInt16BE(6) };
  if (family === 'ipv6' && type === ICMP6_PACKET_TOO_BIG)
    return { kind: 'too-big', by: from, mtuBytes: bytes.readUInt32BE(4) };
  if (type === facts.unreachable) {
    const isClosedPort = probe.kind !== 'echo' && code === facts.portCode && from === probe.to;
    return isClosedPort ? { kind: 'answered' } : { kind: 'unreachable', by: from, code };
  }
  return type === ICMP_TIME_EXCEEDED[family] ? { kind: 'unreachable', by: from, code: -1 } : undefined;
}
