/** Everything that rtnetlink needs in one network namespace, opened and closed together. */
import type { PodLink } from '../../model/items.ts';
import { fileIdentity } from '../libc.ts';
import { type OpenPodNetns, openPodNetns } from '../netns/netns.ts';
import { openSysctls, type SysctlFiles } from '../sysctl/files.ts';
import { createNetlinkDrivers } from './drivers.ts';
import { type Ethtool, openEthtool } from './ethtool.ts';
import { Links } from './links.ts';
import { NETLINK_PROTOCOL, type NetlinkClient } from './message.ts';
import { NetlinkMonitor } from './monitor.ts';
import { describePodLink } from './pod-link-check.ts';
import { BackgroundReaper } from './reaper.ts';
import { NetlinkSocket } from './socket.ts';
import { tunsOf } from './tun.ts';

export interface OpenNetlinkOptions {
  /** Another namespace than this process's own, for tests; the caller keeps the fd open. */
  readonly netnsFd?: number;
  /** Where the host's /proc/sys is seen. */
  readonly sysctlRoot?: string;
  /** Told when links of deleted pods could not be destroyed. */
  readonly onReaperError?: (error: Error) => void;
  /** Told of a listener of the monitor that threw. */
  readonly onMonitorFault?: (error: unknown) => void;
}

export interface Netlink {
  readonly client: NetlinkClient;
  readonly links: Links;
  readonly monitor: NetlinkMonitor;
  readonly sysctls: SysctlFiles;
  readonly ethtool: Ethtool;
  readonly reaper: BackgroundReaper;
  readonly openPodNetns: OpenPodNetns;
  readonly drivers: ReturnType<typeof createNetlinkDrivers>;
  /** What differs between a pod link and the kernel, in words; for CHECK. */
  describePodLink(value: PodLink): Promise<readonly string[]>;
  close(): Promise<void>;
}

/** Throws KernelError. The result does not keep the process alive. */
export function openNetlink({ netnsFd, sysctlRoot, onReaperError, onMonitorFault }: OpenNetlinkOptions = {}): Netlink {
  const place = netnsFd === undefined ? {} : { netnsFd };
  const root = sysctlRoot === undefined ? {} : { root: sysctlRoot };
  const client = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, place);
  const links = new Links(client);
  const monitor = new NetlinkMonitor({ links, ...place, ...(onMonitorFault && { onFault: onMonitorFault }) });
  const sysctls = openSysctls({ ...root, ...place });
  const ethtool = openEthtool(netnsFd);
  const reaper = new BackgroundReaper({ ...place, ...(onReaperError && { onError: onReaperError }) });
  const host = netnsFd === undefined ? undefined : fileIdentity(netnsFd);
  const openPod: OpenPodNetns = (netns) =>
    openPodNetns(netns, { host, ...(sysctlRoot !== undefined && { sysctlRoot }) });
  const parts = { client, links, monitor, sysctls, ethtool, tuns: tunsOf(netnsFd), reaper, openPodNetns: openPod };
  return {
    ...parts,
    drivers: createNetlinkDrivers(parts),
    describePodLink: (value) => describePodLink(value, parts),
    async close() {
      monitor.close();
      client.close();
      ethtool.close();
      await reaper.close();
    },
  };
}
