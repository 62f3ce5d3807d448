/**
 * Backend `tun`: packets travel in UDP datagrams of the agent, where VXLAN is blocked or missing, and sealed on request. One
 * device, the path between it and a socket, and for each peer an entry of that path and one route a pod CIDR. There are no
 * direct routes: what is to be sealed must not leave in the clear because a peer is near.
 */
import type { Node } from '../model/cluster.ts';
import type { Host } from '../model/host.ts';
import { type Cidr, FAMILIES, type Family, familyOf } from '../model/ip.ts';
import { type AnyItem, defaultMetric, item, keyOf, type TunPathItem } from '../model/items.ts';
import { ALIAS_PREFIX, TUN_LINK_NAME } from '../model/kernel-names.ts';
import type { Backend, PeerPlan } from './backend.ts';
import { directMember } from './node-network.ts';
import { endItem, guardKeys, nodeAddresses, nodeAddressKey, type Tunnel, tunnelItems, withoutEnd } from './tunnel.ts';
import { type PlanSettings, type Underlay, underlayIpOf } from './underlay.ts';

export const tun: Backend = {
  name: 'tun',
  overheadBytes,
  tunnel: (settings) => ({ link: TUN_LINK_NAME, port: settings['tun.port'], portSetting: 'tun.port' }),
  device,
  peer,
};

/** RFC 768. */
const UDP_HEADER_BYTES = 8;
/** The header of a datagram, and what sealing adds: session, counter and tag; see docs/tun.md. */
const HEADER_BYTES = 12;
const SEAL_BYTES = 28;

function overheadBytes(family: Family, settings: PlanSettings): number {
  const seal = settings['tun.encryption'] === 'none' ? 0 : SEAL_BYTES;
  return FAMILIES[family].headerBytes + UDP_HEADER_BYTES + HEADER_BYTES + seal;
}

const LINK_KEY = `link ${TUN_LINK_NAME}` as const;
const PATH_KEY = `tun-path ${TUN_LINK_NAME}` as const;

function device(underlay: Underlay, _host: Host, settings: PlanSettings): readonly AnyItem[] {
  const { tunnel, mtuBytes } = underlay;
  if (!tunnel) return [];
  const alias = `${ALIAS_PREFIX}tun`;
  const link = item('link', { type: 'tun', name: TUN_LINK_NAME, alias, mtuBytes });
  const path = item('tun-path', pathOf(tunnel, settings), [link.key, ...guardKeys(tunnel)]);
  return [
    link,
    ...nodeAddresses(TUN_LINK_NAME, underlay, settings),
    ...tunnelItems(tunnel, settings['tun.port']),
    path,
  ];
}

function pathOf({ local }: Tunnel, settings: PlanSettings): TunPathItem {
  const encryption = settings['tun.encryption'];
  return {
    link: TUN_LINK_NAME,
    local,
    port: settings['tun.port'],
    carriage: settings['tun.carriage'],
    encryption,
    ...(encryption !== 'none' && { secretFile: settings['tun.secretFile'] }),
  };
}

function peer(node: Node, podCidrs: readonly Cidr[], underlay: Underlay, settings: PlanSettings): PeerPlan {
  const { tunnel } = underlay;
  if (!tunnel) return { items: [], problems: [] };
  const end = underlayIpOf(node, tunnel.family);
  if (!end) return withoutEnd(node, tunnel);
  const entry = item('tun-peer', { node: node.name, end, podCidrs }, [PATH_KEY]);
  const routes = podCidrs.flatMap((destination) => {
    const own = underlay.podNetworks.find(({ family }) => family === familyOf(destination));
    if (!own?.nodeIp) return [];
    const metric = defaultMetric(destination);
    return item(
      'route',
      { destination, metric, type: 'unicast', link: TUN_LINK_NAME, source: own.nodeIp },
      // The exception from masquerade, too: conntrack would keep what an early connection got for its whole life.
      [
        entry.key,
        LINK_KEY,
        nodeAddressKey(TUN_LINK_NAME, own.nodeIp, settings),
        keyOf('member', directMember(destination)),
      ],
    );
  });
  return { items: [endItem(end, tunnel.family), entry, ...routes], problems: [] };
}
