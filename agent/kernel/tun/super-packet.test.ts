import test from 'ava';
import fc from 'fast-check';
import { cutByHand, isPrepared, isSound, superPackets } from '../../../test/support/super-packets.ts';
import { adaptHeaders, GSO, headersLength, sumOf } from './super-packet.ts';

/** Splits segments into runs as datagrams do: lengths of runs, repeated. */
function runsOf(count: number, lengths: readonly number[]): readonly (readonly [from: number, to: number])[] {
  const runs: [number, number][] = [];
  for (let from = 0; from < count; ) {
    const to = Math.min(count, from + (lengths[runs.length % lengths.length] as number));
    runs.push([from, to]);
    from = to;
  }
  return runs;
}

test('adaptHeaders: runs of any lengths are cut into the segments that the super-packet would be cut into', (t) => {
  fc.assert(
    fc.property(
      superPackets,
      fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 5 }),
      (made, lengths) => {
        const { bytes, headerLength, gsoSize, ...rest } = made;
        const expected = cutByHand(made);
        const got: Buffer[] = [];
        for (const [from, to] of runsOf(expected.length, lengths)) {
          const payload = bytes.subarray(headerLength + from * gsoSize, headerLength + to * gsoSize);
          const run = Buffer.concat([bytes.subarray(0, headerLength), payload]);
          const isLast = to === expected.length;
          adaptHeaders(run, 0, { ...rest, gsoSize, headerLength, index: from, isLast, payloadBytes: payload.length });
          t.true(isPrepared(run, made.csumStart));
          got.push(...cutByHand({ ...made, bytes: run }));
        }
        t.deepEqual(got.map(hex), expected.map(hex));
        for (const segment of got) t.true(isSound(segment, made.csumStart), hex(segment));
      },
    ),
    { numRuns: 300 },
  );
});

test('headersLength: of every super-packet that a kernel makes', (t) => {
  fc.assert(
    fc.property(superPackets, ({ bytes, gsoType, csumStart, headerLength }) => {
      const shifted = Buffer.concat([Buffer.alloc(12), bytes]);
      t.is(headersLength(shifted, 12, bytes.length, gsoType, csumStart), headerLength);
    }),
    { numRuns: 300 },
  );
});

test('headersLength: nothing behind the end is believed, nor another protocol or family', (t) => {
  fc.assert(
    fc.property(superPackets, fc.nat(200), (made, length) => {
      const { bytes, gsoType, csumStart, headerLength } = made;
      const least = csumStart + (gsoType === GSO.udp ? 8 : 20);
      const told = headersLength(bytes, 0, Math.min(length, headerLength - 1), gsoType, csumStart);
      t.is(told, 0, `${length} bytes of ${headerLength}, at least ${least}`);
      const isIpv4 = (bytes[0] as number) >>> 4 === 4;
      for (const other of Object.values(GSO)) {
        if (other === gsoType || other === GSO.none) continue;
        // Of IPv6 only the header itself is looked at: what stands behind extension headers is for the kernel to find.
        const isOther = isIpv4 || other === GSO.tcp4;
        if (isOther) t.is(headersLength(bytes, 0, bytes.length, other, csumStart), 0, `type ${other} for ${gsoType}`);
      }
      if (isIpv4) t.is(headersLength(bytes, 0, bytes.length, gsoType, csumStart + 4), 0);
      t.is(headersLength(bytes, 0, bytes.length, gsoType, 0), 0);
    }),
  );
});

test('headersLength: a TCP header of less than 20 bytes is none', (t) => {
  const bytes = Buffer.alloc(60);
  bytes[0] = 0x45;
  bytes[9] = 6;
  for (let words = 0; words < 16; words++) {
    bytes[32] = words << 4;
    t.is(headersLength(bytes, 0, 60, GSO.tcp4, 20), words >= 5 && words <= 10 ? 20 + 4 * words : 0, `${words} words`);
  }
});

test('sumOf: the example of RFC 1071 section 3, and what an odd last byte adds', (t) => {
  t.is(sumOf(Buffer.from('0001f203f4f5f6f7', 'hex'), 0, 8), 0xddf2);
  t.is(sumOf(Buffer.from('ff0001f203f4f5f6f7', 'hex'), 1, 7), sumOf(Buffer.from('0001f203f4f5f600', 'hex'), 0, 8));
});

const hex = (bytes: Buffer): string => bytes.toString('hex');
