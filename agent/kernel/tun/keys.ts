/**
 * What is derived from the secret that all nodes share: a name for it, a key for greetings, and the keys of sessions. All by
 * HKDF-SHA256 (RFC 5869); control messages are authenticated by HMAC-SHA256 (RFC 2104).
 */
import { createHmac, hkdfSync, timingSafeEqual } from 'node:crypto';
import type { TunEncryption } from '../../model/items.ts';
import type { SessionKey } from './cipher.ts';
import { authenticatedPart, EPOCH_BYTES, MAC_BYTES, macPart, WIRE_VERSION } from './wire.ts';

/** A secret, and what is derived from it alone. */
export interface Secret {
  readonly bytes: Uint8Array;
  /** Tells nodes which secret is meant, and nothing about it. */
  readonly epoch: Uint8Array;
  /** Authenticates greetings. */
  readonly helloKey: Uint8Array;
}

/** `bytes` must be hard to guess: whoever records a greeting can try guesses as fast as he likes. */
export function secretOf(bytes: Uint8Array): Secret {
  const none = new Uint8Array(0);
  return {
    bytes,
    epoch: derive(bytes, none, labelled('epoch'), EPOCH_BYTES),
    helloKey: derive(bytes, none, labelled('hello'), 32),
  };
}

/** Whether both were read from the same bytes. */
export const isSameSecret = (a: Secret, b: Secret): boolean => Buffer.compare(a.epoch, b.epoch) === 0;

/** One end's view of a session: what it sends under, what it receives under, and the same for control messages. */
export interface SessionKeys {
  readonly send: SessionKey;
  readonly receive: SessionKey;
  readonly sendControl: Uint8Array;
  readonly receiveControl: Uint8Array;
}

/** A node and the nonce that it drew for the session. */
export interface End {
  readonly node: string;
  readonly nonce: Uint8Array;
}

const CIPHERS = { 'aes-gcm': 'aes-256-gcm', 'chacha20-poly1305': 'chacha20-poly1305' } as const;
export type Cipher = keyof typeof CIPHERS;

/** Both ends come to the same keys, each direction to its own. */
export function sessionKeys(secret: Secret, encryption: Cipher, self: End, peer: End): SessionKeys {
  const [first, second] = self.node < peer.node ? [self, peer] : [peer, self];
  const nonces = Buffer.concat([first.nonce, second.nonce]);
  const direction = (from: End, to: End): { key: SessionKey; control: Uint8Array } => {
    const info = labelled('session', first.node, second.node, from.node, to.node, encryption, secret.epoch);
    const bytes = Buffer.from(derive(secret.bytes, nonces, info, 72));
    const [key, salt, control] = [bytes.subarray(0, 32), bytes.subarray(32, 36), bytes.subarray(36, 68)];
    return { key: { id: bytes.readUInt32BE(68), cipher: CIPHERS[encryption], key, salt }, control };
  };
  const [out, back] = [direction(self, peer), direction(peer, self)];
  return { send: out.key, receive: back.key, sendControl: out.control, receiveControl: back.control };
}

export const isCipher = (encryption: TunEncryption): encryption is Cipher => encryption !== 'none';

/** Writes the MAC of a control message: both names are in it, so that it means nothing to a third node, nor to its own sender. */
export function authenticate(datagram: Uint8Array, key: Uint8Array, from: string, to: string): void {
  macPart(datagram).set(macOf(datagram, key, from, to));
}

export const isAuthentic = (datagram: Uint8Array, key: Uint8Array, from: string, to: string): boolean =>
  timingSafeEqual(macPart(datagram), macOf(datagram, key, from, to));

const macOf = (datagram: Uint8Array, key: Uint8Array, from: string, to: string): Uint8Array =>
  createHmac('sha256', key)
    .update(labelled('control', from, to, authenticatedPart(datagram)))
    .digest()
    .subarray(0, MAC_BYTES);

const derive = (secret: Uint8Array, salt: Uint8Array, info: Uint8Array, bytes: number): Uint8Array =>
  new Uint8Array(hkdfSync('sha256', secret, salt, info, bytes));

/** What a key or MAC is for, with each part's length before it: no two lists of parts give the same bytes. */
function labelled(...parts: readonly (string | Uint8Array)[]): Uint8Array {
  return Buffer.concat(
    [`tulle tun ${WIRE_VERSION}`, ...parts].flatMap((part) => {
      const bytes = Buffer.from(part);
      const length = Buffer.alloc(4);
      length.writeUInt32BE(bytes.length);
      return [length, bytes];
    }),
  );
}
