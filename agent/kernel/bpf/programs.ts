/**
 * The programs of this agent's object: loaded and pinned by bpftool below `<directory>/programs/<build>`, all at once or
 * not at all, with the maps of the store. A build is named after the object and the maps, so that what is pinned under it
 * is the very same thing, whoever loaded it.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SOCKET_HOOKS, type SocketHook } from '../../model/items.ts';
import { BPF_PREFIX, hash } from '../../model/kernel-names.ts';
import type { Run } from '../command.ts';
import { isNotFound } from '../errors.ts';
import { openPin, type ProgramInfo, readProgramInfo } from './commands.ts';
import type { BpfStore } from './store.ts';

/** The objects that are committed beside their sources. */
export const OBJECT_FILE = fileURLToPath(new URL('../../../ebpf/tulle.bpf.o', import.meta.url));

export const PEERS_FILE = fileURLToPath(new URL('../../../ebpf/peers.bpf.o', import.meta.url));

/** The verifier takes milliseconds; a bound against hanging. */
const LOAD_TIMEOUT_MS = 60_000;

export interface Programs {
  /** Attachment.build of what this agent wants. */
  readonly build: string;
  /** Path of the pin of a hook's program. */
  pathOf(hook: SocketHook): string;
  /** What is pinned there. */
  pinned(hook: SocketHook): ProgramInfo | undefined;
  /** Whether the next process would find the maps of these programs. */
  hasPinnedMaps(): boolean;
  /** Loads and pins what is not. Rejects with KernelError that holds what the verifier said. */
  load(signal: AbortSignal): Promise<void>;
  /** What the connected datagram sockets hold, struct socket_row each. Rejects with KernelError: before Linux 5.9. */
  readPeers(signal: AbortSignal): Promise<Buffer>;
  /** Takes away the pins of other builds and of their maps. */
  removeOthers(): void;
  /** Takes away all pins. */
  removeAll(): void;
}

/** What stands for the programs of an earlier agent: they are only to be taken away, with or without their pins. */
export const formerPrograms = (directory: string): Omit<Programs, 'readPeers'> => ({
  build: '',
  pathOf: (hook) => join(directory, hook),
  pinned: () => undefined,
  hasPinnedMaps: () => false,
  load: () =>
    Promise.reject(new Error('cannot load programs: expected those of this agent, got those of an earlier one')),
  removeOthers: () => {},
  removeAll: () => rmSync(directory, { recursive: true, force: true }),
});

export interface ProgramsOptions {
  readonly store: BpfStore;
  readonly run: Run;
  readonly object?: string;
}

export function openPrograms({ store, run, object = OBJECT_FILE }: ProgramsOptions): Programs {
  const maps = store.pins.map(({ name, id }) => `${name} ${id}`).join('\n');
  const objects = [object, PEERS_FILE].map((file) => readFileSync(file, 'latin1'));
  const build = hash([...objects, maps].join('\n'), 12);
  const parent = join(store.directory, 'programs');
  const directory = join(parent, build);
  const pathOf = (hook: SocketHook): string => join(directory, `${BPF_PREFIX}${hook}`);
  const pinned = (hook: SocketHook): ProgramInfo | undefined => readPin(pathOf(hook));
  return {
    build,
    pathOf,
    pinned,
    async load(signal) {
      store.ensurePinned();
      if (SOCKET_HOOKS.every((hook) => pinned(hook) !== undefined)) return;
      // Renamed into its place when it is complete. Of a name that nobody else has: the loader of an agent that was killed
      // may still be at work. What that leaves goes with all that is not this build.
      const loading = join(parent, `loading-${randomBytes(6).toString('hex')}`);
      rmSync(directory, { recursive: true, force: true });
      mkdirSync(parent, { recursive: true, mode: 0o700 });
      const ownMaps = store.pins.flatMap(({ name, path }) => ['map', 'name', name, 'pinned', path]);
      const args = ['-n', 'prog', 'loadall', object, loading, ...ownMaps];
      try {
        await run({ file: 'bpftool', args, timeoutMs: LOAD_TIMEOUT_MS, signal });
        renameSync(loading, directory);
      } catch (error) {
        rmSync(loading, { recursive: true, force: true });
        throw error;
      }
    },
    hasPinnedMaps: () => store.isPinned(),
    readPeers: (signal) => readPeers({ directory, map: store.peersPath, run }, signal),
    removeOthers() {
      store.removeOtherPins();
      for (const name of namesIn(parent))
        if (name !== build) rmSync(join(parent, name), { recursive: true, force: true });
    },
    removeAll: () => store.removeDirectory(),
  };
}

interface PeersSource {
  /** Where the iterator is pinned. */
  readonly directory: string;
  /** Path of the map. */
  readonly map: string;
  readonly run: Run;
}

async function readPeers({ directory, map, run }: PeersSource, signal: AbortSignal): Promise<Buffer> {
  const path = join(directory, `${BPF_PREFIX}peers_iter`);
  // Made when it is first needed: nothing else depends on it.
  if (!existsSync(path)) {
    const args = ['-n', 'iter', 'pin', PEERS_FILE, path, 'map', 'pinned', map];
    await run({ file: 'bpftool', args, timeoutMs: LOAD_TIMEOUT_MS, signal });
  }
  return readFileSync(path);
}

/** Programs.readPeers of an earlier agent; empty where its pins are gone. */
export async function readFormerPeers(directory: string, run: Run, signal: AbortSignal): Promise<Buffer> {
  const maps = join(directory, 'maps');
  const name = namesIn(maps).find((each) => each.startsWith(`${BPF_PREFIX}peers-`));
  return name === undefined ? Buffer.alloc(0) : readPeers({ directory, map: join(maps, name), run }, signal);
}

function readPin(path: string): ProgramInfo | undefined {
  let fd: number;
  try {
    fd = openPin(path);
  } catch (error) {
    if (isNotFound(error)) return undefined;
    throw error;
  }
  try {
    return readProgramInfo(fd);
  } finally {
    closeSync(fd);
  }
}

function namesIn(directory: string): readonly string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
