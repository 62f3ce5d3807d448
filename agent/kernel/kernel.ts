/** The kernel of this node as the rest of the agent sees it: drivers, facts about the host, and what CNI verbs ask of it. */
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Host } from '../model/host.ts';
import type { Family } from '../model/ip.ts';
import type { Kind, PodLink, TunEncryption, TunPathItem } from '../model/items.ts';
import type { AnyDriver } from '../reconcile/types.ts';
import { createSourceDriver, PodSources } from './bpf/pod-sources.ts';
import { openServiceMode, type ServiceMode, type ServiceModeSettings } from './bpf/service-mode.ts';
import { requireDumpFilters } from './capabilities.ts';
import { run } from './command.ts';
import { forgetStaleFlows, type ServedPlace } from './conntrack.ts';
import { type Feature, findGuard, probeKernel, TUN_FEATURE } from './features.ts';
import { HostWatch } from './host.ts';
import { createMemberDriver } from './ipset/member.ts';
import { createSetDriver } from './ipset/set.ts';
import { type Backend, type BackendName, backendCommands, chooseBackend, describeBackend } from './iptables/backend.ts';
import { createChainDriver } from './iptables/chain.ts';
import { filterDriver } from './netlink/filter.ts';
import { NETLINK_PROTOCOL, type NetlinkClient } from './netlink/message.ts';
import { openNetlink } from './netlink/open.ts';
import { NetlinkSocket } from './netlink/socket.ts';
import { identifyNetns } from './netns/netns.ts';
import { createSysctlDriver } from './sysctl/sysctl.ts';
import { createTunDrivers } from './tun/drivers.ts';
import { TunPath } from './tun/path.ts';

/** Kinds that have drivers only where sockets are served, or were: how their keys are shared. */
const SOCKET_KINDS = { 'backend-set': 'same', frontend: 'one', attachment: 'same' } as const satisfies Partial<
  Kernel['merge']
>;

/** In the run directory: what the tunnel of the last process carried. */
export const TUN_STATE_FILE = 'tun.json';

export interface KernelSettings extends ServiceModeSettings {
  readonly nodeName: string;
  readonly backend: string;
  readonly 'tun.encryption': TunEncryption;
  readonly runDir: string;
  readonly procSys: string;
  readonly 'iptables.backend': 'auto' | BackendName;
}

export interface Kernel {
  readonly drivers: readonly AnyDriver[];
  readonly merge: Readonly<Record<Kind, 'one' | 'same'>>;
  /** Which iptables is used, and why, for people. */
  readonly iptables: string;
  /** How Services are served. */
  readonly services: ServiceMode;
  /** The tunnel that this process carries. */
  readonly tunnel: Pick<TunPath, 'current' | 'status'>;
  /** What this kernel can do; empty until that has been tried. */
  features(): readonly Feature[];
  host(): Host;
  onHostChange(listener: (host: Host) => void): void;
  /** Identity of the network namespace at a path. Throws KernelError when it is none, or the host's own. */
  identifyNetns(path: string): { readonly device: string; readonly inode: string };
  /** What differs between a pod link and the kernel, in words. */
  describePodLink(link: PodLink): Promise<readonly string[]>;
  /** Removes Tulle's chains from the iptables that is not used: an earlier agent may have used it. Logs what fails. */
  sweepOtherBackend(signal: AbortSignal): Promise<void>;
  /** Destroys at once the pod links that wait for the end of their namespaces. Rejects with KernelError. */
  finishDeletions(): Promise<void>;
  close(): Promise<void>;
}

export interface OpenKernelOptions {
  readonly config: KernelSettings;
  readonly log: Logger;
  /** Whether a tunnel that an earlier process carried goes on now. */
  readonly resumesTunnel?: boolean;
}

/** Probes the host and opens what the drivers need. Throws KernelError: no root, a missing tool. */
export async function openKernel(
  { config, log, resumesTunnel = false }: OpenKernelOptions,
  signal: AbortSignal,
): Promise<Kernel> {
  requireDumpFilters();
  // First: until then the pods of other nodes are out of reach.
  const tunnel = new TunPath({ nodeName: config.nodeName, file: join(config.runDir, TUN_STATE_FILE), log });
  if (resumesTunnel) await tunnel.resume((path) => isStillMeant(path, config));
  const backend = await iptablesBackend(config['iptables.backend'], signal);
  log.info({ backend: backend.backend, version: backend.version, reason: backend.reason }, 'iptables');
  const netlink = openNetlink({
    sysctlRoot: config.procSys,
    onReaperError: (err) => log.warn({ err }, 'links of deleted pods cannot be destroyed yet'),
    onMonitorFault: (err) => log.error({ err }, 'a notification of the kernel could not be taken up'),
  });
  const services = await openServiceMode(config, log, signal);
  log.info({ mode: services.mode, reason: services.reason }, 'services');
  const nfnetlink = new NetlinkSocket(NETLINK_PROTOCOL.NETFILTER);
  const sysctl = createSysctlDriver({
    files: netlink.sysctls,
    stateFile: join(config.runDir, 'sysctl.json'),
    monitor: netlink.monitor,
  });
  const member = createMemberDriver({ client: nfnetlink });
  const sources = new PodSources();
  const filter = filterDriver({ ...netlink, program: sources });
  const byKind = {
    ...netlink.drivers,
    filter,
    source: createSourceDriver({ sources, adopt: filter.adopt }),
    ...createTunDrivers(tunnel),
    sysctl,
    set: createSetDriver({ run, client: nfnetlink, onEmptied: (name) => member.setEmptied(name) }),
    member,
    'chain-part': createChainDriver({
      run,
      backend,
      onServed: (family, places) => void forgetFlows(nfnetlink, log, family, places),
    }),
  } satisfies {
    readonly [K in Exclude<Kind, keyof typeof SOCKET_KINDS>]: { readonly kind: K };
  };
  const guard = await findGuard();
  log.info(guard, 'program at the bridge of bridged pods');
  const host = new HostWatch({
    ...netlink,
    randomFully: backend.randomFully,
    sourceProgram: guard.program,
    formerSysctl: (path) => sysctl.former(path),
    onFault: (err) => log.error({ err }, 'a change of the host could not be taken up'),
  });
  await host.start(signal);
  const drivers = [...Object.values(byKind), ...services.drivers] as AnyDriver[];
  let features: readonly Feature[] = [];
  // Nothing waits for this: it only tells people.
  void probeKernel().then((all) => {
    const found = all.filter(({ name }) => name !== TUN_FEATURE || config.backend === 'tun');
    features = found;
    for (const { state, ...feature } of found)
      if (state !== 'supported') log.warn({ ...feature, state }, 'this kernel lacks a feature');
  });
  return {
    drivers,
    merge: {
      ...SOCKET_KINDS,
      ...Object.fromEntries(drivers.map(({ kind, merge }) => [kind, merge])),
    } as Kernel['merge'],
    iptables: `${backend.backend} (${backend.reason})`,
    services,
    tunnel,
    features: () => [...features, ...services.features],
    host: () => host.current,
    onHostChange: (listener) => host.onChange(listener),
    identifyNetns: (path) => identifyNetns(path),
    describePodLink: netlink.describePodLink,
    sweepOtherBackend: (signal) => sweepOtherBackend(backend, log, signal),
    finishDeletions: () => netlink.reaper.flush(),
    async close() {
      await tunnel.suspend();
      nfnetlink.close();
      services.lane?.close();
      sources.close();
      await netlink.close();
    },
  };
}

/**
 * Another backend writes its own way to the pods of other nodes first, and this one ends after it. What is to be sealed now
 * is not sent in the clear once more.
 */
const isStillMeant = ({ encryption }: TunPathItem, config: KernelSettings): boolean =>
  config.backend !== 'tun' || encryption === config['tun.encryption'];

async function forgetFlows(client: NetlinkClient, log: Logger, family: Family, places: readonly ServedPlace[]) {
  try {
    const { forgotten, failures } = await forgetStaleFlows(client, family, places);
    if (forgotten > 0) log.debug({ family, flows: forgotten }, 'UDP flows to former backends forgotten');
    for (const err of failures) log.warn({ err }, 'a UDP flow goes on to a former backend');
  } catch (err) {
    log.warn({ err, family }, 'UDP flows may go on to former backends; is nf_conntrack_netlink there?');
  }
}

const iptablesBackend = (setting: KernelSettings['iptables.backend'], signal: AbortSignal) =>
  setting === 'auto' ? chooseBackend(run, signal) : describeBackend(run, setting, 'the settings say so', signal);

async function sweepOtherBackend({ backend }: Backend, log: Logger, signal: AbortSignal): Promise<void> {
  const other = backend === 'nft' ? 'legacy' : 'nft';
  try {
    const { parts, failures } = await removeOwnChains(other, signal);
    if (parts === 0) return;
    log.info({ backend: other, parts, failures: failures.map(String) }, 'own chains of an earlier agent removed');
  } catch (err) {
    log.warn({ err, backend: other }, 'the iptables that is not used cannot be looked at');
  }
}

/** Removes every own chain from one back end. Throws KernelError when it cannot be read. */
export async function removeOwnChains(
  backend: BackendName,
  signal: AbortSignal,
): Promise<{ readonly parts: number; readonly failures: readonly Error[] }> {
  const driver = createChainDriver({ run, backend: { backend, commands: backendCommands(backend) } });
  const found = await driver.list(signal);
  const removals = [...found].map(([key, from]) => ({ action: 'remove', kind: 'chain-part', key, from }) as const);
  const failures = removals.length > 0 ? await driver.apply(removals, signal) : new Map<string, Error>();
  return { parts: removals.length, failures: [...failures.values()] };
}
