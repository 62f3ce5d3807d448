import test from 'ava';
import fc from 'fast-check';
import { ip } from '../../../test/support/cluster-values.ts';
import { internetSum, isSound, superPackets } from '../../../test/support/super-packets.ts';
import { bytesOf } from '../../model/ip.ts';
import { tooBig } from './too-big.ts';

const SOURCES = { 4: bytesOf(ip('10.84.2.1')), 6: bytesOf(ip('fd84:0:0:2::1')) } as const;

test('an answer has right lengths and checksums, goes to the sender, names the size and quotes the packet', (t) => {
  fc.assert(
    fc.property(superPackets, fc.integer({ min: 552, max: 65_535 }), ({ bytes }, mtuBytes) => {
      const version = (bytes.readUInt8(0) >> 4) as 4 | 6;
      const answer = tooBig(bytes, mtuBytes, SOURCES[version]);
      t.is(answer.readUInt8(0) >> 4, version);
      const header = version === 4 ? 20 : 40;
      const [sourceAt, destinationAt, length] = version === 4 ? [12, 16, 4] : [8, 24, 16];
      t.deepEqual(answer.subarray(sourceAt, sourceAt + length), Buffer.from(SOURCES[version]));
      t.deepEqual(answer.subarray(destinationAt, destinationAt + length), bytes.subarray(sourceAt, sourceAt + length));
      const message = answer.subarray(header);
      if (version === 4) {
        t.is(answer.readUInt16BE(2), answer.length);
        t.is(answer.readUInt8(9), 1);
        t.is(internetSum(answer.subarray(0, 20)), 0xffff);
        t.is(internetSum(message), 0xffff);
        t.deepEqual([...message.subarray(0, 2)], [3, 4]);
        t.is(message.readUInt16BE(6), mtuBytes);
      } else {
        t.is(answer.readUInt8(6), 58);
        t.true(isSound(answer, 40));
        t.deepEqual([...message.subarray(0, 2)], [2, 0]);
        t.is(message.readUInt32BE(4), mtuBytes);
      }
      t.is(answer.length, Math.min(version === 4 ? 576 : 1280, header + 8 + bytes.length));
      t.deepEqual(message.subarray(8), bytes.subarray(0, answer.length - header - 8));
    }),
  );
});
