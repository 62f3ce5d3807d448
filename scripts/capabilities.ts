/** What a machine must offer before the tests that need root can mean anything, each tried, not guessed. */
import { execa } from 'execa';
import { createOwnCgroup, isolated, type OwnCgroup } from './isolation.ts';

/** By name: a command that succeeds in an empty network namespace exactly where the capability exists. */
const PROBES: readonly (readonly [name: string, command: string])[] = [
  ['named network namespaces (ip netns)', 'ip netns add tulle-test-probe'],
  ['veth links', 'ip link add left type veth peer name right'],
  ['bridge links', 'ip link add probe type bridge'],
  ['VXLAN links', 'ip link add probe type vxlan id 84 dstport 8472'],
  ['IPv6', 'ip -6 address add 2001:db8::1/64 dev lo'],
  ['overlay file system', 'mount -t overlay -o lowerdir=/etc:/usr overlay /mnt'],
  ['iptables, nft backend', 'iptables-nft -t nat -A POSTROUTING -j MASQUERADE'],
  ['ip6tables, nft backend', 'ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE'],
  ['iptables, legacy backend', 'iptables-legacy -t raw -A PREROUTING -p udp -j CT --notrack'],
  ['ip6tables, legacy backend', 'ip6tables-legacy -t raw -A PREROUTING -p udp -j CT --notrack'],
  ['ip sets', 'ipset create tulle-probe hash:net'],
  ['connection tracking', 'conntrack -L'],
  ['packet capture', 'tcpdump --list-interfaces'],
  ['ethtool', 'ethtool -k lo'],
  ['ping', 'ping -c 1 127.0.0.1'],
  ['openssl', 'openssl version'],
  ['containerd', 'containerd --version'],
  ['runc', 'runc --version'],
];

const PROBE_TIMEOUT_MS = 10_000;

/** One sentence for each capability that is missing. */
export async function missingCapabilities(): Promise<readonly string[]> {
  if (process.geteuid?.() !== 0) return [`root: expected user 0, got ${process.geteuid?.()}; run with sudo`];
  let cgroup: OwnCgroup;
  try {
    cgroup = createOwnCgroup();
  } catch (error) {
    return [`cgroup v2: ${(error as Error).message}`];
  }
  using _ = cgroup;
  const namespaces = await complaint(cgroup, 'true');
  if (namespaces !== undefined) return [`network, mount, pid and cgroup namespaces: ${namespaces}`];
  const missing: string[] = [];
  for (const [name, command] of PROBES) {
    const said = await complaint(cgroup, command);
    if (said !== undefined) missing.push(`${name}: '${command}' failed: ${said}`);
  }
  return missing;
}

/** Undefined where the command succeeds in namespaces of its own. */
async function complaint(cgroup: OwnCgroup, command: string): Promise<string | undefined> {
  const options = { timeout: PROBE_TIMEOUT_MS, killSignal: 'SIGKILL', reject: false, all: true } as const;
  const { failed, all } = await execa(...isolated(cgroup, command.split(' ')), options);
  return failed ? all.trim() || 'no reason given' : undefined;
}
