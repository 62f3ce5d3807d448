/** Memory that the kernel reads and writes in calls that carry packets: never moved, and known by its address. */
import { addressOf } from '../libc.ts';

export interface Arena {
  readonly bytes: Buffer;
  /** The same memory as words in the order of the machine. */
  readonly words: Uint32Array;
  /** Of the first byte. Below 2^53 on every machine that Node runs on. */
  readonly address: number;
}

/** Zeroed memory outside of V8's heap, aligned to eight bytes. Pages that nobody touches cost nothing. */
export function arena(byteLength: number): Arena {
  const buffer = new ArrayBuffer(Math.ceil(byteLength / 8) * 8);
  const bytes = Buffer.from(buffer);
  return { bytes, words: new Uint32Array(buffer), address: Number(addressOf(bytes)) };
}

const WORD = 2 ** 32;

/** Writes a pointer, or a size_t, at a word. Every machine that Tulle runs on has 64 bits, lower word first. */
export function writeLong(words: Uint32Array, at: number, value: number): void {
  // The remainder of two floating-point numbers is dear.
  const upper = Math.floor(value / WORD);
  words[at] = value - upper * WORD;
  words[at + 1] = upper;
}

/** Words of a struct iovec (sys/uio.h). */
const IOVEC_WORDS = 4;
export const IOVEC_BYTES = 4 * IOVEC_WORDS;

/** An array of struct iovec that is filled from the front. */
export class Iovecs {
  readonly #arena: Arena;
  readonly capacity: number;
  /** How many are in use. */
  count = 0;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.#arena = arena(capacity * IOVEC_BYTES);
  }

  addressOf(index: number): number {
    return this.#arena.address + index * IOVEC_BYTES;
  }

  add(address: number, length: number): void {
    const at = this.count++ * IOVEC_WORDS;
    const { words } = this.#arena;
    writeLong(words, at, address);
    words[at + 2] = length;
  }

  /** Makes the last one longer. */
  extend(byBytes: number): void {
    const at = (this.count - 1) * IOVEC_WORDS + 2;
    const { words } = this.#arena;
    words[at] = (words[at] as number) + byBytes;
  }
}

/** Words of a struct mmsghdr (recvmmsg(2)), and where its fields begin. */
const MESSAGE_WORDS = 16;
const FIELD = {
  name: 0,
  nameLength: 2,
  iovecs: 4,
  iovecCount: 6,
  control: 8,
  controlLength: 10,
  flags: 12,
  length: 14,
};

/** An array of struct mmsghdr. */
export class Messages {
  readonly #arena: Arena;
  readonly capacity: number;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.#arena = arena(capacity * 4 * MESSAGE_WORDS);
  }

  addressOf(index: number): number {
    return this.#arena.address + index * 4 * MESSAGE_WORDS;
  }

  setName(index: number, address: number, length: number): void {
    const at = index * MESSAGE_WORDS;
    writeLong(this.#arena.words, at + FIELD.name, address);
    this.#arena.words[at + FIELD.nameLength] = length;
  }

  setIovecs(index: number, address: number, count: number): void {
    const at = index * MESSAGE_WORDS;
    writeLong(this.#arena.words, at + FIELD.iovecs, address);
    this.#arena.words[at + FIELD.iovecCount] = count;
  }

  setControl(index: number, address: number, length: number): void {
    const at = index * MESSAGE_WORDS;
    writeLong(this.#arena.words, at + FIELD.control, address);
    this.#arena.words[at + FIELD.controlLength] = length;
  }

  /** The room for name and control, which the kernel replaces by what it used. */
  setRoom(index: number, nameLength: number, controlLength: number): void {
    const at = index * MESSAGE_WORDS;
    this.#arena.words[at + FIELD.nameLength] = nameLength;
    this.#arena.words[at + FIELD.controlLength] = controlLength;
  }

  /** Bytes that were received or sent. */
  lengthOf(index: number): number {
    return this.#arena.words[index * MESSAGE_WORDS + FIELD.length] as number;
  }

  controlLengthOf(index: number): number {
    return this.#arena.words[index * MESSAGE_WORDS + FIELD.controlLength] as number;
  }
}
