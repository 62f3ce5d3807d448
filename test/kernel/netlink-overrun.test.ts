/** What the request socket does when the kernel has more to say than fits its receive buffer. */
import { closeSync, openSync } from 'node:fs';
import test from 'ava';
import { NETLINK_PROTOCOL, type NetlinkRequest } from '../../agent/kernel/netlink/message.ts';
import { linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { createNetns } from '../support/netns.ts';

/** A refusal repeats the request, this attribute of a kind that no kernel knows included. */
const PADDING = Buffer.alloc(3_000);
PADDING.writeUInt16LE(PADDING.length, 0);
PADDING.writeUInt16LE(0x3ff0, 2);

const refused = (n: number): NetlinkRequest => ({
  type: RTM.DELLINK,
  payload: Buffer.concat([linkHeader({ ifindex: 10_000 + n }), PADDING]),
  operation: 'delete',
  object: `link ${n}`,
});
const lo: NetlinkRequest = {
  type: RTM.GETLINK,
  payload: linkHeader({ ifindex: 1 }),
  operation: 'read',
  object: 'link lo',
};

test('an overrun fails what was asked, and the next answers are those of the next questions', async (t) => {
  const { path } = await createNetns(t, 'host');
  const netnsFd = openSync(path, 'r');
  t.teardown(() => closeSync(netnsFd));
  const socket = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd });
  t.teardown(() => socket.close());
  const errors = await socket.batch(Array.from({ length: 64 }, (_, n) => refused(n)));
  const codes = new Set(errors.map((error) => error?.code));
  t.log([...codes].join(' '));
  t.deepEqual([...codes], ['ENOBUFS'], 'not one answer is taken for another');
  for (let turn = 0; turn < 3; turn++) {
    t.is((await socket.request(lo)).length, 1);
    t.is((await socket.dump({ ...lo, payload: linkHeader() })).length, 1);
    t.is((await socket.batch([refused(1)]))[0]?.code, 'ENODEV');
  }
});
