/** What the planner must know of this host: read from the kernel, read again when it changes. Plain frozen data. */
import type { IpAddress } from './ip.ts';

export interface HostLink {
  readonly name: string;
  readonly ifindex: number;
  readonly mtuBytes: number;
  readonly up: boolean;
  /** All unicast addresses, link-local ones included, with the prefix length of their subnet. */
  readonly addresses: readonly { readonly ip: IpAddress; readonly prefixLength: number }[];
  /** net.ipv6.conf.<name>.accept_ra, or undefined where IPv6 is absent. */
  readonly acceptRa?: string;
}

export interface Host {
  /** Links that are not Tulle's own. */
  readonly links: readonly HostLink[];
  /** False when the kernel has no IPv6 or net.ipv6.conf.all.disable_ipv6 is 1. */
  readonly ipv6: boolean;
  /** Value of net.ipv6.conf.all.forwarding at the time of reading. */
  readonly ipv6Forwarding: boolean;
  /** MASQUERADE --random-fully is known to the kernel and to iptables. */
  readonly randomFully: boolean;
  /** Build of the program that guards bridged pods; absent where the kernel takes none. */
  readonly sourceProgram?: string;
  /** Kernel release, major and minor: NAT corrupts tunnel checksums before 5.7. */
  readonly kernel: { readonly release: string; readonly major: number; readonly minor: number };
}

/** All addresses of its links. */
export const addressesOf = ({ links }: Pick<Host, 'links'>): ReadonlySet<IpAddress> =>
  new Set(links.flatMap(({ addresses }) => addresses.map(({ ip }) => ip)));
