/** A pod's network as the pod sees it, in either type of pod link. */
import { type Family, factsOf, familyOf, type IpAddress } from './ip.ts';
import type { PodLink } from './items.ts';
import { POD_GATEWAY } from './kernel-names.ts';
import type { MacAddress } from './mac.ts';

/** The pod's next hop in one family, and the hardware address in its permanent neighbour entry. */
export function gatewayOf(
  { bridge, hostMac }: Pick<PodLink, 'bridge' | 'hostMac'>,
  family: Family,
): { ip: IpAddress; mac: MacAddress } {
  const onBridge = bridge?.gateways.find(({ ip }) => familyOf(ip) === family);
  return bridge && onBridge ? { ip: onBridge.ip, mac: bridge.mac } : { ip: POD_GATEWAY[family], mac: hostMac };
}

/** Of an address in the pod: a routed pod has no subnet. */
export const podPrefixLength = ({ bridge }: Pick<PodLink, 'bridge'>, ip: IpAddress): number =>
  bridge?.gateways.find((gateway) => familyOf(gateway.ip) === familyOf(ip))?.prefixLength ?? factsOf(ip).bits;
