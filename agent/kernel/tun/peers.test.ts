import test from 'ava';
import fc from 'fast-check';
import { cidr, ip } from '../../../test/support/cluster-values.ts';
import {
  bytesOf,
  type Cidr,
  cidrOf,
  containsIp,
  familyOf,
  type IpAddress,
  ipFromBytes,
  networkOf,
  prefixLengthOf,
} from '../../model/ip.ts';
import { socketAddress } from '../socket-address.ts';
import { type PeerEntry, Peers } from './peers.ts';

const PORT = 8285;

const entryOf = (slot: number, end: IpAddress, cidrs: readonly Cidr[]): PeerEntry => ({
  slot,
  socketAddress: Uint8Array.from(socketAddress(end, PORT)),
  prefixes: cidrs.map((each) => ({ bytes: bytesOf(networkOf(each)), length: prefixLengthOf(each) })),
  carriage: 'segments',
});

/** At an odd place, as packets lie in their buffers. */
const at = (bytes: Uint8Array): Buffer => Buffer.concat([Buffer.alloc(3, 0xff), bytes, Buffer.alloc(3, 0xff)]);
const slotOf = (peers: Peers, address: IpAddress): number | undefined =>
  peers.byAddress(at(bytesOf(address)), 3, familyOf(address) === 'ipv4' ? 1 : 4)?.entry.slot;
const slotAt = (peers: Peers, end: IpAddress): number | undefined =>
  peers.byEnd(at(socketAddress(end, 1)), 3)?.entry.slot;

// Few bits that differ, at the edges of words and in both halves, so that prefixes hold each other and keys collide.
const ipv4 = fc
  .tuple(fc.constantFrom(10, 11, 192), fc.constantFrom(0, 84, 255), fc.nat(3), fc.constantFrom(0, 1, 128, 255))
  .map((parts) => ip(parts.join('.')));
const groups = fc.constantFrom('0', '1', '8000', 'ffff', '84');
const ipv6 = fc.tuple(...Array.from({ length: 8 }, () => groups)).map((parts) => ip(parts.join(':')));
const addresses = fc.oneof(ipv4, ipv6);
const cidrs = fc.oneof(
  fc.tuple(ipv4, fc.constantFrom(0, 1, 8, 15, 16, 24, 31, 32)).map(([address, length]) => cidrOf(address, length)),
  fc
    .tuple(ipv6, fc.constantFrom(0, 1, 31, 32, 33, 64, 65, 96, 127, 128))
    .map(([address, length]) => cidrOf(address, length)),
);
const entries = fc.record({
  slot: fc.integer({ min: 1, max: 6 }),
  end: addresses,
  cidrs: fc.array(cidrs, { maxLength: 4 }),
});
const steps = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: entries.map((entry) => ({ kind: 'set' as const, ...entry })) },
    { weight: 1, arbitrary: fc.integer({ min: 1, max: 6 }).map((slot) => ({ kind: 'delete' as const, slot })) },
  ),
  { maxLength: 12 },
);

interface Known {
  readonly slot: number;
  readonly end: IpAddress;
  readonly cidrs: readonly Cidr[];
}

/** The list that the tables stand for: the longest prefix, of those alike the one that was entered last. */
function byList(known: readonly Known[], address: IpAddress): number | undefined {
  const hits = known.flatMap(({ slot, cidrs: each }) =>
    each.filter((one) => familyOf(one) === familyOf(address) && containsIp(one, address)).map((one) => ({ slot, one })),
  );
  return hits.reduce<(typeof hits)[number] | undefined>(
    (best, hit) => (!best || prefixLengthOf(hit.one) >= prefixLengthOf(best.one) ? hit : best),
    undefined,
  )?.slot;
}

test('peers are found as in a list: by the longest prefix and by their end, whatever came and went', (t) => {
  fc.assert(
    fc.property(steps, fc.array(addresses, { maxLength: 30 }), (changes, asked) => {
      const peers = new Peers();
      let known: readonly Known[] = [];
      // Nobody else has the place of one who goes: what plans are made of has each end and prefix once.
      const isFree = ({ slot, end, cidrs: wanted }: Known): boolean =>
        known.every(
          (each) => each.slot === slot || (each.end !== end && !each.cidrs.some((one) => wanted.includes(one))),
        );
      for (const change of changes) {
        if (change.kind === 'set' && !isFree(change)) continue;
        known = known.filter(({ slot }) => slot !== change.slot);
        if (change.kind === 'delete') peers.delete(change.slot);
        else {
          peers.set(entryOf(change.slot, change.end, change.cidrs));
          known = [...known, change];
        }
        // Asked in between as well: the last answer is kept for the next packet.
        for (const address of asked.slice(0, 3)) t.is(slotOf(peers, address), byList(known, address), address);
      }
      const inside = known.flatMap(({ end, cidrs: each }) => [end, ...each.map(networkOf)]);
      for (const address of [...asked, ...inside]) {
        t.is(slotOf(peers, address), byList(known, address), address);
        t.is(slotOf(peers, address), byList(known, address), `${address} once more`);
        t.is(slotAt(peers, address), known.find(({ end }) => end === address)?.slot, `end ${address}`);
      }
    }),
    { numRuns: 300 },
  );
});

test('a peer owns what lies in its prefixes, of its family', (t) => {
  fc.assert(
    fc.property(fc.array(cidrs, { maxLength: 4 }), fc.array(addresses, { maxLength: 20 }), (each, asked) => {
      const peer = new Peers().set(entryOf(1, ip('192.0.2.1'), each));
      for (const address of [...asked, ...each.map(networkOf)]) {
        const expected = each.some((one) => familyOf(one) === familyOf(address) && containsIp(one, address));
        t.is(peer.owns(at(bytesOf(address)), 3, familyOf(address) === 'ipv4' ? 1 : 4), expected, address);
      }
    }),
  );
});

/** Multiplied by FACTOR modulo 2^32 it is 1, by Newton's iteration. */
const FACTOR = 0x9e3779b1;
const INVERSE = [0, 1, 2, 3, 4].reduce((inverse) => Math.imul(inverse, 2 - Math.imul(FACTOR, inverse)), FACTOR);
const mixed = (hash: number, word: number): number => (Math.imul(hash ^ word, FACTOR) ^ (word >>> 15)) >>> 0;

/** Addresses that the hash of peers.ts cannot tell apart: the second word undoes what the first one did. */
function collidingAddresses(): readonly IpAddress[] {
  const found: IpAddress[] = [];
  for (let first = 0xfd840000; found.length < 4; first++) {
    const hash = mixed(0, first);
    for (let upper = 0; upper < 2 ** 17; upper++) {
      const word = (hash ^ Math.imul(0x1234 ^ upper, INVERSE)) >>> 0;
      if (word >>> 15 !== upper) continue;
      const bytes = Buffer.alloc(16);
      bytes.writeUInt32BE(first, 0);
      bytes.writeUInt32BE(word, 4);
      found.push(ipFromBytes(bytes));
      break;
    }
  }
  return found;
}

test('addresses whose words have one hash are told apart', (t) => {
  const peers = new Peers();
  const collisions = collidingAddresses();
  collisions.forEach((address, i) => {
    peers.set(entryOf(i + 1, ip(`192.0.2.${i + 1}`), [cidrOf(address, 128)]));
  });
  collisions.forEach((address, i) => {
    t.is(slotOf(peers, address), i + 1, address);
  });
  peers.delete(1);
  t.is(slotOf(peers, collisions[0] as IpAddress), undefined);
  t.is(slotOf(peers, collisions[1] as IpAddress), 2);
});

test('of two that claim one prefix the later has it, and keeps it when the former goes', (t) => {
  const peers = new Peers();
  const shared = cidr('10.84.1.0/24');
  peers.set(entryOf(1, ip('192.0.2.1'), [shared]));
  peers.set(entryOf(2, ip('192.0.2.2'), [shared]));
  t.is(slotOf(peers, ip('10.84.1.9')), 2);
  peers.delete(1);
  t.is(slotOf(peers, ip('10.84.1.9')), 2);
  peers.delete(2);
  t.is(slotOf(peers, ip('10.84.1.9')), undefined);
});

test('gateway: the first address of the first prefix of a family', (t) => {
  const peer = new Peers().set(
    entryOf(1, ip('192.0.2.1'), [cidr('10.84.2.0/24'), cidr('10.85.0.0/24'), cidr('fd84:0:0:2::/64')]),
  );
  t.deepEqual(peer.gateway(4), bytesOf(ip('10.84.2.1')));
  t.deepEqual(peer.gateway(16), bytesOf(ip('fd84:0:0:2::1')));
  const single = new Peers().set(entryOf(1, ip('192.0.2.1'), [cidr('10.84.2.6/32')]));
  t.deepEqual(single.gateway(4), bytesOf(ip('10.84.2.6')));
  t.is(single.gateway(16), undefined);
});
