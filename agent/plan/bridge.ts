/**
 * What bridged pods share: the device with their gateway addresses, in effect while the setting or an attached pod asks for
 * it. Such a pod has what a bridge gives: an address with the subnet of its pod CIDR, and a gateway in it. Its packets go the
 * way of routed pods all the same, since a real bridge could not keep pods apart: what one sends to the hardware address of
 * another is forwarded behind the back of every rule of addresses, and who owns an address is a question that everybody may
 * answer. So the host side of each pair is a link of its own with the gateway's MAC, the kernel knows from its routes who may
 * send with which address, and the bridge has no port. It costs less, too: one look at a packet on the node, not three.
 */
import type { Fragment } from '../model/fragment.ts';
import { prefixLengthOf } from '../model/ip.ts';
import { item, type PodBridge } from '../model/items.ts';
import { ALIAS_PREFIX, BRIDGE_NAME, bridgeMac } from '../model/kernel-names.ts';
import type { Underlay } from './underlay.ts';

export const BRIDGE = 'bridge';

/** The bridge as pods that are attached now see it. */
export const podBridge = ({ nodeName, podNetworks }: Underlay): PodBridge => ({
  name: BRIDGE_NAME,
  mac: bridgeMac(nodeName),
  gateways: podNetworks.flatMap(({ cidr, nodeIp }) =>
    nodeIp ? [{ ip: nodeIp, prefixLength: prefixLengthOf(cidr) }] : [],
  ),
});

/** The device stays also while the node has no pod CIDR: pods that have addresses keep their gateway. */
export function planBridge(underlay: Underlay): Fragment {
  const { name, mac, gateways } = podBridge(underlay);
  const link = item('link', {
    type: 'bridge',
    name,
    alias: `${ALIAS_PREFIX}bridge`,
    mac,
    mtuBytes: underlay.linkMtuBytes,
  });
  const addresses = gateways.map((gateway) => item('address', { link: name, ...gateway }, [link.key]));
  return {
    id: BRIDGE,
    cause: 'pod link bridge',
    rank: '',
    items: [link, ...addresses],
    requires: [],
    shared: true,
    problems: [],
  };
}

/** What a bridged pod needs before its link is up. */
export const bridgeKey = `link ${BRIDGE_NAME}` as const;
