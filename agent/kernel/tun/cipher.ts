/**
 * Seals and opens datagrams: header (12 bytes, authenticated), session id (u32), counter (u64), ciphertext, tag (16), all of it
 * big-endian but for the header. The initialization vector is the session's salt and the counter (RFC 5288 section 3, RFC 8439
 * section 2.8); a pair of key and counter is never used twice.
 */
import { Aead, type AeadCipher, TAG_BYTES } from './aead.ts';
import { arena } from './memory.ts';
import { ReplayWindow } from './replay-window.ts';
import { DATA_HEADER, firstByteOf, MAX_DATAGRAM_BYTES, SEAL_BYTES } from './wire.ts';

/** Keys of one direction of a session. */
export interface SessionKey {
  /** u32 that the datagrams of the session carry. */
  readonly id: number;
  readonly cipher: AeadCipher;
  /** 32 bytes. */
  readonly key: Uint8Array;
  /** 4 bytes, the upper part of the initialization vector. */
  readonly salt: Uint8Array;
}

const COUNTER_AT = DATA_HEADER.bytes + 4;
const BODY_AT = DATA_HEADER.bytes + 12;
const WORD = 2 ** 32;

const ivOf = ({ salt }: SessionKey): Buffer => Buffer.concat([salt, Buffer.alloc(8)]);

const isSameKey = (a: SessionKey, b: SessionKey): boolean => a.id === b.id && Buffer.compare(a.key, b.key) === 0;

/**
 * Seals what goes to one peer, and counts it. Keep it for as long as the peer is known, and give it each new agreement's key by
 * `use`: a second Sealer for the same key would use its counters again, which gives the key away.
 */
export class Sealer {
  readonly overheadBytes = SEAL_BYTES;
  #key: SessionKey;
  /** The lower eight bytes are the next counter. */
  #iv: Buffer;
  #counter = 0;
  #aead: Aead;

  constructor(key: SessionKey) {
    this.#key = key;
    this.#iv = ivOf(key);
    this.#aead = new Aead(key.cipher, key.key, true);
  }

  /** From now on with this key; nothing happens if it is the one in use. A former key must never come again. */
  use(key: SessionKey): void {
    if (isSameKey(key, this.#key)) return;
    this.#key = key;
    this.#iv = ivOf(key);
    this.#aead = new Aead(key.cipher, key.key, true);
    this.#counter = 0;
  }

  /**
   * Writes the sealed datagram at `at` and returns its length, which is that of header and pieces and `overheadBytes`. Nothing of
   * the pieces may lie there.
   */
  seal(header: Uint8Array, pieces: readonly Uint8Array[], into: Buffer, at: number): number {
    into.set(header, at);
    into[at] = firstByteOf('sealed');
    into.writeUInt32BE(this.#key.id, at + DATA_HEADER.bytes);
    this.#count();
    into.set(this.#iv.subarray(4), at + COUNTER_AT);
    this.#aead.begin(this.#iv, into.subarray(at, at + DATA_HEADER.bytes));
    let end = at + BODY_AT;
    for (const piece of pieces) {
      this.#aead.update(piece, into, end);
      end += piece.length;
    }
    this.#aead.writeTag(into, end);
    return end + TAG_BYTES - at;
  }

  #count(): void {
    this.#iv.writeUInt32BE(Math.floor(this.#counter / WORD), 4);
    this.#iv.writeUInt32BE(this.#counter % WORD, 8);
    this.#counter++;
  }
}

interface Session {
  readonly key: SessionKey;
  readonly window: ReplayWindow;
  readonly iv: Buffer;
  readonly aead: Aead;
}

export type NotOpened = 'malformed' | 'unknown-session' | 'forged' | 'replayed';

/**
 * Opens what comes from one peer, each counter once. Keep it for as long as the peer is known, and give it each new agreement's
 * keys by `use`: another Opener for the same keys would take everything that was recorded once more.
 */
export class Opener {
  #sessions: readonly Session[] = [];

  constructor(keys: readonly SessionKey[]) {
    this.use(keys);
  }

  /** From now on these sessions only; those that go on keep what they saw. */
  use(keys: readonly SessionKey[]): void {
    this.#sessions = keys.map((key) => {
      const same = this.#sessions.find((session) => isSameKey(session.key, key));
      return same ?? { key, window: new ReplayWindow(), iv: ivOf(key), aead: new Aead(key.cipher, key.key, false) };
    });
  }

  /** What was sealed, in memory that the next call uses again, or why it is not to be had. */
  open(datagram: Buffer): Buffer | NotOpened {
    if (datagram.length < DATA_HEADER.bytes + SEAL_BYTES) return 'malformed';
    const session = this.#find(datagram.readUInt32BE(DATA_HEADER.bytes));
    if (!session) return 'unknown-session';
    const counter = datagram.readUInt32BE(COUNTER_AT) * WORD + datagram.readUInt32BE(COUNTER_AT + 4);
    // No honest sender comes that far, and beyond it numbers are not exact.
    if (counter > Number.MAX_SAFE_INTEGER) return 'forged';
    if (!session.window.isNew(counter)) return 'replayed';
    const plain = decrypt(session, datagram);
    if (!plain) return 'forged';
    session.window.mark(counter);
    return plain;
  }

  #find(id: number): Session | undefined {
    for (const session of this.#sessions) if (session.key.id === id) return session;
    return undefined;
  }
}

/** What a datagram holds that UDP can carry. */
const plainText = arena(MAX_DATAGRAM_BYTES).bytes;

/** The text behind the header, once its tag was found to be right. */
function decrypt({ aead, iv }: Session, datagram: Buffer): Buffer | undefined {
  const tagAt = datagram.length - TAG_BYTES;
  iv.set(datagram.subarray(COUNTER_AT, BODY_AT), 4);
  aead.begin(iv, datagram.subarray(0, DATA_HEADER.bytes));
  aead.update(datagram.subarray(BODY_AT, tagAt), plainText, 0);
  return aead.verify(datagram.subarray(tagAt)) ? plainText.subarray(0, tagAt - BODY_AT) : undefined;
}
