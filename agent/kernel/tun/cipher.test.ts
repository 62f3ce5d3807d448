import { randomBytes } from 'node:crypto';
import test from 'ava';
import fc from 'fast-check';
import { Opener, Sealer, type SessionKey } from './cipher.ts';
import { REPLAY_WINDOW } from './replay-window.ts';
import { DATA_HEADER, readKind, SEAL_BYTES } from './wire.ts';

const CIPHERS = ['aes-256-gcm', 'chacha20-poly1305'] as const;
const someKey = (cipher: SessionKey['cipher'] = 'aes-256-gcm', id = 7): SessionKey => ({
  id,
  cipher,
  key: randomBytes(32),
  salt: randomBytes(4),
});
const header = Buffer.from('10a1a2a3a4a5a6a7a8a9aaab', 'hex');

function seal(sealer: Sealer, ...pieces: readonly Uint8Array[]): Buffer {
  const into = Buffer.alloc(70_000);
  return Buffer.from(into.subarray(3, 3 + sealer.seal(header, pieces, into, 3)));
}
const text = (bytes: Buffer | string): string => (typeof bytes === 'string' ? bytes : `«${bytes}»`);

for (const cipher of CIPHERS) {
  test(`${cipher}: what is sealed in pieces is opened as one, in any order`, (t) => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.uint8Array({ maxLength: 2_000 }), { maxLength: 3 }), { minLength: 1, maxLength: 8 }),
        (datagrams) => {
          const key = someKey(cipher);
          const sealer = new Sealer(key);
          const opener = new Opener([key]);
          const sealed = datagrams.map((pieces) => seal(sealer, ...pieces));
          for (const [i, datagram] of [...sealed.entries()].toReversed()) {
            const expected = Buffer.concat(datagrams[i] as readonly Uint8Array[]);
            t.is(datagram.length, DATA_HEADER.bytes + SEAL_BYTES + expected.length);
            t.is(readKind(datagram[0] as number), 'sealed');
            t.deepEqual(datagram.subarray(1, DATA_HEADER.bytes), header.subarray(1));
            t.deepEqual(opener.open(datagram), expected);
            t.is(opener.open(datagram), 'replayed');
          }
        },
      ),
      { numRuns: 30 },
    );
  });

  test(`${cipher}: nothing that was altered in any way is opened, nor spoils what follows`, (t) => {
    const key = someKey(cipher);
    const sealed = seal(new Sealer(key), Buffer.from('some text that is long enough'));
    const opener = new Opener([key]);
    for (let bit = 0; bit < 8 * sealed.length; bit++) {
      const altered = Buffer.from(sealed);
      altered[bit >> 3] = (altered[bit >> 3] as number) ^ (1 << (bit & 7));
      const inId = bit >= 8 * DATA_HEADER.bytes && bit < 8 * (DATA_HEADER.bytes + 4);
      t.is(opener.open(altered), inId ? 'unknown-session' : 'forged', `bit ${bit}`);
    }
    for (let length = 0; length < sealed.length; length++)
      t.is(typeof opener.open(sealed.subarray(0, length)), 'string');
    t.is(text(opener.open(sealed)), '«some text that is long enough»');
  });
}

test('the ciphers are those of the RFCs: an independent reckoning opens what was sealed', async (t) => {
  const key = someKey('aes-256-gcm', 0x01020304);
  const sealer = new Sealer(key);
  seal(sealer, Buffer.from('first'));
  const sealed = seal(sealer, Buffer.from('second'));
  t.is(sealed.subarray(12, 24).toString('hex'), '010203040000000000000001');
  // Web Crypto has a face of its own: IV, additional data and tag are handed over in other ways.
  const imported = await crypto.subtle.importKey('raw', Uint8Array.from(key.key), 'AES-GCM', false, ['decrypt']);
  const iv = Uint8Array.from([...key.salt, 0, 0, 0, 0, 0, 0, 0, 1]);
  const additionalData = Uint8Array.from(sealed.subarray(0, 12));
  const plain = await crypto.subtle.decrypt(
    { name: 'AES-GCM', iv, additionalData, tagLength: 128 },
    imported,
    Uint8Array.from(sealed.subarray(24)),
  );
  t.is(Buffer.from(plain).toString(), 'second');
});

test('no counter comes twice, and each takes another place in the key stream', (t) => {
  const sealer = new Sealer(someKey());
  const sealed = Array.from({ length: 500 }, () => seal(sealer, Buffer.alloc(16)));
  t.is(new Set(sealed.map((datagram) => datagram.toString('hex', 16, 24))).size, 500);
  t.is(new Set(sealed.map((datagram) => datagram.toString('hex', 24, 40))).size, 500);
});

test('an agreement with the key in use goes on counting; another key begins anew', (t) => {
  const key = someKey();
  const sealer = new Sealer(key);
  const placeOf = (): string => seal(sealer).toString('hex', 12, 24);
  t.is(placeOf(), '000000070000000000000000');
  sealer.use({ ...key, key: Uint8Array.from(key.key) });
  t.is(placeOf(), '000000070000000000000001');
  sealer.use(someKey('chacha20-poly1305', 8));
  t.is(placeOf(), '000000080000000000000000');
});

test('a key of the other direction, or of another peer, opens nothing', (t) => {
  const key = someKey();
  t.is(new Opener([{ ...someKey(), id: key.id }]).open(seal(new Sealer(key), Buffer.from('x'))), 'forged');
  t.is(new Opener([]).open(seal(new Sealer(key), Buffer.from('x'))), 'unknown-session');
});

test('an agreement that goes on with a session goes on with what it saw', (t) => {
  const [old, young] = [someKey('aes-256-gcm', 1), someKey('aes-256-gcm', 2)];
  const [fromOld, fromYoung] = [new Sealer(old), new Sealer(young)];
  const [early, late] = [seal(fromOld, Buffer.from('early')), seal(fromOld, Buffer.from('late'))];
  const opener = new Opener([old]);
  t.is(text(opener.open(early)), '«early»');
  opener.use([young, old]);
  t.is(opener.open(early), 'replayed');
  t.is(text(opener.open(late)), '«late»');
  t.is(text(opener.open(seal(fromYoung, Buffer.from('new')))), '«new»');
  opener.use([young]);
  t.is(opener.open(late), 'unknown-session');
  // Not even where a session of the same id comes again: its key is another.
  opener.use([{ ...someKey(), id: 1 }]);
  t.is(opener.open(late), 'forged');
});

test('a datagram that comes later than the window reaches back is taken for a replay', (t) => {
  const key = someKey();
  const [sealer, opener] = [new Sealer(key), new Opener([key])];
  const [first, second] = [seal(sealer, Buffer.from('1')), seal(sealer, Buffer.from('2'))];
  const into = Buffer.alloc(100);
  for (let i = 0; i < REPLAY_WINDOW - 2; i++) sealer.seal(header, [], into, 0);
  opener.open(seal(sealer, Buffer.from('newest')));
  t.is(text(opener.open(second)), '«2»');
  t.is(opener.open(first), 'replayed');
});

test('a counter beyond what is exact is refused', (t) => {
  const key = someKey();
  const sealed = seal(new Sealer(key), Buffer.from('x'));
  sealed.fill(0xff, 16, 24);
  t.is(new Opener([key]).open(sealed), 'forged');
});

test('Opener: any bytes at all are a reason, and never an exception', (t) => {
  const opener = new Opener([someKey('aes-256-gcm', 0), someKey('chacha20-poly1305', 1)]);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 120 }), fc.constantFrom(0, 1, 2), (bytes, id) => {
      if (bytes.length >= 16) Buffer.from(bytes.buffer).writeUInt32BE(id, 12);
      t.is(typeof opener.open(Buffer.from(bytes)), 'string');
    }),
    { numRuns: 500 },
  );
});
