/**
 * What this kernel can do of what Tulle asks of it, tried in an empty network namespace that is gone afterwards: the very
 * requests that the drivers send, so that modules are loaded as they would be for the drivers, by the kernel itself. What
 * is missing is told with what follows from it; nothing here decides anything.
 */
import { closeSync, readFileSync } from 'node:fs';
import { families } from '../model/ip.ts';
import type { IpSet } from '../model/items.ts';
import { PodSources } from './bpf/pod-sources.ts';
import { probeDestruction } from './bpf/stale-sockets.ts';
import { isNotFound, isUnsupported, KernelError } from './errors.ts';
import { askType, named, readRevision } from './ipset/protocol.ts';
import { inNewNetns } from './libc.ts';
import { nested, text, u16Be, u32 } from './netlink/attributes.ts';
import { isLockedPort, renderPort } from './netlink/bridge.ts';
import { attachTo } from './netlink/filter.ts';
import { readLink } from './netlink/links.ts';
import { NETLINK_PROTOCOL, type NetlinkClient, type NetlinkRequest, NLM } from './netlink/message.ts';
import { LOOPBACK_IFINDEX } from './netlink/pod-link-requests.ts';
import { IFLA, linkHeader, RTM } from './netlink/rtnetlink.ts';
import { NetlinkSocket } from './netlink/socket.ts';
import { TUN_FILE, tunsOf } from './netlink/tun.ts';
import { openTunQueue } from './tun/device.ts';

export interface Feature {
  readonly name: string;
  /** `unknown`: it could not be tried; `evidence` says why. */
  readonly state: 'supported' | 'missing' | 'unknown';
  /** What was seen, as the kernel says it. */
  readonly evidence: string;
  /** What does not work without it, and what can be done. */
  readonly consequence: string;
}

/** Where features are tried. */
export interface FeatureGround {
  /** Sockets of an empty network namespace. */
  readonly route: NetlinkClient;
  readonly netfilter: NetlinkClient;
  readonly socketDiag: NetlinkClient;
  /** Opens a TUN device, and says whether it takes large datagrams of UDP. Throws KernelError. */
  tun(): boolean;
  /** Attaches the guard of bridged pods. Rejects with KernelError. */
  guard(): Promise<string>;
  /** Text of a file of the host, undefined when there is none. */
  read(path: string): string | undefined;
}

/** Of use for bridged pods only, and without it rules do the same. */
export const GUARD_FEATURE = 'programs at bridges';

/** Of use with the backend `tun` only, and seldom given to containers. */
export const TUN_FEATURE = 'TUN devices';

interface Probe {
  readonly name: string;
  readonly consequence: string;
  /** What shows that it is there. Undefined, and errors that say so: it is missing. Other errors: nobody knows. */
  probe(ground: FeatureGround): Promise<string | undefined> | string | undefined;
}

const PROBES: readonly Probe[] = [
  {
    name: 'veth links',
    consequence: 'no pod can be connected; modprobe veth',
    probe: ({ route }) => makeLink(route, 'veth'),
  },
  {
    name: 'VXLAN links',
    consequence: 'the backend vxlan does not work; modprobe vxlan, or set backend to host-gw',
    // IFLA_VXLAN_ID and IFLA_VXLAN_PORT (linux/if_link.h).
    probe: ({ route }) => makeLink(route, 'vxlan', u32(1, 1), u16Be(15, 4789)),
  },
  {
    name: TUN_FEATURE,
    consequence: `the backend tun does not work; modprobe tun, or let the agent's container open ${TUN_FILE}`,
    probe: ({ tun }) => tryTun(tun),
  },
  {
    name: 'bridge links',
    consequence: 'bridged pods cannot be connected; modprobe bridge, or leave podLink at routed',
    probe: ({ route }) => makeLink(route, 'bridge'),
  },
  {
    name: 'locked bridge ports',
    consequence:
      'a bridged pod can send with the MAC address of another pod; needs Linux 5.18, or leave podLink at routed',
    probe: ({ route }) => lockPort(route),
  },
  {
    name: GUARD_FEATURE,
    consequence:
      'each bridged pod costs a rule of iptables, which every packet of theirs passes; needs Linux 5.6 with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS',
    probe: ({ guard }) => guard(),
  },
  {
    name: 'ip sets of addresses',
    consequence:
      'nothing reaches pods: which nodes and pods are let through stands in such sets; modprobe ip_set_hash_ip',
    probe: ({ netfilter }) => findSetType(netfilter, 'hash:ip'),
  },
  {
    name: 'ip sets of networks',
    consequence: 'what needs no tunnel cannot be told apart; modprobe ip_set_hash_net',
    probe: ({ netfilter }) => findSetType(netfilter, 'hash:net'),
  },
  {
    name: 'ip sets of ports',
    consequence: 'services.mode iptables does not work; modprobe ip_set_hash_ipport',
    probe: ({ netfilter }) => findSetType(netfilter, 'hash:ip,port'),
  },
  {
    name: 'destruction of datagram sockets',
    consequence:
      'with services.mode ebpf, connected datagram sockets go on to backends that are gone; modprobe udp_diag, needs CONFIG_INET_DIAG_DESTROY',
    probe: ({ socketDiag }) => probeDestruction(socketDiag),
  },
  {
    name: 'IPv6',
    consequence: 'pods have IPv4 only; boot without ipv6.disable=1',
    probe: ({ read }) => read('/proc/sys/net/ipv6/conf/all/forwarding') && '/proc/sys/net/ipv6',
  },
];

/** Tries everything, each for itself. Never rejects. */
export async function probeFeatures(ground: FeatureGround): Promise<readonly Feature[]> {
  const features: Feature[] = [];
  // One after the other: a later one may need what an earlier one made.
  for (const probe of PROBES) features.push(await tryOne(probe, ground));
  return features;
}

/** The same on this machine's kernel. Features are unknown when no namespace can be made for them. */
export async function probeKernel(): Promise<readonly Feature[]> {
  const sockets: NetlinkSocket[] = [];
  const open = (protocol: number): NetlinkSocket => {
    const socket = new NetlinkSocket(protocol);
    sockets.push(socket);
    return socket;
  };
  try {
    const ground = inNewNetns(() => ({
      route: open(NETLINK_PROTOCOL.ROUTE),
      netfilter: open(NETLINK_PROTOCOL.NETFILTER),
      socketDiag: open(NETLINK_PROTOCOL.SOCK_DIAG),
      tun: outcomeOf(openTun),
    }));
    return await probeFeatures({ ...ground, guard: () => tryGuard(ground.route), read: readIfAny });
  } catch (error) {
    const evidence = (error as Error).message;
    return PROBES.map(({ name, consequence }) => ({ name, state: 'unknown', evidence, consequence }));
  } finally {
    for (const socket of sockets) socket.close();
  }
}

async function tryOne({ name, consequence, probe }: Probe, ground: FeatureGround): Promise<Feature> {
  try {
    const found = await probe(ground);
    return {
      name,
      consequence,
      state: found ? 'supported' : 'missing',
      evidence: found || 'the kernel does not know it',
    };
  } catch (error) {
    return {
      name,
      consequence,
      state: isMissing(error) ? 'missing' : 'unknown',
      evidence: (error as Error).message,
    };
  }
}

/** The guard of bridged pods: Host.sourceProgram where this kernel takes it, and why it does or does not. Never rejects. */
export async function findGuard(): Promise<{ readonly program?: string; readonly evidence: string }> {
  try {
    const route = inNewNetns(() => new NetlinkSocket(NETLINK_PROTOCOL.ROUTE));
    try {
      return { evidence: await tryGuard(route), program: new PodSources().build };
    } finally {
      route.close();
    }
  } catch (error) {
    return { evidence: (error as Error).message };
  }
}

/** With its map and in its place, though at the link that every namespace has. */
async function tryGuard(route: NetlinkClient): Promise<string> {
  const sources = new PodSources();
  try {
    const { keyBytes, valueBytes } = sources.opened();
    const { error } = sources.opened().update({
      keys: Buffer.alloc(keyBytes),
      values: Buffer.alloc(valueBytes),
      count: 1,
    });
    if (error !== undefined) throw error;
    await attachTo(LOOPBACK_IFINDEX, { client: route, program: sources });
    return 'a program was attached to a link';
  } finally {
    sources.close();
  }
}

/** What an action did, to be told later. */
function outcomeOf<T>(action: () => T): () => T {
  try {
    const result = action();
    return () => result;
  } catch (error) {
    return () => {
      throw error;
    };
  }
}

/** As the backend does: a device that lasts, with room for super-packets. It ends with its namespace. */
function openTun(): boolean {
  const name = nameOf('tun');
  tunsOf().create(name);
  const { fd, takesUdp } = openTunQueue(name);
  closeSync(fd);
  return takesUdp;
}

const tryTun = (tun: FeatureGround['tun']): string =>
  `a device was made ${tun() ? 'and takes' : 'but does not take'} large datagrams of UDP`;

/** ENOENT and the others: what a module brings is not there, such as a file below /dev. */
const isMissing = (error: unknown): boolean => isUnsupported(error) || isNotFound(error);

const nameOf = (kind: string): string => `probe-${kind}`;

async function makeLink(client: NetlinkClient, kind: string, ...data: readonly Buffer[]): Promise<string> {
  const info = [text(IFLA.INFO_KIND, kind), ...(data.length > 0 ? [nested(IFLA.INFO_DATA, ...data)] : [])];
  const payload = Buffer.concat([linkHeader(), text(IFLA.IFNAME, nameOf(kind)), nested(IFLA.LINKINFO, ...info)]);
  await client.request(request(payload, { flags: NLM.CREATE | NLM.EXCL, object: `a ${kind} link` }));
  return `a ${kind} link was made`;
}

/** Makes the veth that was made a port of the bridge that was made. What the kernel does not know it neither refuses nor shows. */
async function lockPort(client: NetlinkClient): Promise<string | undefined> {
  const [bridge, port] = [await readLink(client, nameOf('bridge')), await readLink(client, nameOf('veth'))];
  if (!bridge || !port) return undefined;
  const header = linkHeader({ ifindex: port.ifindex });
  const object = 'the port of a bridge';
  await client.request(request(Buffer.concat([header, u32(IFLA.MASTER, bridge.ifindex)]), { object }));
  await client.request(request(Buffer.concat([header, renderPort()]), { object }));
  const locked = isLockedPort((await readLink(client, port.name))?.port ?? new Map());
  return locked ? 'a port was locked' : undefined;
}

/** EINVAL: there are no ip sets at all (nfnetlink knows no such subsystem). */
async function findSetType(client: NetlinkClient, type: IpSet['type']): Promise<string | undefined> {
  const revisions: string[] = [];
  try {
    for (const { family, setFamily } of families) {
      const [answer] = await client.request(askType(type, family));
      revisions.push(`${setFamily} ${answer && readRevision(answer)}`);
    }
  } catch (error) {
    if (error instanceof KernelError && error.code === 'EINVAL') return undefined;
    throw error instanceof KernelError ? named(error) : error;
  }
  return `${type} has the revisions ${revisions.join(', ')}`;
}

const request = (payload: Buffer, { flags = 0, object }: { flags?: number; object: string }): NetlinkRequest => ({
  type: RTM.NEWLINK,
  flags,
  payload,
  operation: 'try',
  object,
});

function readIfAny(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1').trim();
  } catch {
    return undefined;
  }
}
