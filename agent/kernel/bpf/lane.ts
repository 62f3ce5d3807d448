/** Services at the socket, as the agent sees them: the drivers of the lane `bpf` over one set of maps. */
import { type Run, run as runCommand } from '../command.ts';
import { type AttachmentDriver, createAttachmentDriver } from './attachment.ts';
import { type BackendSetDriver, createBackendSetDriver } from './backend-set.ts';
import { createFrontendDriver, type FrontendDriver } from './frontend.ts';
import type { CounterName } from './layout.ts';
import type { BpfMap } from './map.ts';
import { possibleCpus } from './place.ts';
import { openPrograms } from './programs.ts';
import { type ConnectedSocket, readSocketRows } from './stale-sockets.ts';
import { type MapSizes, openStore } from './store.ts';

export interface BpfLane {
  readonly drivers: {
    readonly 'backend-set': BackendSetDriver;
    readonly frontend: FrontendDriver;
    readonly attachment: AttachmentDriver;
  };
  /** What the drivers write. */
  readonly maps: Readonly<Record<'frontends' | 'backends', BpfMap>>;
  /** Attachment.build of this agent. */
  readonly build: string;
  /** Loads the programs, which attaching would do otherwise. Rejects with KernelError that holds what the verifier said. */
  load(signal: AbortSignal): Promise<void>;
  /** How full the maps are that the agent writes. */
  usage(): Readonly<Record<'frontends' | 'backends', { readonly used: number; readonly max: number }>>;
  counters(): Readonly<Record<CounterName, bigint>>;
  /** Translates for all sockets, or only for those of one network namespace, by its cookie. */
  writeSettings(settings: { readonly hostNetns?: bigint }): void;
  /** The datagram sockets, of whatever network namespace, that the programs connected. Rejects with KernelError. */
  connectedSockets(signal: AbortSignal): Promise<readonly ConnectedSocket[]>;
  /** Leaves everything in the kernel as it is. */
  close(): void;
}

export interface BpfLaneOptions {
  /** Own directory below a bpffs. */
  readonly directory: string;
  /** Directory of the cgroup root. */
  readonly cgroup: string;
  readonly sizes: MapSizes;
  readonly run?: Run;
  /** Path of the object with the programs. */
  readonly object?: string;
}

/** Opens or makes the maps; nothing is attached yet. Throws KernelError. */
export function openBpfLane({ directory, cgroup, sizes, run = runCommand, object }: BpfLaneOptions): BpfLane {
  const store = openStore({ directory, possibleCpus: possibleCpus(), sizes });
  const programs = openPrograms({ store, run, ...(object !== undefined && { object }) });
  const sets = createBackendSetDriver({ map: store.backends });
  const frontend = createFrontendDriver({ map: store.frontends, sizeOf: (id) => sets.sizeOf(id) });
  const attachment = createAttachmentDriver({ cgroup, programs, run });
  return {
    drivers: { 'backend-set': sets, frontend, attachment },
    maps: { frontends: store.frontends, backends: store.backends },
    build: programs.build,
    load: (signal) => programs.load(signal),
    usage: () => ({
      frontends: { used: frontend.entries, max: store.frontends.maxEntries },
      backends: { used: sets.entries, max: store.backends.maxEntries },
    }),
    counters: () => store.readCounters(),
    writeSettings: (settings) => store.writeSettings(settings),
    connectedSockets: async (signal) => readSocketRows(await programs.readPeers(signal)),
    close: () => store.close(),
  };
}
