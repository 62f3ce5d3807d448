/**
 * From the peers to the TUN device. The kernel hands over neighbouring datagrams of one peer as one (UDP_GRO); those that are
 * segments of one super-packet are written as one super-packet again, from where they lie.
 */
import { bare, errnoOfLastCall } from '../libc.ts';
import { Opener } from './cipher.ts';
import { type Counters, INBOUND } from './counters.ts';
import { type Arena, arena, Iovecs, Messages } from './memory.ts';
import type { Peer, PeerEntry, Peers } from './peers.ts';
import { RunWriter } from './run-writer.ts';
import { isPending } from './sending.ts';
import { u16be } from './super-packet.ts';
import { DATA_HEADER, readKind } from './wire.ts';

const MESSAGES = 16;
/** What UDP can carry, and room for the source that stands before it. */
const DATAGRAM_BYTES = 65_536;
const NAME_BYTES = 28;
const CONTROL_BYTES = 64;
const SOL_UDP = 17;
const UDP_GRO = 104;
/** Waits for the first message only (recvmmsg(2)). */
const MSG_WAITFORONE = 0x10000;
const EINTR = 4;

export interface InboundOptions {
  readonly tunFd: number;
  readonly socketFd: number;
  /** Source port of every node's datagrams. */
  readonly port: number;
  readonly peers: Peers;
  readonly counters: Counters<(typeof INBOUND)[number]>;
  readonly isEncrypted: boolean;
  /** The socket has errors of earlier datagrams. */
  readonly onPending: () => void;
  /** Whether the device takes super-packets of UDP. */
  readonly takesUdp: boolean;
  /** HELLOs and probes: the bytes are only there until this returns. False when there were too many. */
  readonly onControl: (slot: number, bytes: Buffer) => boolean;
  /** A datagram under a session that this node does not have. */
  readonly onUnknownSession: (slot: number) => void;
}

export class Inbound {
  readonly #options: InboundOptions;
  readonly #data: Arena = arena(MESSAGES * DATAGRAM_BYTES);
  readonly #names: Arena = arena(MESSAGES * NAME_BYTES + 8);
  readonly #controls: Arena = arena(MESSAGES * CONTROL_BYTES);
  readonly #messages = new Messages(MESSAGES);
  readonly #slots = new Iovecs(MESSAGES);
  readonly #run: RunWriter;
  /** By slot; see Outbound. */
  readonly #openers = new Map<number, Opener>();
  readonly #plain: Arena;
  readonly #columns;

  constructor(options: InboundOptions) {
    this.#options = options;
    const { counters } = options;
    this.#columns = Object.fromEntries(INBOUND.map((name) => [name, counters.column(name)])) as Record<
      (typeof INBOUND)[number],
      number
    >;
    for (let i = 0; i < MESSAGES; i++) {
      this.#slots.add(this.#data.address + i * DATAGRAM_BYTES, DATAGRAM_BYTES);
      this.#messages.setIovecs(i, this.#slots.addressOf(i), 1);
      this.#messages.setName(i, this.#names.address + i * NAME_BYTES, NAME_BYTES);
      this.#messages.setControl(i, this.#controls.address + i * CONTROL_BYTES, CONTROL_BYTES);
    }
    this.#run = new RunWriter(options.tunFd, options.takesUdp);
    this.#plain = arena(options.isEncrypted ? 2 * DATAGRAM_BYTES : 8);
  }

  /** Waits for datagrams and carries what there is, or a good deal of it. False when the socket is of no use any more. */
  turn(): boolean {
    const count = bare.recvmmsg(this.#options.socketFd, this.#messages.addressOf(0), MESSAGES, MSG_WAITFORONE, 0);
    if (count < 0) {
      const errno = errnoOfLastCall();
      // The error of an earlier datagram does not keep others from being received.
      if (isPending(errno)) this.#options.onPending();
      return errno === EINTR || isPending(errno);
    }
    for (let i = 0; i < count; i++) {
      this.#message(i);
      this.#messages.setRoom(i, NAME_BYTES, CONTROL_BYTES);
    }
    this.#endRun();
    return true;
  }

  #message(i: number): void {
    const { peers, port, counters } = this.#options;
    const name = i * NAME_BYTES;
    const peer = peers.byEnd(this.#names.bytes, name);
    const length = this.#messages.lengthOf(i);
    const size = this.#segmentSize(i) || length;
    if (!peer || u16be(this.#names.bytes, name + 2) !== port) {
      counters.add(0, this.#columns.stranger, size === 0 ? 1 : Math.ceil(length / size));
      return;
    }
    if (this.#runPeer !== peer) this.#endRun();
    this.#runPeer = peer;
    const start = i * DATAGRAM_BYTES;
    for (let at = start; at < start + length; at += size) {
      this.#datagram(peer, at, Math.min(size, start + length - at));
    }
  }

  /** Whose segments are gathered: a super-packet whose segments have headers of their own is larger than one message. */
  #runPeer: Peer | undefined;

  #endRun(): void {
    if (this.#runPeer) this.#write(this.#runPeer);
    this.#runPeer = undefined;
    this.#plainUsed = 0;
  }

  /** What UDP_GRO says; 0: the message is one datagram. */
  #segmentSize(i: number): number {
    if (this.#messages.controlLengthOf(i) === 0) return 0;
    const { words } = this.#controls;
    const at = (i * CONTROL_BYTES) / 4;
    return words[at + 2] === SOL_UDP && words[at + 3] === UDP_GRO ? (words[at + 4] as number) : 0;
  }

  #datagram(peer: Peer, at: number, length: number): void {
    const { counters, isEncrypted } = this.#options;
    const { slot } = peer.entry;
    const { bytes } = this.#data;
    counters.add(slot, this.#columns.datagrams, 1);
    const kind = readKind(bytes[at] as number);
    if (kind === 'data' && !isEncrypted) this.#packet(peer, this.#data, at, length);
    else if (kind === 'sealed' && isEncrypted) this.#open(peer, at, length);
    else if (kind === 'data' || kind === 'sealed') counters.add(slot, this.#columns.noSession, 1);
    else if (kind === undefined) counters.add(slot, this.#columns.unknownVersion, 1);
    else if (!this.#options.onControl(slot, bytes.subarray(at, at + length)))
      counters.add(slot, this.#columns.overflow, 1);
  }

  #plainUsed = 0;

  #open(peer: Peer, at: number, length: number): void {
    const { counters } = this.#options;
    const { slot } = peer.entry;
    const opener = this.#openers.get(slot);
    const opened = opener?.open(this.#data.bytes.subarray(at, at + length)) ?? 'unknown-session';
    if (opened === 'unknown-session') {
      this.#options.onUnknownSession(slot);
      counters.add(slot, this.#columns.noSession, 1);
      return;
    }
    if (typeof opened === 'string') {
      counters.add(slot, this.#columns[opened], 1);
      return;
    }
    const to = this.#plainUsed;
    const size = DATA_HEADER.bytes + opened.length;
    if (to + size > this.#plain.bytes.length) {
      this.#write(peer);
      this.#plainUsed = 0;
      this.#opened(peer, 0, at, opened);
      return;
    }
    this.#opened(peer, to, at, opened);
  }

  #opened(peer: Peer, to: number, header: number, plain: Buffer): void {
    this.#data.bytes.copy(this.#plain.bytes, to, header, header + DATA_HEADER.bytes);
    plain.copy(this.#plain.bytes, to + DATA_HEADER.bytes);
    this.#plainUsed = to + DATA_HEADER.bytes + plain.length;
    this.#packet(peer, this.#plain, to, DATA_HEADER.bytes + plain.length);
  }

  /** The peer has other keys, or none. */
  useKeys({ slot, receive = [] }: PeerEntry): void {
    const opener = this.#openers.get(slot);
    if (opener) opener.use(receive);
    else this.#openers.set(slot, new Opener(receive));
  }

  /** A data header and what follows. */
  #packet(peer: Peer, from: Arena, at: number, length: number): void {
    const { counters } = this.#options;
    const { slot } = peer.entry;
    const { bytes } = from;
    const ip = at + DATA_HEADER.bytes;
    const version = (bytes[ip] as number) >>> 4;
    const inner = length - DATA_HEADER.bytes;
    const words = version === 4 ? 1 : 4;
    if ((version !== 4 && version !== 6) || inner < (version === 4 ? 20 : 40)) {
      counters.add(slot, this.#columns.malformed, 1);
      return;
    }
    if (!peer.owns(bytes, version === 4 ? ip + 12 : ip + 8, words)) {
      counters.add(slot, this.#columns.foreignSource, 1);
      return;
    }
    const segments = this.#run.continues(from, at, length) || this.#start(peer, from, at, length);
    if (segments === 0) {
      counters.add(slot, this.#columns.malformed, 1);
      return;
    }
    counters.add(slot, this.#columns.packets, segments);
    counters.add(slot, this.#columns.bytes, inner);
  }

  #start(peer: Peer, from: Arena, at: number, length: number): number {
    this.#write(peer);
    return this.#run.start(from, at, length);
  }

  #write(peer: Peer): void {
    const { counters } = this.#options;
    const failed = this.#run.write();
    if (failed > 0) counters.add(peer.entry.slot, this.#columns.notTaken, failed);
  }
}
