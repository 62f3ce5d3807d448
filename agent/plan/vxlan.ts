/**
 * Backend `vxlan` (RFC 7348): one device, and for each peer one forwarding entry, one permanent neighbour a family and
 * one route a pod CIDR. Nothing is learned and nothing is asked for: the kernel never resolves an address of a peer.
 * With direct routing, peers on a segment of this host get plain routes instead.
 */
import type { Node } from '../model/cluster.ts';
import type { Host } from '../model/host.ts';
import { type Cidr, FAMILIES, familyOf, type IpAddress } from '../model/ip.ts';
import { type AnyItem, defaultMetric, item, keyOf, type Link } from '../model/items.ts';
import { ALIAS_PREFIX, vtepMac, vxlanLinkName } from '../model/kernel-names.ts';
import type { Backend, PeerPlan } from './backend.ts';
import { directMember } from './node-network.ts';
import { plainRoute } from './plain-route.ts';
import { endItem, guardKeys, nodeAddresses, nodeAddressKey, type Tunnel, tunnelItems, withoutEnd } from './tunnel.ts';
import { nodeIpOf, type PlanSettings, type Underlay, underlayIpOf } from './underlay.ts';

export const vxlan: Backend = {
  name: 'vxlan',
  overheadBytes: (family) => FAMILIES[family].vxlanOverheadBytes,
  tunnel: (settings) => ({
    link: vxlanLinkName(settings['vxlan.vni']),
    port: settings['vxlan.port'],
    portSetting: 'vxlan.port',
  }),
  device,
  peer,
};

function device(underlay: Underlay, host: Host, settings: PlanSettings): readonly AnyItem[] {
  const { tunnel } = underlay;
  if (!tunnel) return [];
  const link = item('link', vxlanLink(underlay, tunnel, host, settings), guardKeys(tunnel));
  return [
    link,
    ...nodeAddresses(link.value.name, underlay, settings),
    ...pathMtuItems(underlay),
    ...tunnelItems(tunnel, settings['vxlan.port']),
  ];
}

/**
 * The device tells the routes over it when the way to a peer takes less than the underlay's MTU, but IPv4 forwarding heeds
 * that only with this setting (ip-sysctl, ip_forward_use_pmtu; IPv6 always does): without it such packets of pods vanish.
 */
const pathMtuItems = ({ podNetworks }: Underlay): readonly AnyItem[] =>
  podNetworks.some(({ family }) => family === 'ipv4')
    ? [item('sysctl', { path: 'net/ipv4/ip_forward_use_pmtu', value: '1' })]
    : [];

function peer(node: Node, podCidrs: readonly Cidr[], underlay: Underlay, settings: PlanSettings): PeerPlan {
  const { tunnel } = underlay;
  if (!tunnel) return { items: [], problems: [] };
  const end = underlayIpOf(node, tunnel.family);
  if (!end) return withoutEnd(node, tunnel);
  const routed = podCidrs.map((cidr) => (settings['vxlan.directRouting'] && plainRoute(node, cidr, underlay)) || cidr);
  const tunnelled = routed.filter((each): each is Cidr => typeof each === 'string');
  const plain = routed.flatMap((each) => (typeof each === 'string' ? [] : each));
  const items = tunnelled.length > 0 ? tunnelRoutes(node, end, tunnelled, underlay, settings) : [];
  return { items: [endItem(end, tunnel.family), ...plain, ...items], problems: [] };
}

/** Forwarding entry, neighbours and routes over the device. */
function tunnelRoutes(
  node: Node,
  end: IpAddress,
  podCidrs: readonly Cidr[],
  underlay: Underlay,
  settings: PlanSettings,
): readonly AnyItem[] {
  const link = vxlanLinkName(settings['vxlan.vni']);
  const linkKey = `link ${link}` as const;
  const mac = vtepMac(node.name);
  const fdb = item('fdb', { link, mac, destination: end }, [linkKey]);
  const perCidr = podCidrs.flatMap((destination) => {
    const own = underlay.podNetworks.find(({ family }) => family === familyOf(destination));
    const gateway = nodeIpOf(destination);
    if (!own?.nodeIp || !gateway) return [];
    const neighbour = item('neighbour', { link, ip: gateway, mac }, [linkKey, fdb.key]);
    const metric = defaultMetric(destination);
    const route = item(
      'route',
      { destination, metric, type: 'unicast', link, gateway, onlink: true, source: own.nodeIp },
      // The exception from masquerade, too: conntrack would keep what an early connection got for its whole life.
      [neighbour.key, nodeAddressKey(link, own.nodeIp, settings), keyOf('member', directMember(destination))],
    );
    return [neighbour, route];
  });
  return [fdb, ...perCidr];
}

/** NAT corrupts the checksum of tunnel packets that are left to the device before Linux 5.7 (commit ea64d8d6c675). */
const natBreaksChecksums = ({ kernel }: Host): boolean => kernel.major < 5 || (kernel.major === 5 && kernel.minor < 7);

function vxlanLink(underlay: Underlay, { local }: Tunnel, host: Host, settings: PlanSettings): Link {
  const offload = settings['vxlan.txChecksumOffload'];
  const vni = settings['vxlan.vni'];
  return {
    type: 'vxlan',
    name: vxlanLinkName(vni),
    alias: `${ALIAS_PREFIX}vxlan`,
    mac: vtepMac(underlay.nodeName),
    mtuBytes: underlay.mtuBytes,
    vni,
    port: settings['vxlan.port'],
    local,
    txChecksumOffload: offload === 'auto' ? !natBreaksChecksums(host) : offload === 'on',
  };
}
