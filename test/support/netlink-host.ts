/** A host to try netlink drivers on, either a real network namespace or the fake kernel, with pods' namespaces beside it. */
import { closeSync, openSync } from 'node:fs';
import type { ExecutionContext } from 'ava';
import { inNetns } from '../../agent/kernel/libc.ts';
import { createNetlinkDrivers } from '../../agent/kernel/netlink/drivers.ts';
import { type Ethtool, openEthtool } from '../../agent/kernel/netlink/ethtool.ts';
import { type DoomedLink, deleteLinks } from '../../agent/kernel/netlink/group-deletion.ts';
import { Links } from '../../agent/kernel/netlink/links.ts';
import { NETLINK_PROTOCOL, type NetlinkClient } from '../../agent/kernel/netlink/message.ts';
import { describePodLink } from '../../agent/kernel/netlink/pod-link-check.ts';
import type { LinkReaper } from '../../agent/kernel/netlink/reaper.ts';
import { NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { type Tuns, tunsOf } from '../../agent/kernel/netlink/tun.ts';
import { identifyNetns, type OpenNetns, type OpenPodNetns, openPodNetns } from '../../agent/kernel/netns/netns.ts';
import { openSysctls, type SysctlFiles } from '../../agent/kernel/sysctl/files.ts';
import { item, type Key, type Kind, keyOf, type Objects, type PodLink } from '../../agent/model/items.ts';
import type { Change, Driver } from '../../agent/reconcile/types.ts';
import { FakeKernel, type FakeNetns } from './fake-netlink.ts';
import { createNetns } from './netns.ts';

export type NetlinkDrivers = ReturnType<typeof createNetlinkDrivers>;

export interface NetlinkHost {
  readonly client: NetlinkClient;
  /** Runs an action within the namespace; only on a real kernel. */
  inside?<T>(action: () => T): T;
  readonly drivers: NetlinkDrivers;
  readonly sysctls: SysctlFiles;
  readonly reaper: CollectingReaper;
  /** The fake's own namespace, for planned failures. */
  readonly fake?: FakeNetns;
  /** A namespace of a new pod. */
  newPod(): Promise<PodLink['netns']>;
  /** Reaches into a pod. */
  openPod(netns: PodLink['netns']): OpenNetns;
  describe(value: PodLink): Promise<readonly string[]>;
}

/** Destroys what it was given for later when it is told to. */
export class CollectingReaper implements LinkReaper {
  readonly #client: NetlinkClient;
  #doomed: DoomedLink[] = [];

  constructor(client: NetlinkClient) {
    this.#client = client;
  }

  destroy(links: readonly DoomedLink[]): Promise<void> {
    return deleteLinks(this.#client, links);
  }

  later(link: DoomedLink): void {
    this.#doomed.push(link);
  }

  isDoomed(ifindex: number): boolean {
    return this.#doomed.some((link) => link.ifindex === ifindex);
  }

  async reap(): Promise<void> {
    await this.destroy(this.#doomed);
    this.#doomed = [];
  }
}

export type OpenHost = (t: ExecutionContext) => Promise<NetlinkHost>;

export const hosts: Readonly<Record<'fake' | 'kernel', OpenHost>> = { fake: openFakeHost, kernel: openRealHost };

interface Parts {
  readonly client: NetlinkClient;
  readonly sysctls: SysctlFiles;
  readonly ethtool: Ethtool;
  readonly tuns: Tuns;
  readonly openPodNetns: OpenPodNetns;
}

function assemble(parts: Parts): Omit<NetlinkHost, 'newPod'> {
  const reaper = new CollectingReaper(parts.client);
  return {
    ...parts,
    reaper,
    drivers: createNetlinkDrivers({ ...parts, links: new Links(parts.client), reaper }),
    openPod: parts.openPodNetns,
    describe: (value) => describePodLink(value, parts),
  };
}

async function openFakeHost(): Promise<NetlinkHost> {
  const kernel = new FakeKernel();
  const host = kernel.netns();
  const openPod: OpenPodNetns = ({ inode }) => {
    const { fd, sysctls, ...pod } = podOf(kernel.byFd(Number(inode)));
    return { fd, sysctls, client: pod.client, close: () => {} };
  };
  const parts = { client: host, sysctls: host.sysctls, ethtool: host.ethtool, tuns: host.tuns, openPodNetns: openPod };
  const newPod = async () => {
    const { fd } = kernel.netns();
    return { path: `/fake/${fd}`, device: '4', inode: String(fd) };
  };
  return { ...assemble(parts), fake: host, newPod };
}

const podOf = (netns: FakeNetns) => ({ fd: netns.fd, client: netns, sysctls: netns.sysctls });

async function openRealHost(t: ExecutionContext): Promise<NetlinkHost> {
  const { path } = await createNetns(t, 'host');
  const netnsFd = openSync(path, 'r');
  const client = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd });
  const ethtool = openEthtool(netnsFd);
  t.teardown(() => {
    client.close();
    ethtool.close();
    closeSync(netnsFd);
  });
  const identity = identifyNetns(path);
  const openPod: OpenPodNetns = (netns) => openPodNetns(netns, { host: identity });
  const parts = { client, sysctls: openSysctls({ netnsFd }), ethtool, tuns: tunsOf(netnsFd), openPodNetns: openPod };
  const newPod = async () => {
    const pod = await createNetns(t, 'pod');
    return { path: pod.path, ...identifyNetns(pod.path) };
  };
  return { ...assemble(parts), newPod, inside: (action) => inNetns(netnsFd, action) };
}

const signal = AbortSignal.timeout(600_000);

/** Applies one change and throws its failure. */
async function apply<K extends Kind>(driver: Driver<K>, change: Change<K>): Promise<void> {
  const failures = await driver.apply([change], signal);
  const error = failures.get(change.key as Key<K>);
  if (error) throw error;
}

export const create = <K extends Kind>(driver: Driver<K>, value: Objects[K]): Promise<void> => {
  const made = item(driver.kind, value);
  return apply(driver, { action: 'create', kind: driver.kind, key: made.key, item: made } as Change<K>);
};

export const update = <K extends Kind>(driver: Driver<K>, value: Objects[K], from: Objects[K]): Promise<void> => {
  const made = item(driver.kind, value);
  return apply(driver, { action: 'update', kind: driver.kind, key: made.key, item: made, from } as Change<K>);
};

export const remove = <K extends Kind>(driver: Driver<K>, from: Objects[K]): Promise<void> =>
  apply(driver, { action: 'remove', kind: driver.kind, key: keyOf(driver.kind, from), from } as Change<K>);

export const list = async <K extends Kind>(driver: Driver<K>): Promise<readonly Objects[K][]> => [
  ...(await driver.list(signal)).values(),
];

/** Whether exactly this is listed, by the driver's own word. */
export async function holds<K extends Kind>(driver: Driver<K>, ...wanted: readonly Objects[K][]): Promise<boolean> {
  const found = await driver.list(signal);
  return (
    found.size === wanted.length &&
    wanted.every((value) => {
      const other = found.get(keyOf(driver.kind, value) as Key<K>);
      return other !== undefined && driver.equal(value, other);
    })
  );
}
