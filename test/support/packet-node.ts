/**
 * A node for rules about Services: routed pods behind links named as Tulle names them, a host outside, servers in the pods
 * that tell who calls them, and the real drivers. Needs root.
 */
import { once } from 'node:events';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { type ForgetResult, forgetStaleFlows } from '../../agent/kernel/conntrack.ts';
import { createMemberDriver } from '../../agent/kernel/ipset/member.ts';
import { createSetDriver } from '../../agent/kernel/ipset/set.ts';
import { type BackendName, describeBackend } from '../../agent/kernel/iptables/backend.ts';
import { createChainDriver } from '../../agent/kernel/iptables/chain.ts';
import type { Fragment } from '../../agent/model/fragment.ts';
import { type Family, families, type IpAddress } from '../../agent/model/ip.ts';
import type { AnyItem, Kind, Objects } from '../../agent/model/items.ts';
import { baseFragment } from '../../agent/plan/services/iptables/base.ts';
import { type IptablesItems, iptablesItems } from '../../agent/plan/services/iptables/iptables-items.ts';
import type { ServicePlan } from '../../agent/plan/services/service.ts';
import type { Caller } from './caller.ts';
import { converge } from './converge.ts';
import { startCaller } from './ebpf-node.ts';
import { netfilterOf } from './netfilter-host.ts';
import { connect, createNetns, type Netns } from './netns.ts';

type PerFamily<T> = Readonly<Record<Family, T>>;
/** By number. */
export const PODS: PerFamily<readonly IpAddress[]> = {
  ipv4: ['10.84.0.1', '10.84.0.2'] as IpAddress[],
  ipv6: ['fd84::1', 'fd84::2'] as IpAddress[],
};
export const NODE: PerFamily<IpAddress> = { ipv4: '192.0.2.1' as IpAddress, ipv6: '2001:db8::1' as IpAddress };
export const OUTSIDE: PerFamily<IpAddress> = { ipv4: '192.0.2.9' as IpAddress, ipv6: '2001:db8::9' as IpAddress };
export const VIP: PerFamily<IpAddress> = { ipv4: '10.96.0.53' as IpAddress, ipv6: 'fd96::53' as IpAddress };

export interface PacketNode {
  readonly node: Netns;
  readonly pods: readonly Netns[];
  readonly outside: Netns;
  /** The same process for the same namespace. */
  caller(netns: Netns): Promise<Caller>;
  /** Makes these Services, and no others, what iptables does. Returns the keys of the chain parts written or removed. */
  serve(services: readonly ServicePlan[]): Promise<readonly string[]>;
}

const CALLER = join(import.meta.dirname, 'socket-caller.ts');

export async function createPacketNode(t: ExecutionContext, backendName: BackendName): Promise<PacketNode> {
  const [node, outside] = [await createNetns(t, 'node'), await createNetns(t, 'outside')];
  await connect(
    { netns: node, link: 'eth0', addresses: families.map(({ family }) => `${NODE[family]}/${PREFIX[family]}`) },
    { netns: outside, link: 'eth0', addresses: families.map(({ family }) => `${OUTSIDE[family]}/${PREFIX[family]}`) },
  );
  await node.run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1');
  for (const { family } of families) await outside.run('ip', 'route', 'add', 'default', 'via', NODE[family]);
  // Where the node sends what it has no other route for, as cluster addresses: not back, which it would tell by a redirect.
  await node.feed(
    [
      'link add wan type veth peer name wan-end',
      'link set wan up',
      'link set wan-end up',
      'route add default dev wan',
      'route add ::/0 dev wan',
    ].join('\n'),
    'ip',
    '-batch',
    '-',
  );
  const pods: Netns[] = [];
  for (const i of PODS.ipv4.keys()) pods.push(await createPod(t, node, i));
  const { run, client } = netfilterOf(t, node);
  const backend = await describeBackend(run, backendName, 'test');
  const forgetting: Promise<ForgetResult>[] = [];
  const drivers = [
    createSetDriver({ run, client }),
    createMemberDriver({ client }),
    createChainDriver({
      run,
      backend,
      onServed: (family, places) => void forgetting.push(forgetStaleFlows(client, family, places)),
    }),
  ] as const;
  const serve: PacketNode['serve'] = async (services) => {
    const items = allItems(services, backend.randomFully);
    const [sets, members, chains] = drivers;
    await done(converge(sets, valuesOf('set', items)));
    const former = [...(await members.list(new AbortController().signal)).values()];
    await done(converge(members, [...former, ...valuesOf('member', items)]));
    const changed = await done(converge(chains, valuesOf('chain-part', items)));
    await done(converge(members, valuesOf('member', items)));
    for (const { failures } of await Promise.all(forgetting.splice(0))) for (const error of failures) throw error;
    return changed;
  };
  const callers = new Map<Netns, Promise<Caller>>();
  const caller: PacketNode['caller'] = (netns) => {
    const started = callers.get(netns) ?? startCaller(t, netns);
    callers.set(netns, started);
    return started;
  };
  return { node, outside, pods, caller, serve };
}

const PREFIX: PerFamily<number> = { ipv4: 24, ipv6: 64 };

/** Routed, as Tulle's pods are. */
async function createPod(t: ExecutionContext, node: Netns, i: number): Promise<Netns> {
  const pod = await createNetns(t, `pod${i}`);
  const link = `tl00000000000${i}`;
  const ips = families.map(({ family }) => PODS[family][i] as IpAddress);
  await connect(
    { netns: node, link },
    { netns: pod, link: 'eth0', addresses: ips.map((ip) => `${ip}/${ip.includes(':') ? 128 : 32}`) },
  );
  const mac = async (netns: Netns, name: string) =>
    (JSON.parse((await netns.run('ip', '-json', 'link', 'show', 'dev', name)).stdout) as { address: string }[])[0]
      ?.address as string;
  const [nodeMac, podMac] = [await mac(node, link), await mac(pod, 'eth0')];
  const gateways = ['169.254.1.1', 'fe80::1'];
  await pod.feed(
    gateways
      .flatMap((via) => [
        `neighbour replace ${via} lladdr ${nodeMac} dev eth0 nud permanent`,
        `route add default via ${via} dev eth0 onlink`,
      ])
      .join('\n'),
    'ip',
    '-batch',
    '-',
  );
  await node.feed(
    ips
      .flatMap((ip) => [
        `neighbour replace ${ip} lladdr ${podMac} dev ${link} nud permanent`,
        `route add ${ip} dev ${link}`,
      ])
      .join('\n'),
    'ip',
    '-batch',
    '-',
  );
  const server = pod.spawn(process.execPath, CALLER, 'tell', ...ips);
  await once(server.stdout, 'data', { signal: AbortSignal.timeout(20_000) });
  return pod;
}

export function allItems(services: readonly ServicePlan[], randomFully: boolean): readonly AnyItem[] {
  const made = services.map(
    ({ frontends, sets }, i): IptablesItems =>
      iptablesItems(`service default/s${i}`, frontends, sets, { clusterAddresses: true }),
  );
  const shared = new Map<string, Fragment>(
    families.map(({ family }) => [family, baseFragment(family, { randomFully })]),
  );
  for (const { branches } of made) for (const branch of branches) shared.set(branch.id, branch);
  const all = [...[...shared.values()].flatMap(({ items }) => items), ...made.flatMap(({ items }) => items)];
  return [...new Map(all.map((each) => [each.key, each])).values()];
}

const valuesOf = <K extends Kind>(kind: K, items: readonly AnyItem[]): readonly Objects[K][] =>
  items.filter((each) => each.kind === kind).map(({ value }) => value as Objects[K]);

async function done(
  outcome: Promise<{
    readonly changes: readonly { readonly key: string }[];
    readonly failures: ReadonlyMap<string, Error>;
  }>,
) {
  const { changes, failures } = await outcome;
  for (const error of failures.values()) throw error;
  return changes.map(({ key }) => key);
}
