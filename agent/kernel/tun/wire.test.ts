import test from 'ava';
import fc from 'fast-check';
import { TUN_CARRIAGES, TUN_ENCRYPTIONS } from '../../model/items.ts';
import {
  authenticatedPart,
  type Control,
  decodeControl,
  encodeControl,
  firstByteOf,
  KINDS,
  MAC_BYTES,
  MAX_DATAGRAM_BYTES,
  macPart,
  PROBE_BYTES,
  readKind,
} from './wire.ts';

const bytesOf = (length: number): fc.Arbitrary<Uint8Array> => fc.uint8Array({ minLength: length, maxLength: length });

const someHello: fc.Arbitrary<Control> = fc.record({
  kind: fc.constantFrom('hello', 'helloAck'),
  encryption: fc.constantFrom(...TUN_ENCRYPTIONS),
  carriage: fc.constantFrom(...TUN_CARRIAGES),
  largestBytes: fc.nat(65_535),
  nonce: bytesOf(16),
  epoch: bytesOf(8),
  echo: bytesOf(16),
});
const someProbe: fc.Arbitrary<Control> = fc.record({
  kind: fc.constantFrom('probe', 'probeAck'),
  sizeBytes: fc.oneof(fc.constantFrom(PROBE_BYTES, MAX_DATAGRAM_BYTES), fc.integer({ min: PROBE_BYTES, max: 2_000 })),
  session: fc.nat(0xffffffff),
  token: bytesOf(8),
});
const someControl = fc.oneof(someHello, someProbe);

test('a control message is decoded as it was', (t) => {
  fc.assert(
    fc.property(someControl, (message) => {
      const bytes = encodeControl(message);
      t.deepEqual(decodeControl(bytes), message);
      t.is(bytes.length, message.kind === 'probe' ? message.sizeBytes : bytes.length);
      t.true(message.kind === 'probe' || bytes.length <= 512);
    }),
  );
});

test('what was decoded does not change with the memory that it was read from', (t) => {
  fc.assert(
    fc.property(someControl, (message) => {
      const bytes = encodeControl(message);
      const decoded = decodeControl(bytes);
      bytes.fill(0x55);
      t.deepEqual(decoded, message);
    }),
    { numRuns: 20 },
  );
});

test('any bytes, and messages cut or altered, are decoded or undefined', (t) => {
  const damaged = fc
    .tuple(someControl, fc.array(fc.tuple(fc.nat(80), fc.nat(255)), { maxLength: 4 }), fc.integer({ min: -70, max: 5 }))
    .map(([message, changes, longer]) => {
      const bytes = encodeControl(message);
      for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
      return Buffer.concat([bytes, Buffer.alloc(5)]).subarray(0, Math.max(0, bytes.length + longer));
    });
  fc.assert(
    fc.property(fc.oneof(damaged, fc.uint8Array({ maxLength: 200 })), (bytes) => {
      const decoded = decodeControl(bytes);
      if (decoded) t.deepEqual(decodeControl(encodeControl(decoded)), decoded);
    }),
    { numRuns: 2_000 },
  );
});

test('a message is covered by its MAC up to the MAC, and only padding follows on it', (t) => {
  fc.assert(
    fc.property(someControl, (message) => {
      const bytes = encodeControl(message);
      t.is(macPart(bytes).length, MAC_BYTES);
      t.true(macPart(bytes).every((byte) => byte === 0));
      macPart(bytes).fill(0xee);
      t.deepEqual(decodeControl(bytes), message);
      t.deepEqual(
        decodeControl(Buffer.concat([authenticatedPart(bytes), bytes.subarray(authenticatedPart(bytes).length)])),
        message,
      );
      t.true(bytes.subarray(authenticatedPart(bytes).length + MAC_BYTES).every((byte) => byte === 0));
    }),
    { numRuns: 50 },
  );
});

test('the first byte: this version and the types that there are, nothing else', (t) => {
  const known = Array.from({ length: 256 }, (_, byte) => [byte, readKind(byte)] as const).filter(([, kind]) => kind);
  t.deepEqual(
    known.map(([byte, kind]) => `${byte.toString(16)} ${kind}`),
    ['10 data', '11 sealed', '12 hello', '13 helloAck', '14 probe', '15 probeAck'],
  );
  for (const kind of Object.keys(KINDS) as (keyof typeof KINDS)[]) t.is(readKind(firstByteOf(kind)), kind);
});
