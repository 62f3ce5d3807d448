/** An agent whose main thread faults while its tunnel carries: run in a namespace that has the address 192.0.2.1. */
import { tunsOf } from '../../agent/kernel/netlink/tun.ts';
import { Threads } from '../../agent/kernel/tun/threads.ts';
import type { IpAddress } from '../../agent/model/ip.ts';

const link = 'tulle-tun';
tunsOf().create(link);
const local = '192.0.2.1' as IpAddress;
const item = { link, local, port: 8285, carriage: 'segments', encryption: 'none' } as const;
const threads = new Threads({ item, onMessage: () => undefined });
// Once both threads run, and wait in the kernel.
await threads.enter({ slot: 1, socketAddress: new Uint8Array(16).fill(2, 0, 1), prefixes: [], carriage: 'segments' });
setImmediate(() => {
  throw new Error('a fault of the main thread');
});
