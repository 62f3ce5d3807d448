/** One key of an AEAD cipher (RFC 5116), made ready once and used for many datagrams. */
import { addressOf, openAead } from '../libc.ts';
import { arena } from './memory.ts';

export const TAG_BYTES = 16;
export const IV_BYTES = 12;

/** EVP_CTRL_AEAD_GET_TAG and EVP_CTRL_AEAD_SET_TAG (openssl/evp.h). */
const GET_TAG = 0x10;
const SET_TAG = 0x11;
const NAMES = { 'aes-256-gcm': 'AES-256-GCM', 'chacha20-poly1305': 'ChaCha20-Poly1305' } as const;
export type AeadCipher = keyof typeof NAMES;

/** Where OpenSSL writes lengths that are known beforehand. */
const length = arena(8);
/** The address of the memory that views share: asking for it is dear, and it never changes. */
const bases = new WeakMap<ArrayBufferLike, number>();

function addressIn(view: Uint8Array): number {
  let base = bases.get(view.buffer);
  if (base === undefined) {
    base = Number(addressOf(new Uint8Array(view.buffer)));
    bases.set(view.buffer, base);
  }
  return base + view.byteOffset;
}

const contexts = new FinalizationRegistry((context: number | bigint) => openAead().freeContext(context));

export class Aead {
  readonly #calls = openAead();
  readonly #context: number | bigint;
  readonly #encrypts: boolean;

  /** `key` has 32 bytes. Throws when this Node's OpenSSL has no such cipher. */
  constructor(cipher: AeadCipher, key: Uint8Array, encrypts: boolean) {
    this.#encrypts = encrypts;
    const fetched = this.#calls.fetch(null, NAMES[cipher], null);
    const [keyMemory, iv] = [arena(key.length), arena(IV_BYTES)];
    keyMemory.bytes.set(key);
    this.#context = this.#calls.newContext();
    contexts.register(this, this.#context);
    const direction = encrypts ? 1 : 0;
    const made =
      Number(fetched) !== 0 &&
      this.#calls.init(this.#context, fetched, keyMemory.address, iv.address, direction, 0) === 1;
    keyMemory.bytes.fill(0);
    if (!made) throw new Error(`cannot encipher: this Node.js has no ${cipher}`);
  }

  /** Begins a message: its initialization vector (12 bytes) and its additional data. */
  begin(iv: Uint8Array, additional: Uint8Array): void {
    const { update } = this.#calls;
    this.#must(this.#calls.init(this.#context, 0, 0, addressIn(iv), -1, 0));
    this.#must(update(this.#context, 0, length.address, addressIn(additional), additional.length));
  }

  /** Its next bytes; as many are written at `at`. */
  update(from: Uint8Array, into: Uint8Array, at: number): void {
    const out = addressIn(into) + at;
    if (at + from.length > into.length) throw new RangeError('no room for what is enciphered');
    this.#must(this.#calls.update(this.#context, out, length.address, addressIn(from), from.length));
  }

  /** Ends a message that was enciphered, and writes its tag. */
  writeTag(into: Uint8Array, at: number): void {
    const out = addressIn(into) + at;
    if (at + TAG_BYTES > into.length) throw new RangeError('no room for a tag');
    this.#must(this.#calls.final(this.#context, out, length.address));
    this.#must(this.#calls.control(this.#context, GET_TAG, TAG_BYTES, out));
  }

  /** Ends a message that was deciphered: whether the tag is right. If not, nothing of what was written is to be believed. */
  verify(tag: Uint8Array): boolean {
    this.#must(this.#calls.control(this.#context, SET_TAG, TAG_BYTES, addressIn(tag)));
    return this.#calls.final(this.#context, length.address, length.address) === 1;
  }

  #must(result: number): void {
    if (result !== 1) throw new Error(`cannot ${this.#encrypts ? 'en' : 'de'}cipher a datagram: OpenSSL refuses`);
  }
}
