/** A host's netfilter for contract tests: a fresh network namespace, or the fakes. */
import type { ExecutionContext } from 'ava';
import { type Run, run } from '../../agent/kernel/command.ts';
import { withFd } from '../../agent/kernel/libc.ts';
import { NETLINK_PROTOCOL, type NetlinkClient } from '../../agent/kernel/netlink/message.ts';
import { NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { FakeIpset } from './fake-ipset.ts';
import { FakeIptables } from './fake-iptables.ts';
import { createNetns, type Netns } from './netns.ts';

export interface NetfilterHost {
  readonly run: Run;
  readonly client: NetlinkClient;
}

export function fakeHost(): NetfilterHost {
  const iptables: FakeIptables = new FakeIptables({ hasSet: (name) => ipset.sets.has(name) });
  const ipset: FakeIpset = new FakeIpset({ isUsed: (name) => iptables.usesSet(name) });
  return { run: (command) => (command.file === 'ipset' ? ipset : iptables).run(command), client: ipset };
}

export const kernelHost = async (t: ExecutionContext): Promise<NetfilterHost> => netfilterOf(t, await createNetns(t));

/** The netfilter of a test's namespace. */
export function netfilterOf(t: ExecutionContext, { path }: Netns): NetfilterHost {
  const client = withFd(path, (netnsFd) => new NetlinkSocket(NETLINK_PROTOCOL.NETFILTER, { netnsFd }));
  t.teardown(() => client.close());
  const inside: Run = (command) =>
    run({ ...command, file: 'nsenter', args: [`--net=${path}`, command.file, ...command.args] });
  return { run: inside, client };
}

/** Both, by name. */
export const HOSTS: Readonly<Record<'fake' | 'kernel', (t: ExecutionContext) => Promise<NetfilterHost>>> = {
  fake: async () => fakeHost(),
  kernel: kernelHost,
};
