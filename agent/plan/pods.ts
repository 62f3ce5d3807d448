/** What one attached pod needs: its pair, host routes and neighbours, and at last its place in the gate's set. */
import { type Attachment, attachmentName, podFragmentId } from '../model/attachment.ts';
import type { Fragment } from '../model/fragment.ts';
import { factsOf, familyOf, hostCidr, type IpAddress } from '../model/ip.ts';
import { type AnyItem, defaultMetric, item, memberOf, type PodLink } from '../model/items.ts';
import { podLinkAlias, podLinkMac, podLinkName, setName } from '../model/kernel-names.ts';
import { gateKeys } from './node-network.ts';

export function planPod(attachment: Attachment, mtuBytes: number): Fragment {
  const link = podLink(attachment, mtuBytes);
  const families = [...new Set(attachment.ips.map(familyOf))];
  const linkItem = item('pod-link', link, families.flatMap(gateKeys));
  return {
    id: podFragmentId(attachment),
    cause: `pod ${attachmentName(attachment)}`,
    rank: '',
    items: [linkItem, ...attachment.ips.flatMap((ip) => addressItems(ip, link, linkItem.key))],
    requires: [],
    problems: [],
  };
}

function podLink(attachment: Attachment, mtuBytes: number): PodLink {
  const { containerId, ifName, netns, ips } = attachment;
  return {
    name: podLinkName(containerId, ifName),
    alias: podLinkAlias(attachmentName(attachment)),
    hostMac: podLinkMac(containerId, ifName, 'host'),
    podMac: podLinkMac(containerId, ifName, 'pod'),
    mtuBytes,
    ifName,
    netns,
    ips,
  };
}

/** The neighbour is permanent: the host never asks a pod for its address, and no other pod can answer for it. */
function addressItems(ip: IpAddress, link: PodLink, linkKey: `pod-link ${string}`): readonly AnyItem[] {
  const neighbour = item('neighbour', { link: link.name, ip, mac: link.podMac }, [linkKey]);
  const destination = hostCidr(ip);
  const route = item('route', { destination, metric: defaultMetric(destination), type: 'unicast', link: link.name }, [
    linkKey,
    neighbour.key,
  ]);
  return [neighbour, route, item('member', memberOf(setName('ready', factsOf(ip)), ip), [route.key])];
}
