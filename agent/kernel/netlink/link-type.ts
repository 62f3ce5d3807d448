/** What is particular to one type of link; a type is one value of this and one entry in link.ts. */
import type { Link } from '../../model/items.ts';
import type { Ethtool } from './ethtool.ts';
import type { Altered } from './object-driver.ts';
import type { LinkFacts } from './rtnetlink.ts';

export interface LinkType<L extends Link> {
  /** IFLA_INFO_KIND. */
  readonly type: L['type'];
  /** IFLA_INFO_DATA of a new device. */
  data(link: L): readonly Buffer[];
  /** IFLA_INFO_DATA that turns `found` into `wanted` in place; undefined when only another device will do. */
  change(wanted: L, found: L): readonly Buffer[] | undefined;
  /** The device of a dump; altered when only another one will do. Undefined for what it cannot express. */
  readBack(facts: LinkFacts, ethtool: Ethtool): (L & Altered) | undefined;
  /** Whether the fields of this type alone are the same. */
  same(a: L, b: L): boolean;
  /** What netlink cannot set. */
  configure(wanted: L, ethtool: Ethtool): void;
  /** Whether another device keeps the kernel from making this one, and what to do about it. */
  isRival(wanted: L, facts: LinkFacts): boolean;
  rivalAdvice(wanted: L, name: string): string;
}
