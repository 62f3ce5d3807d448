/** All drivers that speak rtnetlink, over one request socket and one index of links. */
import type { Driver } from '../../reconcile/types.ts';
import type { OpenPodNetns } from '../netns/netns.ts';
import type { SysctlFiles } from '../sysctl/files.ts';
import { addressDriver } from './address.ts';
import type { Ethtool } from './ethtool.ts';
import { fdbKind } from './fdb.ts';
import { linkDriver } from './link.ts';
import type { Links } from './links.ts';
import type { NetlinkClient } from './message.ts';
import type { NetlinkMonitor } from './monitor.ts';
import { neighbourKind } from './neighbour.ts';
import { objectDriver } from './object-driver.ts';
import { podLinkDriver } from './pod-link.ts';
import type { LinkReaper } from './reaper.ts';
import { routeDriver } from './route.ts';
import type { Tuns } from './tun.ts';

export interface NetlinkDriversOptions {
  readonly client: NetlinkClient;
  readonly links: Links;
  /** /proc/sys of the host's namespace. */
  readonly sysctls: SysctlFiles;
  readonly ethtool: Ethtool;
  readonly tuns: Tuns;
  readonly reaper: LinkReaper;
  readonly openPodNetns: OpenPodNetns;
  /** Without it the drivers watch nothing. */
  readonly monitor?: NetlinkMonitor;
}

export type NetlinkKind = 'link' | 'pod-link' | 'address' | 'neighbour' | 'fdb' | 'route';

export function createNetlinkDrivers(options: NetlinkDriversOptions): { readonly [K in NetlinkKind]: Driver<K> } {
  return {
    link: linkDriver(options),
    'pod-link': podLinkDriver(options),
    address: addressDriver(options),
    neighbour: objectDriver(neighbourKind, options),
    fdb: objectDriver(fdbKind, options),
    route: routeDriver(options),
  };
}
