/** The settings of each family that an interface towards pods has on the host: what a pod sends must not configure it. */
import type { Sysctl } from '../../model/items.ts';
import { KernelError } from '../errors.ts';
import type { SysctlFiles } from '../sysctl/files.ts';
import { nested, u32 } from './attributes.ts';
import { NETCONFA, type Netconf } from './netconf.ts';
import { AF, IFLA, type LinkFacts } from './rtnetlink.ts';

interface Ipv4Setting {
  readonly name: string;
  readonly conf: number;
  readonly netconf: number | undefined;
  readonly value: number;
}

/** What is between pods or nodes passes on packets, whatever the default of the host is. */
const FORWARDING: Ipv4Setting = { name: 'forwarding', conf: 1, netconf: NETCONFA.FORWARDING, value: 1 };

/** Of a link towards other nodes. */
export const TOWARDS_NODES: readonly Ipv4Setting[] = [FORWARDING];

/** Of a link towards pods: IPV4_DEVCONF_* (linux/ip.h) and NETCONFA_* of the same setting, with the value that it has towards pods. */
export const TOWARDS_PODS: readonly Ipv4Setting[] = [
  FORWARDING,
  { name: 'accept_redirects', conf: 4, netconf: undefined, value: 0 },
  { name: 'send_redirects', conf: 6, netconf: undefined, value: 0 },
  // Strict reverse path: a pod cannot send with an address that is not routed to its interface.
  { name: 'rp_filter', conf: 8, netconf: NETCONFA.RP_FILTER, value: 1 },
];

/** Part of IFLA_AF_SPEC. The settings go with the link request because /proc/sys may be read-only. */
export const renderIpv4Conf = (settings = TOWARDS_PODS): Buffer =>
  nested(AF.INET, nested(IFLA.INET_CONF, ...settings.map(({ conf, value }) => u32(conf, value))));

/** How the settings of a link differ from those that it should have. */
export function ipv4ConfAlteration({ ipv4Conf }: LinkFacts, settings = TOWARDS_PODS): string | undefined {
  for (const { name, conf, value } of settings) {
    const at = 4 * (conf - 1);
    const found = ipv4Conf && at + 4 <= ipv4Conf.length ? ipv4Conf.readUInt32LE(at) : value;
    if (found !== value) return `has ${name} ${found}`;
  }
  return undefined;
}

/** The same of settings that the kernel announces. */
export function netconfAlteration(conf: Netconf, settings = TOWARDS_PODS): string | undefined {
  for (const { name, netconf, value } of settings) {
    const found = netconf && conf.settings.get(netconf);
    if (found !== undefined && found !== value) return `has ${name} ${found}`;
  }
  return undefined;
}

/** IPv6 has no such request: neither advertisements nor redirects are taken. */
export const closedSysctls = (link: string): readonly Sysctl[] => [
  { path: `net/ipv6/conf/${link}/accept_ra`, value: '0' },
  { path: `net/ipv6/conf/${link}/accept_redirects`, value: '0' },
];

/** How a link is open to what is sent to it. Nobody announces this, so it is looked at when links are listed. */
export function closedAlteration(link: string, sysctls: SysctlFiles): string | undefined {
  for (const { path, value } of closedSysctls(link)) {
    const found = sysctls.read(path);
    if (found !== undefined && found !== value) return `has ${path} ${found}`;
  }
  return undefined;
}

/**
 * Written without a look: most of these are new files with the kernel's defaults. What cannot be written may be right already.
 * Without IPv6 in the kernel there are no such files: an error only where they are `needed`.
 */
export function writeSysctls(sysctls: SysctlFiles, wanted: readonly Sysctl[], { needed }: { needed: boolean }): void {
  if (wanted.length === 0) return;
  sysctls.together(() => {
    for (const { path, value } of wanted) {
      try {
        sysctls.write(path, value);
      } catch (error) {
        const isAbsent = error instanceof KernelError && error.code === 'ENOENT';
        if (isAbsent ? needed : sysctls.read(path) !== value) throw error;
      }
    }
  });
}
