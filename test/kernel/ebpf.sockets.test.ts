/** What programs at the socket make of real connections, in a namespace and a cgroup of their own. */
import test from 'ava';
import { families } from '../../agent/model/ip.ts';
import { createEbpfNode, frontendOf, program, SERVERS, setOf, VIPS } from '../support/ebpf-node.ts';

for (const { family } of families) {
  test(`${family}: TCP reaches each backend, and the peer is the Service`, async (t) => {
    const node = await createEbpfNode(t);
    const lane = node.openLane();
    const set = setOf(family, 0, 1, 2);
    await program(lane, { sets: [set], frontends: [frontendOf(family, { target: set.id })] });
    const caller = await node.caller();
    const seen = new Set<string | undefined>();
    for (let i = 0; i < 40; i++) {
      const { from, peer, error } = await caller.call({ how: 'tcp', ip: VIPS[family], port: 80 });
      t.is(error, undefined);
      t.is(peer, `${VIPS[family]} 80`);
      seen.add(from);
    }
    t.deepEqual([...seen].sort(), [...SERVERS[family]]);
    t.is(lane.counters().translated, 40n);
  });
}
