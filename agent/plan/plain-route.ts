/** A plain route to a peer's pods, by the underlay itself: only where the peer is on a segment of this host. */
import type { Node } from '../model/cluster.ts';
import { type Cidr, containsIp, FAMILIES, familyOf } from '../model/ip.ts';
import { type AnyItem, defaultMetric, item, keyOf, memberOf } from '../model/items.ts';
import { setName } from '../model/kernel-names.ts';
import { directMember } from './node-network.ts';
import { type Underlay, underlayIpOf } from './underlay.ts';

/**
 * The route, and the peer's address as a destination that sees pod addresses unchanged: its replies find the way back by
 * the peer's own plain route. Undefined when the peer has no address on a segment of this host.
 */
export function plainRoute(node: Node, destination: Cidr, { locals }: Underlay): readonly AnyItem[] | undefined {
  const family = familyOf(destination);
  const gateway = underlayIpOf(node, family);
  const link = locals[family]?.link;
  if (!gateway || !link || !containsIp(link.segment, gateway)) return undefined;
  const direct = setName('direct', FAMILIES[family]);
  return [
    item('route', { destination, metric: defaultMetric(destination), type: 'unicast', link: link.name, gateway }, [
      // First the exception from masquerade: conntrack would keep what an early connection got for its whole life.
      keyOf('member', directMember(destination)),
    ]),
    item('member', memberOf(direct, gateway), [`set ${direct}`]),
  ];
}
