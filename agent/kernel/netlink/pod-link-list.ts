/** What the host's namespace shows of pod links. The pod's side is the pod's own, and looked at by CHECK only. */
import type { PodLink } from '../../model/items.ts';
import { POD_GATEWAY } from '../../model/kernel-names.ts';
import type { SysctlFiles } from '../sysctl/files.ts';
import { parseAttributes } from './attributes.ts';
import { closedAlteration } from './link-conf.ts';
import type { Links } from './links.ts';
import type { NetlinkClient } from './message.ts';
import { NO_MAC } from './neighbour.ts';
import type { Altered } from './object-driver.ts';
import { hasHostLinkLocal, hostAlteration, parseAlias } from './pod-link-requests.ts';
import { AF, addressHeader, IFA, ipOf, type LinkFacts, RTM } from './rtnetlink.ts';

/** A pod link as found. The fields of the pod's side are empty. */
export interface FoundPodLink extends PodLink, Altered {
  /** Whether the host side has IPv6 and fe80::1. Absent where only a notice tells of the link. */
  readonly isGateway?: boolean;
}

/** The host side of a pair as a link message shows it. */
export function foundPodLink(facts: LinkFacts, links: Links): FoundPodLink {
  const { name, mac, mtuBytes, masterIfindex } = facts;
  const bridge = links.byIndex(masterIfindex)?.name ?? `#${masterIfindex}`;
  const altered = hostAlteration(facts);
  return {
    name,
    ...parseAlias(facts.alias, mtuBytes),
    hostMac: mac ?? ('' as PodLink['hostMac']),
    podMac: '' as PodLink['podMac'],
    mtuBytes,
    ifName: '',
    netns: { path: '', device: '', inode: '' },
    ips: [],
    ...(masterIfindex !== 0 && { bridge: { name: bridge, mac: NO_MAC, gateways: [] } }),
    ...(altered && { altered }),
  };
}

export interface HostSideOptions {
  readonly client: NetlinkClient;
  readonly links: Links;
  readonly sysctls: SysctlFiles;
}

/** These host sides with what no link message shows, by one dump and a few files of each. Throws KernelError. */
export async function readHostSides(
  own: readonly LinkFacts[],
  { client, links, sysctls }: HostSideOptions,
): Promise<readonly FoundPodLink[]> {
  if (own.length === 0) return [];
  const gateways = await readGateways(client);
  return own.map((facts) => {
    const isGateway = gateways.has(facts.ifindex);
    const altered = closedAlteration(facts.name, sysctls) ?? (isGateway ? undefined : bareAlteration(facts, sysctls));
    return { ...foundPodLink(facts, links), isGateway, ...(altered && { altered }) };
  });
}

/** With IPv6 switched off the kernel takes all addresses away: fe80::1 is there and usable, or not there. */
function bareAlteration({ name }: LinkFacts, sysctls: SysctlFiles): string | undefined {
  return sysctls.read(`net/ipv6/conf/${name}/disable_ipv6`) === '0'
    ? `has IPv6 without ${POD_GATEWAY.ipv6}`
    : undefined;
}

/** Indexes of the links that have fe80::1. */
async function readGateways(client: NetlinkClient): Promise<ReadonlySet<number>> {
  const request = { type: RTM.GETADDR, payload: addressHeader(AF.INET6), operation: 'list', object: 'addresses' };
  const messages = await client.dump(request);
  const holds = (payload: Buffer) => ipOf(parseAttributes(payload, 8).get(IFA.ADDRESS)) === POD_GATEWAY.ipv6;
  return new Set(messages.flatMap(({ payload }) => (holds(payload) ? [payload.readUInt32LE(4)] : [])));
}

/** Whether what was listed is the gateway of an IPv6 pod exactly where it should be. Others do not know, so they agree. */
export function sameGateway(wanted: PodLink, { isGateway }: FoundPodLink): boolean {
  return isGateway === undefined || wanted.ifName === '' || isGateway === hasHostLinkLocal(wanted);
}
