import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { cutByHand, isPrepared, isSound, type SuperPacket, superPackets } from '../../../test/support/super-packets.ts';
import { mutant, randomFrom } from '../../../test/support/tun-relay.ts';
import { type Arena, arena } from './memory.ts';
import { RunWriter } from './run-writer.ts';
import { GSO, GSO_ECN, u16le, VNET, VNET_NEEDS_CSUM } from './super-packet.ts';
import { DATA_FLAGS, DATA_HEADER } from './wire.ts';

const MEMORY_BYTES = 1 << 20;

/** The writer with a file in the place of the device. `feed` does as the inbound thread does, and returns what was written. */
function openWriter(t: ExecutionContext, takesUdp = true) {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-run-'));
  const fd = openSync(join(directory, 'written'), 'a+');
  t.teardown(() => {
    closeSync(fd);
    rmSync(directory, { recursive: true });
  });
  const writer = new RunWriter(fd, takesUdp);
  const memory: Arena = arena(MEMORY_BYTES);
  const into = Buffer.alloc(2 * 65_536);
  const written: Buffer[] = [];
  const write = (): void => {
    t.is(writer.write(), 0);
    const length = readSync(fd, into, 0, into.length, 0);
    if (length === 0) return;
    written.push(Buffer.from(into.subarray(0, length)));
    ftruncateSync(fd);
  };
  return (datagrams: readonly Buffer[]): { readonly written: readonly Buffer[]; readonly segments: number } => {
    written.length = 0;
    let at = 0;
    let segments = 0;
    for (const datagram of datagrams) {
      memory.bytes.set(datagram, at);
      let taken = writer.continues(memory, at, datagram.length);
      if (taken === 0) {
        write();
        taken = writer.start(memory, at, datagram.length);
      }
      segments += taken;
      at += datagram.length;
    }
    write();
    return { written: [...written], segments };
  };
}

/** A datagram with the segments from one to another; `count` is how many there are. */
function datagramOf({ bytes, ...made }: SuperPacket, from: number, to: number, count: number): Buffer {
  const header = Buffer.alloc(DATA_HEADER.bytes);
  header[0] = 0x10;
  header[DATA_HEADER.flags] = made.gsoType | DATA_FLAGS.needsCsum | (to === count ? DATA_FLAGS.last : 0);
  header.writeUInt16LE(made.headerLength, DATA_HEADER.headerLength);
  header.writeUInt16LE(made.gsoSize, DATA_HEADER.gsoSize);
  header.writeUInt16LE(made.csumStart, DATA_HEADER.csumStart);
  header.writeUInt16LE(made.gsoType === GSO.udp ? 6 : 16, DATA_HEADER.csumOffset);
  header.writeUInt16LE(from, DATA_HEADER.index);
  const { headerLength, gsoSize } = made;
  const payload = bytes.subarray(headerLength + from * gsoSize, headerLength + to * gsoSize);
  return Buffer.concat([header, bytes.subarray(0, headerLength), payload]);
}

/** Datagrams of runs of these lengths, over and over. */
function datagramsOf(made: SuperPacket, lengths: readonly number[]): readonly Buffer[] {
  const count = Math.ceil((made.bytes.length - made.headerLength) / made.gsoSize);
  const datagrams: Buffer[] = [];
  for (let from = 0; from < count; ) {
    const to = Math.min(count, from + (lengths[datagrams.length % lengths.length] as number));
    datagrams.push(datagramOf(made, from, to, count));
    from = to;
  }
  return datagrams;
}

/** What the kernel would make of what it was given. */
function segmentsOf(written: Buffer): readonly Buffer[] {
  const isSuper = written[VNET.gsoType] !== 0;
  // Else the checksums that come of it are wrong.
  if (!isPrepared(written.subarray(VNET.bytes), u16le(written, VNET.csumStart))) return [];
  return cutByHand({
    bytes: Buffer.from(written.subarray(VNET.bytes)),
    gsoType: (written[VNET.gsoType] as number) & ~GSO_ECN,
    gsoSize: isSuper ? u16le(written, VNET.gsoSize) : 65_536,
    csumStart: u16le(written, VNET.csumStart),
    headerLength: u16le(written, VNET.headerLength),
  });
}

const hex = (bytes: Buffer): string => bytes.toString('hex');
const runLengths = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 4 });

for (const takesUdp of [true, false]) {
  test(`what is written is cut into the segments that came, in their order; UDP super-packets taken: ${takesUdp}`, (t) => {
    const feed = openWriter(t, takesUdp);
    fc.assert(
      fc.property(fc.array(superPackets, { minLength: 1, maxLength: 3 }), runLengths, (made, lengths) => {
        const each = takesUdp ? lengths : [1];
        const { written, segments } = feed(made.flatMap((one) => datagramsOf(one, each)));
        const expected = made.flatMap((one) => cutByHand(one));
        const got = written.flatMap((bytes) => segmentsOf(bytes));
        t.deepEqual(got.map(hex), expected.map(hex));
        t.is(segments, expected.length);
      }),
      { numRuns: 100 },
    );
  });
}

test('segments of one super-packet that come in order are one write, as many as a write can have', (t) => {
  const feed = openWriter(t);
  fc.assert(
    fc.property(superPackets, (made) => {
      const datagrams = datagramsOf(made, [1]);
      t.is(feed(datagrams).written.length, Math.ceil(datagrams.length / 1000));
    }),
  );
});

/** The same segments of another connection. */
function twinOf(made: SuperPacket): SuperPacket {
  const bytes = Buffer.from(made.bytes);
  bytes[made.csumStart] = (bytes[made.csumStart] as number) ^ 0xff;
  return { ...made, bytes };
}

test('what is lost, doubled, late or another connection’s on the way takes nothing else along', (t) => {
  const feed = openWriter(t);
  const order = fc.array(fc.nat(1000), { maxLength: 40 });
  fc.assert(
    fc.property(superPackets, runLengths, order, (made, lengths, places) => {
      const all = [made, twinOf(made)].flatMap((one) => {
        const cut = cutByHand(one);
        const datagrams = datagramsOf(one, lengths);
        const starts = datagrams.map((bytes) => u16le(bytes, DATA_HEADER.index));
        return datagrams.map((bytes, i) => ({ bytes, segments: cut.slice(starts[i], starts[i + 1] ?? cut.length) }));
      });
      const arrived = places.map((place) => all[place % all.length] as (typeof all)[number]);
      const { written } = feed(arrived.map(({ bytes }) => bytes));
      const expected = arrived.flatMap(({ segments }) => segments);
      t.deepEqual(written.flatMap((bytes) => segmentsOf(bytes)).map(hex), expected.map(hex));
    }),
    { numRuns: 150 },
  );
});

test('segments of two connections that alternate stay apart', (t) => {
  const feed = openWriter(t);
  fc.assert(
    fc.property(superPackets, (made) => {
      const [ours, theirs] = [made, twinOf(made)].map((one) => ({
        datagrams: datagramsOf(one, [1]),
        cut: cutByHand(one),
      }));
      const zipped = ours?.datagrams.map((_, i) => (i % 2 === 0 ? ours : theirs)) ?? [];
      const { written } = feed(zipped.map((one, i) => one?.datagrams[i] as Buffer));
      const expected = zipped.map((one, i) => hex(one?.cut[i] as Buffer));
      t.deepEqual(written.flatMap((bytes) => segmentsOf(bytes)).map(hex), expected);
    }),
  );
});

test('what is short though more follows is refused, and what follows is not shifted', (t) => {
  const feed = openWriter(t);
  fc.assert(
    fc.property(
      superPackets.filter(({ bytes, headerLength, gsoSize }) => gsoSize > 1 && bytes.length > headerLength + gsoSize),
      (made) => {
        const [first, ...others] = datagramsOf(made, [1]) as [Buffer, ...Buffer[]];
        const { written } = feed([first.subarray(0, -1), ...others]);
        const got = written.flatMap((bytes) => segmentsOf(bytes)).map(hex);
        t.deepEqual(got, cutByHand(made).slice(1).map(hex));
      },
    ),
  );
});

test('no packet is longer than an IP packet can be, whatever goes on with it', (t) => {
  const feed = openWriter(t);
  for (const version of [4, 6]) {
    const isIpv4 = version === 4;
    const [csumStart, gsoSize] = [isIpv4 ? 20 : 40, 1_000];
    const bytes = Buffer.alloc(csumStart + 20 + 100 * gsoSize);
    bytes[0] = isIpv4 ? 0x45 : 0x60;
    bytes[isIpv4 ? 9 : 6] = 6;
    bytes[csumStart + 12] = 0x50;
    const made = { bytes, gsoType: isIpv4 ? GSO.tcp4 : GSO.tcp6, gsoSize, csumStart, headerLength: csumStart + 20 };
    const { written, segments } = feed(datagramsOf(made, [7, 1]));
    t.is(segments, 100);
    t.is(written.length, 2);
    for (const each of written) t.is(harmIn(each), undefined);
  }
});

/** Why a kernel, or what comes behind it, could be harmed by a write; what the sender's pods may do themselves is no harm. */
function harmIn(written: Buffer): string | undefined {
  const [flags = 0, type = 0] = written;
  const ip = written.subarray(VNET.bytes);
  const isIpv4 = (ip[0] as number) >> 4 === 4;
  const ipHeader = isIpv4 ? 4 * ((ip[0] as number) & 15) : 40;
  const [start, offset] = [u16le(written, VNET.csumStart), u16le(written, VNET.csumOffset)];
  if ((flags & ~VNET_NEEDS_CSUM) !== 0) return `flags ${flags}`;
  if (flags !== 0 && start + offset + 2 > ip.length) return 'a checksum behind the end';
  if (flags !== 0 && start < ipHeader) return 'a checksum over the header that was looked at';
  const gso = type & ~GSO_ECN;
  if (written.readUInt16LE(10) !== 0) return 'buffers';
  if (gso === GSO.none) return type === 0 ? undefined : `type ${type}`;
  const isTcp = gso === GSO.tcp4 || gso === GSO.tcp6;
  if (!isTcp && gso !== GSO.udp) return `type ${type}`;
  if (isIpv4 ? gso === GSO.tcp6 : gso === GSO.tcp4) return 'another family';
  if (flags === 0) return 'segments without a checksum';
  const [headers, size] = [u16le(written, VNET.headerLength), u16le(written, VNET.gsoSize)];
  if (size === 0 || headers + size >= ip.length) return `segments of ${size} in ${ip.length}`;
  if (ip.length > 65_535) return 'too long';
  const told = isIpv4 ? ip.readUInt16BE(2) : 40 + ip.readUInt16BE(4);
  return told === ip.length || ip.length > 65_535 ? undefined : `${told} bytes told of ${ip.length}`;
}

/** What the inbound thread looks at before. */
function isPacket(datagram: Buffer): boolean {
  const version = (datagram[DATA_HEADER.bytes] ?? 0) >> 4;
  const inner = datagram.length - DATA_HEADER.bytes;
  return (version === 4 && inner >= 20) || (version === 6 && inner >= 40);
}

test('nothing that is not well-formed is written, whatever comes', (t) => {
  const feed = openWriter(t);
  let written = 0;
  let refused = 0;
  fc.assert(
    fc.property(superPackets, runLengths, fc.nat(), (made, lengths, seed) => {
      const random = randomFrom(seed);
      const hostile = datagramsOf(made, lengths)
        .map((bytes) => (random() < 0.7 ? mutant(bytes, random) : bytes))
        .filter(isPacket);
      const { written: bytes, segments } = feed(hostile);
      for (const each of bytes) t.is(harmIn(each), undefined, `${hex(each.subarray(0, 100))}…`);
      written += bytes.length;
      if (segments === 0) refused++;
    }),
    { numRuns: 1_000 },
  );
  t.true(written > 500 && refused > 20, `${written} written, ${refused} refused`);
});

test('a datagram without segments is one packet; its checksum lies inside and behind the IP header', (t) => {
  const feed = openWriter(t);
  const packetOf = (csumStart: number, csumOffset: number, bytes: Buffer): Buffer => {
    const header = Buffer.alloc(DATA_HEADER.bytes);
    header[0] = 0x10;
    header[1] = DATA_FLAGS.needsCsum | DATA_FLAGS.last;
    header.writeUInt16LE(csumStart, DATA_HEADER.csumStart);
    header.writeUInt16LE(csumOffset, DATA_HEADER.csumOffset);
    return Buffer.concat([header, bytes]);
  };
  const ipv4 = Buffer.concat([Buffer.of(0x46), Buffer.alloc(43)]);
  const ipv6 = Buffer.concat([Buffer.of(0x60), Buffer.alloc(63)]);
  for (const [bytes, least] of [
    [ipv4, 24],
    [ipv6, 40],
  ] as const) {
    for (let start = 0; start < bytes.length + 4; start++) {
      const { written } = feed([packetOf(start, 6, bytes)]);
      t.is(written.length, start >= least && start + 8 <= bytes.length ? 1 : 0, `${start} of ${bytes.length}`);
    }
  }
});

test('a segment that is sound alone is written alone', (t) => {
  const feed = openWriter(t);
  fc.assert(
    fc.property(superPackets, (made) => {
      const [first] = datagramsOf(made, [1]);
      const { written } = feed([first as Buffer]);
      t.is(written.length, 1);
      t.is(written[0]?.[VNET.gsoType], 0);
      for (const segment of segmentsOf(written[0] as Buffer)) t.true(isSound(segment, made.csumStart));
    }),
  );
});
