/** What this node is in the pod network, worked out once from its Node object, the host and the settings: plain data. */
import type { Cluster, Node } from '../model/cluster.ts';
import type { Host } from '../model/host.ts';
import {
  addressAt,
  type Cidr,
  FAMILIES,
  type Family,
  families,
  familyOf,
  type IpAddress,
  prefixLengthOf,
  sizeOf,
} from '../model/ip.ts';
import { addressesOf, cidrRefusal, type Overlap, overlapProblem } from './overlaps.ts';

/** The settings that planning reads. */
export interface PlanSettings {
  readonly 'vxlan.vni': number;
  readonly 'vxlan.port': number;
  readonly 'vxlan.txChecksumOffload': 'auto' | 'on' | 'off';
  readonly tunnelFamily: 'auto' | Family;
  /** 0: from the underlay. */
  readonly mtuBytes: number;
  readonly masquerade: boolean;
  readonly clusterCidrs: readonly Cidr[];
  readonly nonMasqueradeCidrs: readonly Cidr[];
}

export interface PodNetwork {
  readonly cidr: Cidr;
  readonly family: Family;
  /** The node's own address in the pod network, never given to a pod. Absent in a CIDR of one address. */
  readonly nodeIp?: IpAddress;
}

/** How this node takes part; compared structurally, so that an equal one keeps its identity and memoised plans hold. */
export interface Underlay {
  readonly nodeName: string;
  readonly podNetworks: readonly PodNetwork[];
  /** Family and own address of the tunnel; absent while they cannot be known. */
  readonly tunnel?: { readonly family: Family; readonly local: IpAddress };
  readonly mtuBytes: number;
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
}

/** `lost` are own podCIDRs that an older Node has: no pod of this node gets an address of them. */
export function planUnderlay({ nodeName, cluster, host, settings }: UnderlayInput, lost: readonly Overlap[]): Underlay {
  const self = cluster.nodes.get(nodeName);
  if (!self) {
    const problems = cluster.synced
      ? [`the cluster has no Node named ${nodeName}: register it, or correct the setting nodeName`]
      : ['the cluster API has not answered yet'];
    return { nodeName, podNetworks: [], mtuBytes: ETHERNET_MTU_BYTES, problems };
  }
  const problems = [...self.problems, ...lost.map((overlap) => overlapProblem(nodeName, overlap))];
  const cidrs = self.podCidrs.filter((cidr) => !lost.some((overlap) => overlap.cidr === cidr));
  const podNetworks = podNetworksOf(self, cidrs, host, problems);
  const tunnel = tunnelOf(self, cluster, settings, problems);
  const mtuBytes = mtuOf(tunnel, podNetworks, host, settings, problems);
  return { nodeName, podNetworks, ...(tunnel && { tunnel }), mtuBytes, problems };
}

/** The tunnel end of a node: its annotation, or else its first InternalIP of the family. */
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
    const refusal = cidrRefusal(self.name, cidr, addressesOf(self));
    if (refusal !== undefined) {
      problems.push(refusal);
      return [];
    }
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

function tunnelOf(self: Node, cluster: Cluster, settings: PlanSettings, problems: string[]): Underlay['tunnel'] {
  const nodes = [...cluster.nodes.values()];
  const candidates = settings.tunnelFamily === 'auto' ? families.map(({ family }) => family) : [settings.tunnelFamily];
  // A peer without any address yet must not stop the others: it counts for no family.
  const addressed = nodes.filter((node) => node.internalIps.length + node.underlayIps.length > 0);
  const common = candidates.find((family) => addressed.every((node) => underlayIpOf(node, family)));
  const family = common ?? candidates.find((candidate) => underlayIpOf(self, candidate));
  const local = family && underlayIpOf(self, family);
  if (!family || !local) {
    problems.push(
      `Node ${self.name} has no InternalIP of family ${candidates.join(' or ')}: kubelet's --node-ip sets it`,
    );
    return undefined;
  }
  return { family, local };
}

function mtuOf(
  tunnel: Underlay['tunnel'],
  podNetworks: readonly PodNetwork[],
  host: Host,
  settings: PlanSettings,
  problems: string[],
): number {
  const mtuBytes =
    settings.mtuBytes ||
    underlayMtu(tunnel, host, problems) - (tunnel ? FAMILIES[tunnel.family].vxlanOverheadBytes : 0);
  for (const { family } of podNetworks) {
    const { minimumMtuBytes } = FAMILIES[family];
    if (mtuBytes < minimumMtuBytes) {
      problems.push(
        `the pod MTU of ${mtuBytes} bytes is too small for ${family} (at least ${minimumMtuBytes}): raise the MTU of the underlay or the setting mtuBytes`,
      );
    }
  }
  return mtuBytes;
}

function underlayMtu(tunnel: Underlay['tunnel'], host: Host, problems: string[]): number {
  if (!tunnel) return ETHERNET_MTU_BYTES;
  const link = host.links.find(({ ips }) => ips.includes(tunnel.local));
  if (link) return link.mtuBytes;
  problems.push(
    `no link of this host has the node's address ${tunnel.local}: the Node object or the annotation tulle.dev/underlay-ip is wrong, or the link is gone`,
  );
  return ETHERNET_MTU_BYTES;
}
