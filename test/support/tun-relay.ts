/** Stands between two ends of a tunnel, each of which takes it for the other, and does to datagrams what networks and strangers do. */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';

export interface RelayOptions {
  readonly port: number;
  /** Own address and the end's, on either side. */
  readonly sides: readonly [RelaySide, RelaySide];
  /** Datagrams are kept until so many are there, or none came for a moment, and leave in another order. */
  readonly shuffled?: number;
  /** Shares of datagrams that are lost, and that leave twice. */
  readonly lost?: number;
  readonly doubled?: number;
  /** Keeps a copy of each datagram. */
  readonly records?: boolean;
}

export interface RelaySide {
  readonly own: string;
  readonly end: string;
}

export type RelayRequest =
  /** All that was recorded once more, or so many altered copies of each instead. Answers with how many went to each side. */
  | { readonly kind: 'replay'; readonly mutants?: number }
  /** So many datagrams of these bytes (base64) to the end on a side. */
  | { readonly kind: 'send'; readonly side: 0 | 1; readonly bytes: string; readonly count: number }
  /** Answers with how many datagrams passed. */
  | { readonly kind: 'count' };

/** A generator of numbers that a failing test can repeat (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** One to three changes: bits, bytes of the headers, a cut, an addition. Never what it was. */
export function mutant(bytes: Buffer, random: () => number): Buffer {
  const below = (n: number): number => Math.floor(random() * n);
  let altered = Buffer.from(bytes);
  for (let left = 1 + below(3); left > 0; left--) {
    const at = below(Math.min(altered.length, random() < 0.7 ? 80 : altered.length));
    const kind = below(6);
    if (kind < 2) altered[at] = (altered[at] as number) ^ (1 << below(8));
    else if (kind < 4) altered[at] = below(256);
    else if (kind === 4) altered = altered.subarray(0, Math.max(1, at));
    else altered = Buffer.concat([altered, Buffer.alloc(1 + below(40), below(256))]);
  }
  return altered.equals(bytes) ? Buffer.concat([bytes, Buffer.of(below(256))]) : altered;
}

/** The last datagrams of a train have no others to be shuffled with: they leave after this. */
const SHUFFLE_MS = 3;
/** So many are sent at once, then the receiver's thread is let in: what its socket has no room for would be no test of it. */
const BURST = 100;

/** And the side that it leaves from. */
interface Datagram {
  readonly side: 0 | 1;
  readonly bytes: Buffer;
}

function* repeated({ side, bytes, count }: Extract<RelayRequest, { kind: 'send' }>): Generator<Datagram> {
  for (let left = count; left > 0; left--) yield { side, bytes: Buffer.from(bytes, 'base64') };
}

export class Relay {
  readonly ready: Promise<void>;
  readonly #options: RelayOptions;
  readonly #sockets: readonly [Socket, Socket];
  readonly #random = randomFrom(4711);
  readonly #kept: Datagram[] = [];
  readonly #records: Datagram[] = [];
  #timer: NodeJS.Timeout | undefined;
  #count = 0;

  constructor(options: RelayOptions) {
    this.#options = options;
    this.#sockets = [this.#open(0), this.#open(1)];
    this.ready = Promise.all(this.#sockets.map((socket) => once(socket, 'listening'))).then(() => {});
  }

  #open(side: 0 | 1): Socket {
    const { own } = this.#options.sides[side];
    const socket = createSocket({ type: own.includes(':') ? 'udp6' : 'udp4' });
    socket.on('message', (bytes) => this.#came(side === 0 ? 1 : 0, bytes));
    socket.bind(this.#options.port, own);
    return socket;
  }

  #came(side: 0 | 1, bytes: Buffer): void {
    const { lost = 0, doubled = 0, shuffled = 1, records } = this.#options;
    this.#count++;
    if (records) this.#records.push({ side, bytes });
    if (this.#random() < lost) return;
    this.#kept.push({ side, bytes });
    if (this.#random() < doubled) this.#kept.push({ side, bytes });
    if (this.#kept.length >= shuffled) this.#release();
    else this.#timer ??= setTimeout(() => this.#release(), SHUFFLE_MS);
  }

  #release(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    while (this.#kept.length > 0) {
      const [taken] = this.#kept.splice(Math.floor(this.#random() * this.#kept.length), 1);
      if (taken) this.#send(taken.side, taken.bytes);
    }
  }

  /** Out of the socket on this side, to the end that is there. */
  #send(side: 0 | 1, bytes: Buffer): void {
    this.#sockets[side]?.send(bytes, this.#options.port, this.#options.sides[side]?.end);
  }

  async carryOut(request: RelayRequest): Promise<number | readonly [number, number]> {
    if (request.kind === 'count') return this.#count;
    const datagrams = request.kind === 'send' ? repeated(request) : this.#copies(request.mutants);
    const sent = { to: [0, 0] as [number, number] };
    for (const { side, bytes } of datagrams) {
      this.#send(side, bytes);
      sent.to[side]++;
      if ((sent.to[0] + sent.to[1]) % BURST === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return sent.to;
  }

  *#copies(mutants: number | undefined): Generator<Datagram> {
    // What passes meanwhile is no part of it.
    for (const { side, bytes } of [...this.#records]) {
      if (mutants === undefined) yield { side, bytes };
      else for (let left = mutants; left > 0; left--) yield { side, bytes: mutant(bytes, this.#random) };
    }
  }

  close(): void {
    clearTimeout(this.#timer);
    for (const socket of this.#sockets) socket.close();
  }
}
