/** The nodes that a thread of the tunnel knows: by the address of their end, and by the prefixes of their pods. */
import type { SessionKey } from './cipher.ts';
import { type Arena, arena } from './memory.ts';

/** One node as the main thread describes it to the threads that carry packets. */
export interface PeerEntry {
  /** Its place in the tables of counters. */
  readonly slot: number;
  /** struct sockaddr_in or sockaddr_in6 of its end. */
  readonly socketAddress: Uint8Array;
  /** 4 or 16 bytes each. */
  readonly prefixes: readonly { readonly bytes: Uint8Array; readonly length: number }[];
  readonly carriage: 'segments' | 'whole';
  /** With encryption. */
  readonly send?: SessionKey | undefined;
  readonly receive?: readonly SessionKey[] | undefined;
}

/** As a thread keeps it. */
export class Peer {
  readonly entry: PeerEntry;
  readonly name: Arena;
  readonly nameLength: number;
  readonly prefixes: readonly Prefix[];

  constructor(entry: PeerEntry) {
    this.entry = entry;
    this.nameLength = entry.socketAddress.length;
    this.name = arena(this.nameLength);
    this.name.bytes.set(entry.socketAddress);
    this.prefixes = entry.prefixes.map(({ bytes, length }) => ({ words: wordsOf(bytes), length }));
  }

  /** The peer's own address in its first prefix of `length` bytes: the first after that of the network. */
  gateway(length: 4 | 16): Uint8Array | undefined {
    const prefix = this.entry.prefixes.find(({ bytes }) => bytes.length === length);
    if (!prefix) return undefined;
    const address = Uint8Array.from(prefix.bytes);
    if (prefix.length < 8 * length) address[length - 1] = (address[length - 1] as number) | 1;
    return address;
  }

  /** Whether the address of a packet, at `at` of the bytes, is one of its pods'. `words`: 1 for IPv4, 4 for IPv6. */
  owns(bytes: Buffer, at: number, words: number): boolean {
    for (const { words: prefix, length } of this.prefixes)
      if (prefix.length === words && isWithin(prefix, length, bytes, at)) return true;
    return false;
  }
}

interface Prefix {
  readonly words: readonly number[];
  readonly length: number;
}

function wordsOf(bytes: Uint8Array): readonly number[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Array.from({ length: bytes.length / 4 }, (_, i) => view.getUint32(4 * i));
}

const wordAt = (bytes: Buffer, at: number): number =>
  ((bytes[at] as number) * 0x1000000 +
    ((bytes[at + 1] as number) << 16) +
    ((bytes[at + 2] as number) << 8) +
    (bytes[at + 3] as number)) >>>
  0;

/** The bits of word `index` that are part of a prefix of this length. */
const maskOf = (index: number, length: number): number => {
  const bits = length - 32 * index;
  return bits >= 32 ? 0xffffffff : bits <= 0 ? 0 : (0xffffffff << (32 - bits)) >>> 0;
};

function isWithin(words: readonly number[], length: number, bytes: Buffer, at: number): boolean {
  for (let i = 0; i < words.length && 32 * i < length; i++) {
    if (((wordAt(bytes, at + 4 * i) ^ (words[i] as number)) & maskOf(i, length)) !== 0) return false;
  }
  return true;
}

/** Which peer a key of bytes means. A hash of the words first, as text would be made for each packet. */
class WordMap {
  readonly #buckets = new Map<number, { readonly words: readonly number[]; readonly peer: Peer }[]>();

  set(words: readonly number[], peer: Peer): void {
    const bucket = this.#buckets.get(hashOf(words)) ?? [];
    this.#buckets.set(hashOf(words), [...bucket.filter((each) => !sameWords(each.words, words)), { words, peer }]);
  }

  delete(words: readonly number[], peer: Peer): void {
    const left = (this.#buckets.get(hashOf(words)) ?? []).filter((each) => each.peer !== peer);
    if (left.length > 0) this.#buckets.set(hashOf(words), left);
    else this.#buckets.delete(hashOf(words));
  }

  /** Of the first `length` bits at `at`. */
  get(bytes: Buffer, at: number, count: number, length: number): Peer | undefined {
    let hash = 0;
    for (let i = 0; i < count; i++) hash = mixed(hash, (wordAt(bytes, at + 4 * i) & maskOf(i, length)) >>> 0);
    const bucket = this.#buckets.get(hash);
    if (!bucket) return undefined;
    for (const { words, peer } of bucket) if (isWithin(words, length, bytes, at)) return peer;
    return undefined;
  }
}

const mixed = (hash: number, word: number): number => (Math.imul(hash ^ word, 0x9e3779b1) ^ (word >>> 15)) >>> 0;
const hashOf = (words: readonly number[]): number => words.reduce(mixed, 0);
const sameWords = (a: readonly number[], b: readonly number[]): boolean => a.every((word, i) => word === b[i]);

/** Prefixes of one family, the longest first. */
type Lengths = Map<number, WordMap>;

export class Peers {
  readonly #bySlot = new Map<number, Peer>();
  readonly #byEnd = { 1: new WordMap(), 4: new WordMap() };
  readonly #byPrefix: { readonly 1: Lengths; readonly 4: Lengths } = { 1: new Map(), 4: new Map() };
  /** What the last packet asked for: most come in trains. */
  #last: { readonly at: readonly number[]; readonly peer: Peer } | undefined;

  /** Adds a peer, or replaces the one with the same slot. Returns it. */
  set(entry: PeerEntry): Peer {
    this.delete(entry.slot);
    const peer = new Peer(entry);
    this.#bySlot.set(entry.slot, peer);
    const end = endWords(entry.socketAddress);
    this.#byEnd[sizeOf(end)].set(end, peer);
    for (const { words, length } of peer.prefixes) {
      const lengths = this.#byPrefix[sizeOf(words)];
      if (!lengths.has(length)) {
        lengths.set(length, new WordMap());
        const sorted = [...lengths].toSorted(([a], [b]) => b - a);
        lengths.clear();
        for (const [each, map] of sorted) lengths.set(each, map);
      }
      lengths.get(length)?.set(words, peer);
    }
    return peer;
  }

  delete(slot: number): void {
    const peer = this.#bySlot.get(slot);
    this.#last = undefined;
    if (!peer) return;
    this.#bySlot.delete(slot);
    const end = endWords(peer.entry.socketAddress);
    this.#byEnd[sizeOf(end)].delete(end, peer);
    for (const { words, length } of peer.prefixes) this.#byPrefix[sizeOf(words)].get(length)?.delete(words, peer);
  }

  bySlot(slot: number): Peer | undefined {
    return this.#bySlot.get(slot);
  }

  /** By the address of a struct sockaddr that begins at `at`. */
  byEnd(bytes: Buffer, at: number): Peer | undefined {
    const isIpv4 = bytes[at] === AF_INET;
    return isIpv4 ? this.#byEnd[1].get(bytes, at + 4, 1, 32) : this.#byEnd[4].get(bytes, at + 8, 4, 128);
  }

  /** By the longest prefix that holds the address at `at`; `words`: 1 for IPv4, 4 for IPv6. */
  byAddress(bytes: Buffer, at: number, words: 1 | 4): Peer | undefined {
    const last = this.#last;
    if (last?.at.length === words && isWithin(last.at, 32 * words, bytes, at)) return last.peer;
    for (const [length, map] of this.#byPrefix[words]) {
      const peer = map.get(bytes, at, words, length);
      if (!peer) continue;
      this.#last = { at: Array.from({ length: words }, (_, i) => wordAt(bytes, at + 4 * i)), peer };
      return peer;
    }
    return undefined;
  }
}

const AF_INET = 2;
/** sin_addr of a struct sockaddr_in, sin6_addr of a sockaddr_in6. */
const endWords = (socketAddress: Uint8Array): readonly number[] =>
  wordsOf(socketAddress[0] === AF_INET ? socketAddress.subarray(4, 8) : socketAddress.subarray(8, 24));
const sizeOf = (words: readonly number[]): 1 | 4 => (words.length === 1 ? 1 : 4);
