import test from 'ava';
import fc from 'fast-check';
import { hostileBytes } from '../../../test/support/hostile-bytes.ts';
import { parseCidr } from '../../model/ip.ts';
import { attribute, nested, text, u8, u32Be } from '../netlink/attributes.ts';
import type { NetlinkMessage } from '../netlink/message.ts';
import { readElements, readHeader } from './protocol.ts';

const RUNS = { numRuns: 2000 };

const message = (...attributes: readonly Uint8Array[]): NetlinkMessage => ({
  type: 0x607,
  flags: 0,
  port: 0,
  payload: Buffer.concat([Buffer.of(2, 0, 0, 0), ...attributes]),
});
const HEADER = [text(2, 'tulle-a'), text(3, 'hash:net'), u8(5, 2)];
const element = (...parts: readonly Uint8Array[]): Buffer => nested(7, ...parts);
const ip = (type: number, ...bytes: readonly number[]): Buffer =>
  nested(1, attribute(type | 0x4000, Buffer.of(...bytes)));
const IPV6 = ip(2, 0xfd, 0x84, ...Array(14).fill(0));

const header = message(...HEADER, nested(7, u32Be(19, 1024)));
const elements = message(
  text(2, 'tulle-a'),
  nested(8, element(ip(1, 10, 0, 0, 0), u8(3, 8)), element(ip(1, 10, 1, 0, 7), u32Be(8, 4)), element(IPV6, u8(3, 64))),
);

test('readHeader and readElements: a right message is read', (t) => {
  t.deepEqual(readHeader(header), { name: 'tulle-a', type: 'hash:net', family: 'ipv4', maxElements: 1024 });
  t.deepEqual(
    [...readElements(elements)].map(({ entry, altered }) => `${entry} ${altered}`),
    ['10.0.0.0/8 false', '10.1.0.7/32 true', 'fd84::/64 false'],
  );
});

test('readHeader and readElements: wrong messages never throw, and an entry is always a CIDR', (t) => {
  // Numbers of every length in the place of those that the kernel writes.
  const odd = fc.tuple(fc.constantFrom(3, 8, 19), fc.uint8Array({ maxLength: 5 })).map(([type, bytes]) => {
    const part = attribute(type, bytes);
    return message(...HEADER, nested(7, part), nested(8, element(ip(1, 10, 0, 0, 0), part), element(IPV6, part)))
      .payload;
  });
  fc.assert(
    fc.property(fc.oneof(hostileBytes([header.payload, elements.payload]), odd), (payload) => {
      readHeader({ ...header, payload });
      return [...readElements({ ...header, payload })].every(({ entry }) => parseCidr(entry) !== undefined);
    }),
    RUNS,
  );
  t.pass();
});
