/** What this node is in the pod network, worked out once from its Node object, the host and the settings: plain data. */
import type { Cluster, Node } from '../model/cluster.ts';
import type { Host } from '../model/host.ts';
import {
  addressAt,
  type Cidr,
  cidrOf,
  FAMILIES,
  type Family,
  families,
  familyOf,
  type IpAddress,
  prefixLengthOf,
  sizeOf,
} from '../model/ip.ts';
import type { TunCarriage, TunEncryption } from '../model/items.ts';
import { addressesOf, heldCidrs, type Losses } from './claims.ts';
import type { ServiceSettings } from './services/settings.ts';

/** The settings that planning reads. */
export interface PlanSettings extends ServiceSettings {
  readonly 'vxlan.vni': number;
  readonly 'vxlan.port': number;
  readonly 'vxlan.txChecksumOffload': 'auto' | 'on' | 'off';
  readonly 'vxlan.directRouting': boolean;
  readonly 'tun.port': number;
  readonly 'tun.carriage': TunCarriage;
  readonly 'tun.encryption': TunEncryption;
  /** Empty without encryption. */
  readonly 'tun.secretFile': string;
  readonly tunnelFamily: 'auto' | Family;
  /** Of what leaves a pod and of the tunnel; 0: from the underlay. */
  readonly mtuBytes: number;
  readonly masquerade: boolean;
  readonly podLink: 'routed' | 'bridge';
  readonly clusterCidrs: readonly Cidr[];
  readonly nonMasqueradeCidrs: readonly Cidr[];
}

export interface PodNetwork {
  readonly cidr: Cidr;
  readonly family: Family;
  /** The node's own address in the pod network, never given to a pod. Absent in a CIDR of one address. */
  readonly nodeIp?: IpAddress;
}

/** Own address of one family on the underlay, and the link that carries it, while one does. */
export interface LocalEnd {
  readonly ip: IpAddress;
  readonly link?: { readonly name: string; readonly mtuBytes: number; readonly segment: Cidr };
}

/** How this node takes part; compared structurally, so that an equal one keeps its identity and memoised plans hold. */
export interface Underlay {
  readonly nodeName: string;
  readonly podNetworks: readonly PodNetwork[];
  readonly locals: { readonly [F in Family]?: LocalEnd };
  /** Family and own address of the tunnel; absent without a tunnel, and while they cannot be known. */
  readonly tunnel?: { readonly family: Family; readonly local: IpAddress };
  /** What a packet of a pod may have wherever it goes: that of the tunnel, or of plain routes. */
  readonly mtuBytes: number;
  /** Of pod links and the bridge: whatever the underlay may bring to a pod. At least mtuBytes. */
  readonly linkMtuBytes: number;
  /** What is planned is what was planned before: the Node is away or has no podCIDR now. No new pods. */
  readonly suspended?: true;
  readonly problems: readonly string[];
}

/** MTU of an Ethernet underlay, assumed only while the link that carries the node's address is unknown. */
const ETHERNET_MTU_BYTES = 1500;

/** What planning reads of the rest of the agent; see planner.ts. */
interface UnderlayInput {
  readonly nodeName: string;
  readonly cluster: Cluster;
  readonly host: Host;
  readonly settings: PlanSettings;
  /** What the backend adds to each packet when it travels over this family; undefined: it has no tunnel. */
  readonly backend: { readonly overheadBytes?: (family: Family, settings: PlanSettings) => number };
}

/**
 * `former` is what was planned last, by this process or an earlier one. A Node that is away, or has lost its podCIDR, keeps
 * the network of the pods that run; new ones are refused with the problem as the reason.
 */
export function planUnderlay(input: UnderlayInput, losses: Losses, former?: Underlay): Underlay {
  const { nodeName, cluster, host } = input;
  const self = cluster.nodes.get(nodeName);
  if (!self) {
    const problems = cluster.synced
      ? [`the cluster has no Node named ${nodeName}: register it, or correct the setting nodeName`]
      : ['the cluster API has not answered yet'];
    const mtus = { mtuBytes: ETHERNET_MTU_BYTES, linkMtuBytes: ETHERNET_MTU_BYTES };
    return keepRunning({ nodeName, podNetworks: [], locals: {}, ...mtus, problems }, former);
  }
  const problems = [...self.problems, ...(losses.get(nodeName) ?? []).map(({ problem }) => problem)];
  const podNetworks = podNetworksOf(self, heldCidrs(self, losses), host, problems);
  return keepRunning(underlayOf(input, self, podNetworks, problems, former), former);
}

const keepRunning = (planned: Underlay, former: Underlay | undefined): Underlay =>
  planned.podNetworks.length === 0 && former && former.podNetworks.length > 0
    ? { ...former, problems: planned.problems, suspended: true }
    : planned;

function underlayOf(
  { nodeName, cluster, host, settings, backend }: UnderlayInput,
  self: Node,
  podNetworks: readonly PodNetwork[],
  problems: string[],
  former: Underlay | undefined,
): Underlay {
  const locals = localsOf(self, host);
  const tunnelFamily = backend.overheadBytes && tunnelFamilyOf(self, cluster, settings);
  const used = tunnelFamily ? [tunnelFamily] : podNetworks.map(({ family }) => family);
  problems.push(...used.flatMap((family) => localProblems(self, family, locals[family])));
  const local = tunnelFamily && locals[tunnelFamily]?.ip;
  const overheadBytes = tunnelFamily ? (backend.overheadBytes?.(tunnelFamily, settings) ?? 0) : 0;
  const mtuOf = (family: Family) => locals[family]?.link?.mtuBytes ?? [];
  const narrowest = used.flatMap(mtuOf).toSorted((a, b) => a - b)[0];
  const derived = narrowest === undefined ? undefined : narrowest - overheadBytes;
  const mtuBytes = usableMtu(settings.mtuBytes || derived, podNetworks, problems);
  const widths = families.flatMap(({ family }) => mtuOf(family));
  return {
    nodeName,
    podNetworks,
    locals,
    ...(tunnelFamily && local && { tunnel: { family: tunnelFamily, local } }),
    ...(mtuBytes === undefined ? formerMtus(former, overheadBytes) : withLinks(mtuBytes, widths)),
    problems,
  };
}

type Mtus = Pick<Underlay, 'mtuBytes' | 'linkMtuBytes'>;

/** With the MTUs of the links that carry the node's addresses. */
const withLinks = (mtuBytes: number, widths: readonly number[]): Mtus => ({
  mtuBytes,
  linkMtuBytes: Math.max(mtuBytes, ...widths),
});

const formerMtus = (former: Mtus | undefined, overheadBytes: number): Mtus => {
  const { mtuBytes, linkMtuBytes } = former ?? withLinks(ETHERNET_MTU_BYTES - overheadBytes, [ETHERNET_MTU_BYTES]);
  return { mtuBytes, linkMtuBytes };
};

/** The address that the underlay has for a node: its annotation, or else its first InternalIP of the family. */
export function underlayIpOf(node: Node, family: Family): IpAddress | undefined {
  const ofFamily = (ip: IpAddress) => familyOf(ip) === family;
  return node.underlayIps.find(ofFamily) ?? node.internalIps.find(ofFamily);
}

/** The first usable address of a pod CIDR: the node's own. */
export const nodeIpOf = (cidr: Cidr): IpAddress | undefined => (sizeOf(cidr) > 1n ? addressAt(cidr, 1) : undefined);

function podNetworksOf(self: Node, cidrs: readonly Cidr[], host: Host, problems: string[]): PodNetwork[] {
  if (self.podCidrs.length === 0) {
    problems.push(
      `Node ${self.name} has no podCIDR: let the controller manager allocate them (--allocate-node-cidrs=true --cluster-cidr=...; kubeadm: networking.podSubnet), or set spec.podCIDRs`,
    );
  }
  return cidrs.flatMap((cidr) => {
    const family = familyOf(cidr);
    if (family === 'ipv6' && !host.ipv6) {
      problems.push(
        `Node ${self.name} has the IPv6 podCIDR ${cidr} but IPv6 is off on this host: set net.ipv6.conf.all.disable_ipv6 to 0`,
      );
      return [];
    }
    if (prefixLengthOf(cidr) > FAMILIES[family].bits - 2) {
      problems.push(`podCIDR ${cidr} of Node ${self.name} has no room for pods: use a shorter prefix`);
    }
    const nodeIp = nodeIpOf(cidr);
    return [{ cidr, family, ...(nodeIp && { nodeIp }) }];
  });
}

function localsOf(self: Node, host: Host): Underlay['locals'] {
  const ends = families.flatMap(({ family }) => {
    const ip = underlayIpOf(self, family);
    return ip === undefined ? [] : [[family, localEnd(ip, host)] as const];
  });
  return Object.fromEntries(ends);
}

function localEnd(ip: IpAddress, host: Host): LocalEnd {
  for (const { name, mtuBytes, addresses } of host.links) {
    const found = addresses.find((address) => address.ip === ip);
    if (found) return { ip, link: { name, mtuBytes, segment: cidrOf(ip, found.prefixLength) } };
  }
  return { ip };
}

/** The first family that all nodes have an address of; as long as there is none, the first that this node has. */
function tunnelFamilyOf(self: Node, cluster: Cluster, settings: PlanSettings): Family {
  const candidates = settings.tunnelFamily === 'auto' ? families.map(({ family }) => family) : [settings.tunnelFamily];
  // A peer without any address yet must not stop the others: it counts for no family.
  const addressed = [...cluster.nodes.values()].filter((node) => addressesOf(node).length > 0);
  return (
    candidates.find((family) => addressed.every((node) => underlayIpOf(node, family))) ??
    candidates.find((family) => underlayIpOf(self, family)) ??
    (candidates[0] as Family)
  );
}

function localProblems(self: Node, family: Family, local: LocalEnd | undefined): readonly string[] {
  if (!local) return [`Node ${self.name} has no InternalIP of family ${family}: kubelet's --node-ip sets it`];
  if (local.link) return [];
  return [
    `no link of this host has the node's address ${local.ip}: the Node object or the annotation tulle.dev/underlay-ip is wrong, or the link is gone`,
  ];
}

/**
 * Undefined when no link tells, and when the kernel would take a family away from every pod: IPv6 addresses go with an MTU
 * below 1280 and do not come back with a larger one.
 */
function usableMtu(
  mtuBytes: number | undefined,
  podNetworks: readonly PodNetwork[],
  problems: string[],
): number | undefined {
  const tooSmall = podNetworks.filter(
    ({ family }) => mtuBytes !== undefined && mtuBytes < FAMILIES[family].minimumMtuBytes,
  );
  for (const { family } of tooSmall) {
    problems.push(
      `the pod MTU of ${mtuBytes} bytes is too small for ${family} (at least ${FAMILIES[family].minimumMtuBytes}): raise the MTU of the underlay or the setting mtuBytes`,
    );
  }
  return tooSmall.length === 0 ? mtuBytes : undefined;
}
