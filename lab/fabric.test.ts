import test from 'ava';
import { containsIp, type Family, familyOf } from '../agent/model/ip.ts';
import { MAX_NODES, MAX_SEGMENTS, planAttachment, routerAddress, segmentCidr } from './fabric.ts';

const dual: readonly Family[] = ['ipv4', 'ipv6'];

test('planAttachment deals nodes to the segments in turn, with the same digits in both families', (t) => {
  const shape = { families: dual, segments: 2 };
  const rows = [0, 1, 2, 99].map((index) => {
    const { segment, addresses } = planAttachment(index, shape);
    return `node-${index + 1} segment ${segment}: ${addresses.join(' ')}`;
  });
  t.deepEqual(rows, [
    'node-1 segment 0: 172.30.0.11 fd30::11',
    'node-2 segment 1: 172.30.1.12 fd30:0:0:1::12',
    'node-3 segment 0: 172.30.0.13 fd30::13',
    'node-100 segment 1: 172.30.1.110 fd30:0:0:1::110',
  ]);
});

test('planAttachment gives only the families that were asked for', (t) => {
  t.deepEqual(planAttachment(0, { families: ['ipv6'], segments: 1 }).addresses.map(familyOf), ['ipv6']);
});

test('every node of the largest lab has an address of its own inside its segment, and none is the router', (t) => {
  for (const segments of [1, MAX_SEGMENTS]) {
    const seen = new Set<string>();
    for (let index = 0; index < MAX_NODES; index++) {
      const { segment, addresses } = planAttachment(index, { families: dual, segments });
      for (const address of addresses) {
        const family = familyOf(address);
        t.true(containsIp(segmentCidr(segment, family), address), address);
        t.not(address, routerAddress(segment, family));
        seen.add(address);
      }
    }
    t.is(seen.size, 2 * MAX_NODES);
  }
});
