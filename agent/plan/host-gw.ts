/** Backend `host-gw`: plain routes to every peer, which must be on the same segment. No tunnel, no overhead. */
import type { Node } from '../model/cluster.ts';
import { type Cidr, familyOf } from '../model/ip.ts';
import type { Backend, PeerPlan } from './backend.ts';
import { plainRoute } from './plain-route.ts';
import { type Underlay, underlayIpOf } from './underlay.ts';

export const hostGw: Backend = { name: 'host-gw', device: () => [], peer };

function peer(node: Node, podCidrs: readonly Cidr[], underlay: Underlay): PeerPlan {
  const routes = podCidrs.map((cidr) => ({ cidr, items: plainRoute(node, cidr, underlay) }));
  return {
    items: routes.flatMap(({ items }) => items ?? []),
    problems: routes.flatMap(({ cidr, items }) => (items ? [] : [whyNot(node, cidr, underlay)])),
  };
}

function whyNot(node: Node, cidr: Cidr, { locals }: Underlay): string {
  const family = familyOf(cidr);
  const gateway = underlayIpOf(node, family);
  if (!gateway) return `Node ${node.name} has no ${family} InternalIP: its pods in ${cidr} cannot be reached`;
  const segment = locals[family]?.link?.segment ?? 'any segment known here';
  return `Node ${node.name} (${gateway}) is not on ${segment}: its pods in ${cidr} cannot be reached with backend host-gw; use backend vxlan, with vxlan.directRouting for what is near`;
}
