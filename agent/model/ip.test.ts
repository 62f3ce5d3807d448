import test from 'ava';
import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import {
  addressAt,
  bytesOf,
  type Cidr,
  cidrOf,
  containsCidr,
  containsIp,
  FAMILIES,
  factsOf,
  families,
  familyOf,
  hostCidr,
  type IpAddress,
  ipFromBytes,
  networkOf,
  offsetIn,
  overlaps,
  parseCidr,
  parseIp,
  prefixLengthOf,
  rangeOf,
  sizeOf,
} from './ip.ts';

const accepted: readonly (readonly [text: string, canonical: string])[] = [
  ['0.0.0.0', '0.0.0.0'],
  ['255.255.255.255', '255.255.255.255'],
  ['::', '::'],
  ['::1', '::1'],
  ['0:0:0:0:0:0:0:0', '::'],
  ['2001:DB8::A', '2001:db8::a'],
  ['2001:0db8:0000:0000:0001:0000:0000:0001', '2001:db8::1:0:0:1'],
  ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
  ['1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0'],
  ['::2:3:4:5:6:7:8', '0:2:3:4:5:6:7:8'],
  ['1:0:0:2:0:0:0:3', '1:0:0:2::3'],
  ['::ffff:192.0.2.1', '::ffff:192.0.2.1'],
  ['::ffff:c000:201', '::ffff:192.0.2.1'],
  ['64:ff9b::192.0.2.1', '64:ff9b::c000:201'],
  ['1:2:3:4:5:6:192.0.2.1', '1:2:3:4:5:6:c000:201'],
];
for (const [text, canonical] of accepted) {
  test(`parseIp: ${text} is ${canonical}`, (t) => t.is(parseIp(text) as string, canonical));
}

const rejected = [
  '',
  ' ',
  ' 1.2.3.4',
  '1.2.3.4\n',
  '1.2.3',
  '1.2.3.4.5',
  '1.2.3.256',
  '01.2.3.4',
  '1.2.3.04',
  '0x1.2.3.4',
  '1.2.3.-4',
  '1.2.3.4/32',
  '1.2..4',
  ':',
  ':::',
  '1:::2',
  '1::2::3',
  '1:2:3:4:5:6:7',
  '1:2:3:4:5:6:7:8:9',
  '1:2:3:4::5:6:7:8',
  '1:2:3:4:5:6:7:8::',
  ':1:2:3:4:5:6:7',
  '1:2:3:4:5:6:7:',
  '12345::',
  'g::',
  'fe80::1%eth0',
  '[::1]',
  '::1.2.3',
  '::1.2.3.256',
  '1.2.3.4::',
  '1.2.3.4:1::',
  '::1.2.3.4:1',
  '1:2:3:4:5:6:7:1.2.3.4',
  '::ffff:01.2.3.4',
];
for (const text of rejected) {
  test(`parseIp refuses ${JSON.stringify(text)}`, (t) => t.is(parseIp(text), undefined));
}

const cidrs: readonly (readonly [text: string, canonical: string | undefined, strict: string | undefined])[] = [
  ['10.244.3.0/24', '10.244.3.0/24', '10.244.3.0/24'],
  ['10.244.3.9/24', '10.244.3.0/24', undefined],
  ['0.0.0.0/0', '0.0.0.0/0', '0.0.0.0/0'],
  ['10.1.2.3/32', '10.1.2.3/32', '10.1.2.3/32'],
  ['10.255.255.255/9', '10.128.0.0/9', undefined],
  ['FD00:0:0:1::/64', 'fd00:0:0:1::/64', 'fd00:0:0:1::/64'],
  ['fd00::ffff/113', 'fd00::8000/113', undefined],
  ['::/0', '::/0', '::/0'],
  ['10.0.0.0', undefined, undefined],
  ['10.0.0.0/', undefined, undefined],
  ['10.0.0.0/33', undefined, undefined],
  ['10.0.0.0/-1', undefined, undefined],
  ['10.0.0.0/08', undefined, undefined],
  ['10.0.0.0/8/8', undefined, undefined],
  ['10.0.0.0/ 8', undefined, undefined],
  ['10.0.0.0/255.0.0.0', undefined, undefined],
  ['fd00::/129', undefined, undefined],
  ['/8', undefined, undefined],
];
for (const [text, canonical, strict] of cidrs) {
  test(`parseCidr: ${text} is ${canonical}, strictly ${strict}`, (t) => {
    t.is(parseCidr(text) as string | undefined, canonical);
    t.is(parseCidr(text, { strict: true }) as string | undefined, strict);
  });
}

/** Addresses with the runs of zeros that make text forms differ. */
const anyBytes = fc.oneof(
  fc.uint8Array({ minLength: 4, maxLength: 4 }),
  fc.array(fc.constantFrom(0, 0, 0, 1, 0xffff), { minLength: 8, maxLength: 8 }).map(bytesOfGroups),
  fc.uint8Array({ minLength: 16, maxLength: 16 }),
);
const anyIp = anyBytes.map(ipFromBytes);
const anyCidr = anyIp.chain((ip) => fc.nat({ max: factsOf(ip).bits }).map((length) => cidrOf(ip, length)));
/** Pairs that have something to do with each other more often than chance allows. */
const relatedCidrs = anyCidr.chain((cidr) =>
  fc.nat({ max: factsOf(cidr).bits }).map((length) => [cidr, cidrOf(networkOf(cidr), length)] as const),
);

function bytesOfGroups(groups: readonly number[]): Uint8Array {
  return Uint8Array.from(groups.flatMap((group) => [group >> 8, group & 0xff]));
}

const oracle = (ip: IpAddress) => ipaddr.parse(ip);
const oracleCidr = (cidr: Cidr) => ipaddr.parseCIDR(cidr);

test('bytes and text are the same address, as ipaddr.js reads it', (t) => {
  fc.assert(
    fc.property(anyBytes, (bytes) => {
      const ip = ipFromBytes(bytes);
      t.deepEqual(bytesOf(ip), bytes);
      t.is(parseIp(ip), ip);
      t.deepEqual(oracle(ip).toByteArray(), Array.from(bytes));
    }),
  );
  t.pass();
});

test('the text of an IPv6 address is what RFC 5952 says, as ipaddr.js writes it', (t) => {
  fc.assert(
    fc.property(anyIp, (ip) => {
      const parsed = oracle(ip);
      if (!(parsed instanceof ipaddr.IPv6) || parsed.isIPv4MappedAddress()) return;
      t.is(ip as string, parsed.toRFC5952String());
    }),
  );
  t.pass();
});

test('parseIp accepts what ipaddr.js accepts, and nothing else', (t) => {
  const group = fc.constantFrom('0', '00', '1', 'F', 'abcd', '00001', '', ':', '1.2.3.4', '1.2.3', 'g');
  const text = fc.oneof(
    fc.array(group, { minLength: 1, maxLength: 9 }).map((groups) => groups.join(':')),
    fc
      .array(fc.constantFrom('0', '1', '10', '255', '256', '01', '', '-1'), { minLength: 1, maxLength: 5 })
      .map((parts) => parts.join('.')),
  );
  fc.assert(
    fc.property(text, (candidate) => {
      const valid = candidate.includes(':')
        ? ipaddr.IPv6.isValid(candidate)
        : ipaddr.IPv4.isValidFourPartDecimal(candidate);
      t.is(parseIp(candidate) !== undefined, valid, candidate);
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

test('parseIp and parseCidr never throw', (t) => {
  const text = fc.oneof(fc.string(), fc.stringMatching(/^[0-9a-f:./%]{0,50}$/));
  fc.assert(
    fc.property(text, (candidate) => {
      const ip = parseIp(candidate);
      if (ip !== undefined) t.is(parseIp(ip), ip);
      const cidr = parseCidr(candidate);
      if (cidr !== undefined) t.is(parseCidr(cidr, { strict: true }), cidr);
    }),
  );
  t.pass();
});

test('containsIp agrees with ipaddr.js', (t) => {
  const near = anyCidr.chain((cidr) =>
    fc.tuple(
      fc.constant(cidr),
      fc.oneof(
        anyIp,
        fc.bigInt({ min: 0n, max: sizeOf(cidr) - 1n }).map((offset) => addressAt(cidr, offset)),
      ),
    ),
  );
  fc.assert(
    fc.property(near, ([cidr, ip]) => {
      const same = familyOf(cidr) === familyOf(ip);
      t.is(containsIp(cidr, ip), same && oracle(ip).match(oracleCidr(cidr)));
    }),
  );
  t.pass();
});

test('addressAt and offsetIn are inverse; the range holds all of them', (t) => {
  const place = anyCidr.chain((cidr) => fc.tuple(fc.constant(cidr), fc.bigInt({ min: 0n, max: sizeOf(cidr) - 1n })));
  fc.assert(
    fc.property(place, ([cidr, offset]) => {
      const ip = addressAt(cidr, offset);
      t.is(offsetIn(cidr, ip), offset);
      t.is(rangeOf(cidr).first + offset <= rangeOf(cidr).last, true);
      t.is(rangeOf(cidr).last - rangeOf(cidr).first + 1n, sizeOf(cidr));
      t.is(rangeOf(hostCidr(ip)).first, rangeOf(cidr).first + offset);
    }),
  );
  t.pass();
});

test('a CIDR contains another exactly when its range does, and overlaps are one of both ways', (t) => {
  fc.assert(
    fc.property(fc.oneof(relatedCidrs, fc.tuple(anyCidr, anyCidr)), ([a, b]) => {
      const [outer, inner] = [rangeOf(a), rangeOf(b)];
      const holds = familyOf(a) === familyOf(b) && outer.first <= inner.first && inner.last <= outer.last;
      t.is(containsCidr(a, b), holds);
      const meet = familyOf(a) === familyOf(b) && outer.first <= inner.last && inner.first <= outer.last;
      t.is(overlaps(a, b), meet);
      t.is(overlaps(b, a), meet);
    }),
  );
  t.pass();
});

test('the parts of a CIDR are its text', (t) => {
  fc.assert(
    fc.property(anyCidr, (cidr) => {
      t.is(`${networkOf(cidr)}/${prefixLengthOf(cidr)}` as Cidr, cidr);
      t.is(cidrOf(networkOf(cidr), prefixLengthOf(cidr)), cidr);
    }),
  );
  t.pass();
});

test('arithmetic outside of its domain is refused', (t) => {
  const cidr = parseCidr('10.0.0.0/30') as Cidr;
  t.is(addressAt(cidr, 3), '10.0.0.3' as IpAddress);
  for (const offset of [-1, 4, 1n << 40n]) t.throws(() => addressAt(cidr, offset), { instanceOf: RangeError });
  t.is(offsetIn(cidr, '10.0.0.4' as IpAddress), undefined);
  t.is(offsetIn(cidr, '::1' as IpAddress), undefined);
  for (const length of [-1, 33, 1.5, Number.NaN]) {
    t.throws(() => cidrOf('10.0.0.0' as IpAddress, length), { instanceOf: RangeError }, String(length));
  }
  for (const length of [0, 3, 5, 15, 17]) {
    t.throws(() => ipFromBytes(new Uint8Array(length)), { instanceOf: TypeError });
  }
  t.throws(() => bytesOf('nonsense' as IpAddress), { instanceOf: TypeError });
});

test('a /0 and a host CIDR are the ends of the scale, in both families', (t) => {
  for (const { family, bits } of families) {
    const zero = ipFromBytes(new Uint8Array(bits / 8));
    const all = cidrOf(zero, 0);
    t.is(sizeOf(all), 1n << BigInt(bits));
    t.is(sizeOf(hostCidr(zero)), 1n);
    t.is(containsCidr(all, FAMILIES[family].multicast), true);
    t.is(factsOf(all).family, family);
    t.is(addressAt(all, sizeOf(all) - 1n), ipFromBytes(new Uint8Array(bits / 8).fill(0xff)));
  }
});
