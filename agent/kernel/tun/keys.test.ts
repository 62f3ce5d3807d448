import { createHmac, randomBytes } from 'node:crypto';
import test from 'ava';
import { authenticate, type End, isAuthentic, secretOf, sessionKeys } from './keys.ts';
import { encodeControl } from './wire.ts';

const secret = secretOf(Buffer.alloc(32, 1));
const end = (node: string, fill: number): End => ({ node, nonce: new Uint8Array(16).fill(fill) });
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

test('both ends come to the same keys, one a direction', (t) => {
  for (const encryption of ['aes-gcm', 'chacha20-poly1305'] as const) {
    const a = sessionKeys(secret, encryption, end('a', 1), end('b', 2));
    const b = sessionKeys(secret, encryption, end('b', 2), end('a', 1));
    t.deepEqual([a.send, a.receive, a.sendControl], [b.receive, b.send, b.receiveControl]);
    const parts = [a.send.key, a.receive.key, a.sendControl, a.receiveControl];
    t.is(new Set(parts.map(hex)).size, parts.length);
    t.not(a.send.id, a.receive.id);
    t.deepEqual([a.send.key.length, a.send.salt.length], [32, 4]);
  }
});

test('whatever differs makes other keys: secret, cipher, either nonce, either node, names cut elsewhere', (t) => {
  const all = [
    sessionKeys(secret, 'aes-gcm', end('a', 1), end('b', 2)),
    sessionKeys(secretOf(Buffer.alloc(32, 2)), 'aes-gcm', end('a', 1), end('b', 2)),
    sessionKeys(secret, 'chacha20-poly1305', end('a', 1), end('b', 2)),
    sessionKeys(secret, 'aes-gcm', end('a', 3), end('b', 2)),
    sessionKeys(secret, 'aes-gcm', end('a', 1), end('b', 3)),
    sessionKeys(secret, 'aes-gcm', end('a', 2), end('b', 1)),
    sessionKeys(secret, 'aes-gcm', end('a', 1), end('c', 2)),
    sessionKeys(secret, 'aes-gcm', end('aa', 1), end('b', 2)),
    sessionKeys(secret, 'aes-gcm', end('a', 1), end('ab', 2)),
  ];
  t.is(new Set(all.flatMap(({ send, receive }) => [hex(send.key), hex(receive.key)])).size, 2 * all.length);
});

test('HKDF is that of RFC 5869: extract and expand, written out', (t) => {
  const prk = createHmac('sha256', Buffer.alloc(32)).update(secret.bytes).digest();
  const info = Buffer.concat(
    ['tulle tun 1', 'hello'].map((part) => Buffer.concat([Buffer.from([0, 0, 0, part.length]), Buffer.from(part)])),
  );
  const okm = createHmac('sha256', prk)
    .update(Buffer.concat([info, Buffer.from([1])]))
    .digest();
  t.is(hex(secret.helloKey), hex(okm));
  t.notRegex(hex(secret.helloKey), new RegExp(hex(secret.epoch)));
});

test('a MAC is for this message, from this node, to this node', (t) => {
  const token = randomBytes(8);
  const message = (): Buffer => encodeControl({ kind: 'probe', sizeBytes: 100, session: 1, token });
  const sent = message();
  authenticate(sent, secret.helloKey, 'a', 'b');
  t.true(isAuthentic(sent, secret.helloKey, 'a', 'b'));
  t.false(isAuthentic(sent, secret.helloKey, 'b', 'a'), 'reflected');
  t.false(isAuthentic(sent, secret.helloKey, 'a', 'c'), 'passed on');
  t.false(isAuthentic(sent, secret.epoch, 'a', 'b'));
  t.false(isAuthentic(message(), secret.helloKey, 'a', 'b'));
  for (let at = 0; at < 32; at++) {
    const altered = Buffer.from(sent);
    altered[at] = (altered[at] as number) ^ 1;
    t.false(isAuthentic(altered, secret.helloKey, 'a', 'b'), `byte ${at}`);
  }
});
