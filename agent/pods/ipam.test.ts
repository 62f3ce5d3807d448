import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import test from 'ava';
import fc from 'fast-check';
import { cidr, ip } from '../../test/support/cluster-values.ts';
import { type Cidr, containsIp, type IpAddress } from '../model/ip.ts';
import { type AddressUse, capacityOf, countAddresses, nextAddress } from './ipam.ts';

const nothing: AddressUse = { inUse: new Set(), released: new Map(), restedMs: 0, last: undefined };

test("the first address after the node's own is given first, then the next ones, round the end", (t) => {
  const small = cidr('10.84.1.0/29');
  t.is(nextAddress(small, nothing), ip('10.84.1.2'));
  t.is(nextAddress(small, { ...nothing, last: ip('10.84.1.2') }), ip('10.84.1.3'));
  t.is(nextAddress(small, { ...nothing, last: ip('10.84.1.6') }), ip('10.84.1.2'));
  // An address of another range (the node's former CIDR) does not matter.
  t.is(nextAddress(small, { ...nothing, last: ip('10.99.0.7') }), ip('10.84.1.2'));
  t.is(nextAddress(cidr('fd84::/64'), { ...nothing, last: ip('fd84::ffff') }), ip('fd84::1:0'));
});

test('a resting address is given only when no other is left, the longest resting first', (t) => {
  const small = cidr('10.84.1.0/29');
  const released = new Map([
    [ip('10.84.1.3'), 2000],
    [ip('10.84.1.4'), 1000],
  ]);
  const afterFirst = { released, restedMs: 1000, last: ip('10.84.1.2') };
  t.is(nextAddress(small, { ...afterFirst, inUse: new Set([ip('10.84.1.2')]) }), ip('10.84.1.5'));
  const inUse = new Set(['10.84.1.2', '10.84.1.5', '10.84.1.6'].map(ip));
  t.is(nextAddress(small, { ...afterFirst, inUse }), ip('10.84.1.4'));
  // Long enough is as free as never given out.
  t.is(nextAddress(small, { ...afterFirst, inUse, restedMs: 2001 }), ip('10.84.1.3'));
});

test('nothing is left in a full range, and ranges too small for pods have nothing', (t) => {
  t.is(nextAddress(cidr('10.0.0.0/30'), { ...nothing, inUse: new Set([ip('10.0.0.2')]) }), undefined);
  for (const tiny of ['10.0.0.0/31', '10.0.0.0/32', 'fd00::/127', 'fd00::/128']) {
    t.is(capacityOf(cidr(tiny)), 0n, tiny);
    t.is(nextAddress(cidr(tiny), nothing), undefined, tiny);
  }
});

test('addresses are counted in their own range only, and none twice', (t) => {
  const inUse = new Set(['10.84.1.2', '10.84.1.3', '10.99.0.7', 'fd84::2'].map(ip));
  // One that was released and is in use again rests no more, nor does one that has rested.
  const released = new Map(['10.84.1.3', '10.84.1.4', '10.99.0.8'].map((text) => [ip(text), 1000]));
  released.set(ip('10.84.1.5'), 999);
  const counted = ['10.84.1.0/29', 'fd84::/120', '10.0.0.0/31'].map((text) =>
    countAddresses(cidr(text), { inUse, released, restedMs: 1000 }),
  );
  t.deepEqual(counted, [
    { family: 'ipv4', used: 2, resting: 1, free: 2 },
    { family: 'ipv6', used: 1, resting: 0, free: 253 },
    { family: 'ipv4', used: 0, resting: 0, free: 0 },
  ]);
});

test('filling any small range gives every usable address once and no other', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom('10.0.0.0/28', '0.0.0.0/27', '255.255.255.224/27', 'fd00::/124', 'ffff::ffff:fff0/124'),
      (text) => {
        const range = cidr(text);
        const inUse = new Set<IpAddress>();
        let last: IpAddress | undefined;
        for (
          let next = nextAddress(range, { inUse, released: new Map(), restedMs: 0, last });
          next;
          next = nextAddress(range, { inUse, released: new Map(), restedMs: 0, last })
        ) {
          if (inUse.has(next)) throw new Error(`${next} was given twice`);
          inUse.add(next);
          last = next;
        }
        t.is(BigInt(inUse.size), capacityOf(range));
        t.true([...inUse].every((each) => containsIp(range, each) && !reserved(range).has(each)));
      },
    ),
  );
});

/** Network address, the node's own, and IPv4's broadcast, written out. */
const reserved = (range: Cidr): ReadonlySet<string> =>
  new Set(
    {
      '10.0.0.0/28': ['10.0.0.0', '10.0.0.1', '10.0.0.15'],
      '0.0.0.0/27': ['0.0.0.0', '0.0.0.1', '0.0.0.31'],
      '255.255.255.224/27': ['255.255.255.224', '255.255.255.225', '255.255.255.255'],
      'fd00::/124': ['fd00::', 'fd00::1'],
      'ffff::ffff:fff0/124': ['ffff::ffff:fff0', 'ffff::ffff:fff1'],
    }[range as string],
  );

test('addresses of a range that is never used up are not kept', (t) => {
  setFlagsFromString('--expose-gc');
  const collectGarbage: () => void = runInNewContext('gc');
  const large = cidr('fd84:0:0:1::/64');
  const ADDS = 20_000;
  let last = nextAddress(large, nothing);
  collectGarbage();
  const before = process.memoryUsage().heapUsed;
  for (let i = 0; i < ADDS; i++) last = nextAddress(large, { ...nothing, last });
  collectGarbage();
  t.is(last, ip('fd84:0:0:1::4e22'));
  const keptBytes = process.memoryUsage().heapUsed - before;
  t.true(keptBytes < ADDS * 20, `${keptBytes} bytes after ${ADDS} addresses`);
});
