/** What the runtime is told of an attachment, and whether what it says of it later is the same. Pure. */
import type { CheckRequest, PodResult } from '../../cni/protocol.ts';
import type { Cidr } from '../model/ip.ts';
import { familyOf, parseCidr } from '../model/ip.ts';
import type { PodLink } from '../model/items.ts';
import { gatewayOf, podPrefixLength } from '../model/pod-link.ts';
import type { PodRecord } from './records.ts';

const DEFAULT_ROUTE = { ipv4: parseCidr('0.0.0.0/0') as Cidr, ipv6: parseCidr('::/0') as Cidr } as const;

/** Success of an ADD. */
export function resultOf({ ifName, netns, ips }: PodRecord, link: PodLink): PodResult {
  return {
    hostLink: link.name,
    hostMac: link.hostMac,
    ifName,
    podMac: link.podMac,
    ...(link.bridge && { bridge: { name: link.bridge.name, mac: link.bridge.mac } }),
    sandbox: netns.path,
    mtuBytes: link.mtuBytes,
    ips: ips.map((address) => ({
      address,
      prefixLength: podPrefixLength(link, address),
      gateway: gatewayOf(link, familyOf(address)).ip,
    })),
    routes: ips.map((address) => ({
      dst: DEFAULT_ROUTE[familyOf(address)],
      gateway: gatewayOf(link, familyOf(address)).ip,
      ...(link.routeMtuBytes < link.mtuBytes && { mtuBytes: link.routeMtuBytes }),
    })),
  };
}

/** What a CHECK was told against what the record says, one clause each. */
export function compareResult(record: PodRecord, { prevResult }: CheckRequest): readonly string[] {
  const told = new Set(prevResult.ips.map(({ address }) => address));
  return record.ips
    .filter((ip) => !told.has(ip))
    .map((ip) => `prevResult has no ${ip}, which this attachment was given`);
}
