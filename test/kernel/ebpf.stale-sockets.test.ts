/** Connected datagram sockets whose backend is gone, in real namespaces. */
import test from 'ava';
import { type ConnectedSocket, destroySockets } from '../../agent/kernel/bpf/stale-sockets.ts';
import { withFd } from '../../agent/kernel/libc.ts';
import { NETLINK_PROTOCOL } from '../../agent/kernel/netlink/message.ts';
import { NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { identifyNetns } from '../../agent/kernel/netns/netns.ts';
import { families, type IpAddress } from '../../agent/model/ip.ts';
import { createEbpfNode, frontendOf, program, SERVER_PORT, SERVERS, setOf, VIPS } from '../support/ebpf-node.ts';
import type { Call } from '../support/socket-caller.ts';

const signal = AbortSignal.timeout(60_000);

for (const { family } of families) {
  test.serial(`${family}: a socket whose backend is gone is destroyed, and no other`, async (t) => {
    const node = await createEbpfNode(t);
    const lane = node.openLane();
    const caller = await node.caller();
    const frontends = (...servers: readonly number[]) => {
      const set = setOf(family, ...servers);
      return { sets: [set], frontends: [frontendOf(family, { protocol: 'UDP', target: set.id })] };
    };
    const [gone, stays] = SERVERS[family] as readonly IpAddress[] as readonly [IpAddress, IpAddress, IpAddress];
    const service = (socket: string): Call => ({ how: 'udp-connected', ip: VIPS[family], port: 80, socket });
    const direct: Call = { how: 'udp-connected', ip: gone, port: SERVER_PORT, socket: 'direct' };
    const loose: Call = { how: 'udp', ip: gone, port: SERVER_PORT, socket: 'loose' };
    await program(lane, frontends(0));
    t.is((await caller.call(service('old'))).from, gone);
    // A socket of IPv6 that speaks IPv4 is one of IPv6 to the kernel.
    const mapped: Call = { ...service('mapped'), ip: family === 'ipv4' ? `::ffff:${VIPS.ipv4}` : VIPS.ipv6 };
    t.is((await caller.call(mapped)).from, gone);
    // What the programs wrote into it stays when it is connected to somebody else.
    const moved: Call = { ...service('moved'), ip: stays, port: SERVER_PORT };
    t.is((await caller.call(service('moved'))).from, gone);
    t.is((await caller.call(moved)).from, stays);
    await program(lane, frontends(1));
    t.is((await caller.call(service('new'))).from, stays);
    for (const call of [direct, loose]) t.is((await caller.call(call)).from, gone);
    t.is((await caller.call(service('old'))).from, gone, 'nobody has told it');

    const isOf = (ip: string) => (socket: ConnectedSocket) => socket.backend.ip === ip;
    const sockets = await lane.connectedSockets(signal);
    const conversation = (ip: string) => ({
      frontend: { ip: VIPS[family], port: 80 },
      backend: { ip, port: SERVER_PORT },
      netns: Number(identifyNetns(node.netns.path).inode),
    });
    t.deepEqual(
      sockets.map(({ request: _, ...rest }) => rest).toSorted((a, b) => (a.backend.ip < b.backend.ip ? -1 : 1)),
      [conversation(gone), conversation(gone), conversation(stays)] as never,
    );
    const client = withFd(node.netns.path, (netnsFd) => new NetlinkSocket(NETLINK_PROTOCOL.SOCK_DIAG, { netnsFd }));
    t.teardown(() => client.close());
    t.is(await destroySockets(client, sockets.filter(isOf(gone))), 2);
    for (const call of [service('old'), mapped])
      t.regex((await caller.call(call)).error ?? '', /^(ECONNABORTED|EDESTADDRREQ)$/);
    t.is((await caller.call(service('new'))).from, stays);
    t.is((await caller.call(moved)).from, stays);
    for (const call of [direct, loose]) t.is((await caller.call(call)).from, gone);
    t.is(await destroySockets(client, sockets.filter(isOf(gone))), 0, 'it is no such socket any more');
    // Whoever opens a socket anew is served.
    t.is((await caller.call(service('another'))).from, stays);
  });
}
