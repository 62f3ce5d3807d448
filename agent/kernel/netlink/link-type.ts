/** What is particular to one type of link; a type is one value of this and one entry in link.ts. */
import type { Link } from '../../model/items.ts';
import type { SysctlFiles } from '../sysctl/files.ts';
import type { Ethtool } from './ethtool.ts';
import type { TOWARDS_PODS } from './link-conf.ts';
import type { Altered } from './object-driver.ts';
import type { LinkFacts } from './rtnetlink.ts';
import type { Tuns } from './tun.ts';

/** What is set otherwise than by netlink. */
export interface LinkFiles {
  readonly ethtool: Ethtool;
  readonly sysctls: SysctlFiles;
  readonly tuns: Tuns;
}

export interface LinkType<L extends Link> {
  /** IFLA_INFO_KIND. */
  readonly type: L['type'];
  /** Makes a device of a type that rtnetlink makes none of. Throws KernelError. */
  create?(link: L, files: LinkFiles): void;
  /** Of a type without MAC addresses: whether a device without a mark is as `create` leaves it. */
  isOwnMake?(facts: LinkFacts): boolean;
  /** IFLA_INFO_DATA of a new device. */
  data(link: L): readonly Buffer[];
  /** IFLA_INFO_DATA that turns `found` into `wanted` in place; undefined when only another device will do. */
  change(wanted: L, found: L & Altered, facts: LinkFacts): readonly Buffer[] | undefined;
  /** The device of a dump, altered when a field of this type cannot show how it differs. Undefined for what it cannot express. */
  readBack(facts: LinkFacts, files: LinkFiles): (L & Altered) | undefined;
  /** Whether the fields of this type alone are the same. */
  same(a: L, b: L): boolean;
  /** Settings of IPv4 that every device has, new or found. */
  readonly ipv4: typeof TOWARDS_PODS;
  /** What netlink cannot set. */
  configure(wanted: L, files: LinkFiles): void;
  /** What to do about another device that keeps the kernel from making this one; undefined when it is none. */
  rivalAdvice(wanted: L, other: LinkFacts): string | undefined;
  /** What to do when the kernel has no such type. */
  readonly missingAdvice: string;
  /** What to do about a stranger that has the name. */
  readonly nameAdvice: string;
}
