/** What one attached pod needs: its pair, host routes and neighbours, and at last its place in the gate's set. */
import { type Attachment, attachmentName, podFragmentId } from '../model/attachment.ts';
import type { Fragment } from '../model/fragment.ts';
import { factsOf, familyOf, hostCidr, type IpAddress } from '../model/ip.ts';
import {
  type AnyItem,
  defaultMetric,
  item,
  type Key,
  keyOf,
  memberOf,
  type PodBridge,
  type PodLink,
  type PodMtu,
} from '../model/items.ts';
import { podLinkAlias, podLinkMac, podLinkName, setName } from '../model/kernel-names.ts';
import { BRIDGE, bridgeKeys, type GuardFacts, sourceItem } from './bridge.ts';
import { gateKeys } from './node-network.ts';
import type { Underlay } from './underlay.ts';

/** How large packets of pods may be on this node. */
export const podMtu = ({ mtuBytes, linkMtuBytes }: Pick<Underlay, 'mtuBytes' | 'linkMtuBytes'>): PodMtu => ({
  mtuBytes: linkMtuBytes,
  routeMtuBytes: mtuBytes,
});

export function planPod(attachment: Attachment & PodMtu, host: GuardFacts): Fragment {
  const link = podLink(attachment);
  const families = [...new Set(attachment.ips.map(familyOf))];
  const needs = [
    ...families.flatMap(gateKeys),
    ...(link.bridge ? families.flatMap((family) => bridgeKeys(family, host)) : []),
  ];
  const linkItem = item('pod-link', link, [...new Set(needs)]);
  return {
    id: podFragmentId(attachment),
    cause: `pod ${attachmentName(attachment)}`,
    rank: '',
    items: [linkItem, ...(link.bridge ? bridgedItems(link, link.bridge, host) : routedItems(link))],
    requires: link.bridge ? [BRIDGE] : [],
    problems: [],
  };
}

function podLink(attachment: Attachment & PodMtu): PodLink {
  const { containerId, ifName, netns, ips, bridge, mtuBytes, routeMtuBytes } = attachment;
  return {
    name: podLinkName(containerId, ifName),
    alias: podLinkAlias(attachmentName(attachment)),
    hostMac: podLinkMac(containerId, ifName, 'host'),
    podMac: podLinkMac(containerId, ifName, 'pod'),
    mtuBytes,
    routeMtuBytes,
    ifName,
    netns,
    ips,
    ...(bridge && { bridge }),
  };
}

/** The neighbour is permanent: the host never asks a pod for its address, and no other pod can answer for it. */
function routedItems(link: PodLink): readonly AnyItem[] {
  return link.ips.flatMap((ip) => {
    const neighbour = item('neighbour', { link: link.name, ip, mac: link.podMac }, [keyOf('pod-link', link)]);
    const route = item('route', { ...hostRoute(ip), link: link.name }, [neighbour.key]);
    return [neighbour, route, readyItem(ip, route.key)];
  });
}

/**
 * The route names the pod as its own next hop: the kernel takes neighbours of one interface that have no next hop to be
 * neighbours of each other, and tells them so (ICMP redirects) when it routes from one to the other.
 */
function bridgedItems(link: PodLink, { name }: PodBridge, host: GuardFacts): readonly AnyItem[] {
  const entry = item('fdb', { link: link.name, mac: link.podMac }, [keyOf('pod-link', link)]);
  const perAddress = link.ips.flatMap((ip) => {
    const source = sourceItem(link, ip, host);
    const neighbour = item('neighbour', { link: name, ip, mac: link.podMac }, [entry.key]);
    const route = item('route', { ...hostRoute(ip), link: name, gateway: ip, onlink: true }, [neighbour.key]);
    return [source, neighbour, route, readyItem(ip, route.key, source.key)];
  });
  return [entry, ...perAddress];
}

const hostRoute = (ip: IpAddress) =>
  ({ destination: hostCidr(ip), metric: defaultMetric(hostCidr(ip)), type: 'unicast' }) as const;

/** The place in the gate's set, taken last. The set goes when the node loses its podCIDR of that family. */
function readyItem(ip: IpAddress, ...needs: readonly Key[]): AnyItem {
  const set = setName('ready', factsOf(ip));
  return item('member', memberOf(set, ip), [`set ${set}`, ...needs]);
}
