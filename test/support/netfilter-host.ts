/** A host's netfilter for contract tests: a fresh network namespace, or the fakes. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { type Run, run } from '../../agent/kernel/command.ts';
import { withFd } from '../../agent/kernel/libc.ts';
import { NETLINK_PROTOCOL, type NetlinkClient, NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { FakeIpset } from './fake-ipset.ts';
import { FakeIptables } from './fake-iptables.ts';

export interface NetfilterHost {
  readonly run: Run;
  readonly client: NetlinkClient;
}

/** What ava's context offers. */
interface Teardown {
  teardown(action: () => void): void;
}

export function fakeHost(): NetfilterHost & { readonly iptables: FakeIptables; readonly ipset: FakeIpset } {
  const iptables: FakeIptables = new FakeIptables({ hasSet: (name) => ipset.sets.has(name) });
  const ipset: FakeIpset = new FakeIpset({ isUsed: (name) => iptables.usesSet(name) });
  return {
    run: (command) => (command.file === 'ipset' ? ipset : iptables).run(command),
    client: ipset,
    iptables,
    ipset,
  };
}

export function kernelHost(t: Teardown): NetfilterHost {
  const name = `tulle-test-${randomBytes(4).toString('hex')}`;
  execFileSync('ip', ['netns', 'add', name]);
  t.teardown(() => execFileSync('ip', ['netns', 'del', name]));
  const client = withFd(`/run/netns/${name}`, (netnsFd) => new NetlinkSocket(NETLINK_PROTOCOL.NETFILTER, { netnsFd }));
  t.teardown(() => client.close());
  return { run: inNamespace(name), client };
}

/** Commands that run in a named network namespace. */
export const inNamespace =
  (name: string): Run =>
  (command) =>
    run({ ...command, file: 'nsenter', args: [`--net=/run/netns/${name}`, command.file, ...command.args] });

/** Both, by name. */
export const HOSTS: Readonly<Record<string, (t: Teardown) => NetfilterHost>> = { fake: fakeHost, kernel: kernelHost };
