/**
 * How this node serves Services: what the settings ask for, as far as the kernel can. Where sockets cannot be had, packets
 * serve all the same; what an agent before this one left in the kernel is opened in any mode, so that it can be taken away.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { AnyDriver } from '../../reconcile/types.ts';
import { run } from '../command.ts';
import type { Feature } from '../features.ts';
import { netnsCookie } from '../libc.ts';
import { createAttachmentDriver } from './attachment.ts';
import { type BpfLane, openBpfLane } from './lane.ts';
import { findCgroupRoot } from './place.ts';
import { formerPrograms, readFormerPeers } from './programs.ts';
import { type ConnectedSocket, readSocketRows } from './stale-sockets.ts';
import type { MapSizes } from './store.ts';
import { probeSocketSupport } from './support.ts';

export interface ServiceModeSettings {
  readonly 'services.mode': 'off' | 'auto' | 'ebpf' | 'iptables';
  /** Whose sockets are translated. */
  readonly 'services.ebpf.scope': 'all' | 'host';
  readonly 'services.ebpf.maxFrontends': number;
  readonly 'services.ebpf.maxBackends': number;
  readonly 'services.ebpf.maxClients': number;
  readonly cgroupRoot: string;
}

export interface ServiceMode {
  readonly mode: 'off' | 'ebpf' | 'iptables';
  /** Why, for people. */
  readonly reason: string;
  /** The settings ask for something else, which cannot be had. */
  readonly problem?: string;
  /** What the kernel can do for sockets; none where nobody asked. */
  readonly features: readonly Feature[];
  /** Of what is to be served, or to be taken away. */
  readonly drivers: readonly AnyDriver[];
  /** Where sockets are served. */
  readonly lane?: BpfLane;
  /** Where they were served until now: the datagram sockets that the programs connected. */
  readonly formerSockets?: (signal: AbortSignal) => Promise<readonly ConnectedSocket[]>;
}

const BPFFS = '/sys/fs/bpf';
const DIRECTORY = join(BPFFS, 'tulle');

/** Throws nothing that has to do with eBPF: without it there are packets. */
export async function openServiceMode(
  settings: ServiceModeSettings,
  log: Logger,
  signal: AbortSignal,
): Promise<ServiceMode> {
  const asked = settings['services.mode'];
  if (asked === 'off' || asked === 'iptables') {
    return { mode: asked, reason: 'the settings say so', features: [], ...leftover(settings, log) };
  }
  const cgroupRoots = cgroupRootsOf(settings);
  const { features, lacking } = probeSocketSupport({ cgroupRoots, bpffs: BPFFS });
  try {
    const [first] = lacking;
    if (first) throw new Error(`${first.name}: ${first.evidence}; ${first.consequence}`);
    const lane = await openForService(settings, signal);
    return {
      mode: 'ebpf',
      reason: reasonFor(asked),
      features,
      drivers: Object.values(lane.drivers) as readonly AnyDriver[],
      lane,
    };
  } catch (error) {
    signal.throwIfAborted();
    const reason = `sockets cannot be had: ${(error as Error).message}`;
    log.warn({ err: error }, 'Services are served by iptables, as sockets cannot be had');
    const problem =
      asked === 'ebpf' ? { problem: `services.mode is ebpf, but Services are served by iptables: ${reason}` } : {};
    return { mode: 'iptables', reason, ...problem, features, ...leftover(settings, log) };
  }
}

const reasonFor = (asked: 'auto' | 'ebpf'): string =>
  asked === 'ebpf' ? 'the settings say so' : 'the kernel has what it takes';

const cgroupRootsOf = ({ cgroupRoot }: ServiceModeSettings): readonly string[] => [
  cgroupRoot,
  join(cgroupRoot, 'unified'),
];

const sizesOf = (settings: ServiceModeSettings): MapSizes => ({
  frontends: settings['services.ebpf.maxFrontends'],
  backends: settings['services.ebpf.maxBackends'],
  clients: settings['services.ebpf.maxClients'],
});

const openLane = (settings: ServiceModeSettings): BpfLane =>
  openBpfLane({ directory: DIRECTORY, cgroup: findCgroupRoot(cgroupRootsOf(settings)), sizes: sizesOf(settings) });

/** With the programs loaded, though not attached: what the verifier refuses shows now. */
async function openForService(settings: ServiceModeSettings, signal: AbortSignal): Promise<BpfLane> {
  const lane = openLane(settings);
  const scope = settings['services.ebpf.scope'];
  try {
    // What is attached goes on for pods, until there are rules for them: see SocketServices.written.
    if (scope === 'all' || !lane.drivers.attachment.isAttached()) writeScope(lane, scope);
    await lane.load(signal);
    return lane;
  } catch (error) {
    lane.close();
    throw error;
  }
}

/** Whose sockets are translated from now on. */
export const writeScope = (
  lane: Pick<BpfLane, 'writeSettings'>,
  scope: ServiceModeSettings['services.ebpf.scope'],
): void => lane.writeSettings(scope === 'host' ? { hostNetns: netnsCookie() } : {});

/**
 * What another mode left attached: it is looked for where it is attached, as it goes on without bpffs and pins, too. Pins alone
 * serve nobody and go at once.
 */
function leftover(settings: ServiceModeSettings, log: Logger): Pick<ServiceMode, 'drivers' | 'formerSockets'> {
  try {
    const cgroup = findCgroupRoot(cgroupRootsOf(settings));
    const programs = formerPrograms(DIRECTORY);
    const attachment = createAttachmentDriver({ cgroup, programs, run });
    if (attachment.isAttached()) {
      const formerSockets = async (signal: AbortSignal) =>
        readSocketRows(await readFormerPeers(DIRECTORY, run, signal));
      return { drivers: [attachment as AnyDriver], formerSockets };
    }
    programs.removeAll();
  } catch (err) {
    // Who cannot have programs has none, unless there are pins.
    if (existsSync(DIRECTORY))
      log.error({ err }, 'what an earlier agent left for sockets cannot be looked at, and stays');
  }
  return { drivers: [] };
}
