/**
 * The maps of this node and where they are pinned: `<directory>/maps/<name>-v<layout>-<entries>`. Maps of an equal layout and
 * size are kept over restarts and upgrades, with all that the programs wrote into them; another layout or size is a new,
 * empty map beside the old one, which the attached programs go on using until those are replaced that use the new.
 */
import { closeSync, mkdirSync, readdirSync, rmSync, statfsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { BPF_PREFIX } from '../../model/kernel-names.ts';
import { KernelError } from '../errors.ts';
import {
  createMap,
  type MapInfo,
  type MapShape,
  openPin,
  pin,
  readElement,
  readMapInfo,
  SK_STORAGE,
  writeElement,
} from './commands.ts';
import { COUNTERS, type CounterName, renderSettings, STRUCTS } from './layout.ts';
import { KernelMap } from './map.ts';

/** linux/bpf.h */
const TYPE = { HASH: 1, ARRAY: 2, PERCPU_ARRAY: 6, LRU_HASH: 9 } as const;
const BPF_F_NO_PREALLOC = 1;

type MapName = 'frontends' | 'backends' | 'settings' | 'affinity' | 'sticky' | 'udp_peers' | 'peers' | 'counters';

/** How many entries the maps may hold whose size is a matter of the cluster's. Those that the agent writes cost what is in them. */
export interface MapSizes {
  readonly frontends: number;
  readonly backends: number;
  /** Clients with affinity, and pairs of a socket that sends without being connected and a Service: of each so many. */
  readonly clients: number;
}

interface MapPlan extends Omit<MapShape, 'maxEntries'> {
  /** Goes up with every change of key or value in ebpf/types.h, of their meaning too. */
  readonly layout: number;
  readonly entries: (sizes: MapSizes) => number;
}

const { frontend_key, frontend, backend_key, backend, client_key, choice, peer, peer_key, endpoint, settings } =
  STRUCTS;

/** The same as ebpf/maps.h. */
export const MAPS: Readonly<Record<MapName, MapPlan>> = {
  frontends: plan(TYPE.HASH, frontend_key, frontend, (sizes) => sizes.frontends, BPF_F_NO_PREALLOC),
  backends: plan(TYPE.HASH, backend_key, backend, (sizes) => sizes.backends, BPF_F_NO_PREALLOC),
  settings: plan(TYPE.ARRAY, { bytes: 4 }, settings, () => 1),
  affinity: plan(TYPE.LRU_HASH, client_key, choice, (sizes) => sizes.clients),
  sticky: plan(TYPE.LRU_HASH, client_key, choice, (sizes) => sizes.clients),
  udp_peers: plan(TYPE.LRU_HASH, peer_key, endpoint, (sizes) => sizes.clients),
  peers: plan(SK_STORAGE, { bytes: 4 }, peer, () => 0, BPF_F_NO_PREALLOC),
  counters: plan(TYPE.PERCPU_ARRAY, { bytes: 4 }, { bytes: 8 }, () => COUNTERS.length),
};

type Sized = { readonly bytes: number };

function plan(type: number, key: Sized, value: Sized, entries: MapPlan['entries'], flags = 0, layout = 1): MapPlan {
  return { type, keyBytes: key.bytes, valueBytes: value.bytes, flags, entries, layout };
}

/** BPF_FS_MAGIC (linux/magic.h). */
const BPFFS = 0xcafe4a11;

export interface BpfStore {
  readonly directory: string;
  readonly frontends: KernelMap;
  readonly backends: KernelMap;
  /** Path of the map whose values are in sockets. */
  readonly peersPath: string;
  /** Kernel name and path of each map, for a loader. */
  readonly pins: readonly { readonly name: string; readonly path: string; readonly id: number }[];
  /** Whether the next process would find these maps. */
  isPinned(): boolean;
  /** Pins what somebody took away. Throws KernelError. */
  ensurePinned(): void;
  /** Removes what is pinned of other layouts and sizes. */
  removeOtherPins(): void;
  /** Removes the whole directory. The maps live on in this process, and can be pinned again. */
  removeDirectory(): void;
  /** Translates for all sockets, or only for those of one network namespace, by its cookie. */
  writeSettings(settings: { readonly hostNetns?: bigint }): void;
  readCounters(): Readonly<Record<CounterName, bigint>>;
  close(): void;
}

interface OpenMap {
  readonly name: MapName;
  readonly fd: number;
  readonly path: string;
  readonly info: MapInfo;
}

export interface StoreOptions {
  /** Own directory below a bpffs, made when missing; its parent exists. */
  readonly directory: string;
  readonly sizes: MapSizes;
  /** CPUs that there may be: what a per-CPU value is long. */
  readonly possibleCpus: number;
}

/** Opens the maps of this layout, or makes and pins them. Throws KernelError: no bpffs, not permitted, no memory. */
export function openStore({ directory, sizes, possibleCpus }: StoreOptions): BpfStore {
  requireBpffs(dirname(directory));
  const mapsDirectory = join(directory, 'maps');
  mkdirSync(mapsDirectory, { recursive: true, mode: 0o700 });
  const maps = new Map<MapName, OpenMap>();
  try {
    for (const name of Object.keys(MAPS) as MapName[]) maps.set(name, openMap(name, mapsDirectory, sizes));
  } catch (error) {
    for (const { fd } of maps.values()) closeSync(fd);
    throw error;
  }
  const of = (name: MapName): OpenMap => maps.get(name) as OpenMap;
  const [frontends, backends] = [
    new KernelMap(of('frontends').fd, of('frontends').info),
    new KernelMap(of('backends').fd, of('backends').info),
  ];
  return {
    directory,
    frontends,
    backends,
    peersPath: of('peers').path,
    pins: [...maps.values()].map(({ info, path }) => ({ name: info.name, path, id: info.id })),
    isPinned: () => maps.values().every(isPinned),
    ensurePinned() {
      mkdirSync(mapsDirectory, { recursive: true, mode: 0o700 });
      for (const map of maps.values()) if (!isPinned(map)) repin(map.fd, map.path);
    },
    removeDirectory: () => rmSync(directory, { recursive: true, force: true }),
    removeOtherPins() {
      const paths = new Set([...maps.values()].map(({ path }) => path));
      for (const file of readdirSync(mapsDirectory)) {
        const path = join(mapsDirectory, file);
        if (!paths.has(path)) rmSync(path);
      }
    },
    writeSettings: (value) => writeElement(of('settings').fd, Buffer.alloc(4), renderSettings(value)),
    readCounters: () => readCounters(of('counters').fd, possibleCpus),
    close() {
      for (const { fd } of maps.values()) closeSync(fd);
    },
  };
}

/** Throws KernelError that says what to mount. */
export function requireBpffs(path: string): void {
  const problem = (detail: string, cause?: unknown): KernelError =>
    new KernelError({ code: 'ENODEV', operation: 'pin', object: `maps below ${path}`, detail, cause });
  let type: number;
  try {
    type = statfsSync(path).type;
  } catch (cause) {
    throw problem(`expected a bpffs, got ${(cause as Error).message}; mount -t bpf bpf ${path}`, cause);
  }
  if (type !== BPFFS)
    throw problem(`expected a bpffs, got a file system of type 0x${type.toString(16)}; mount -t bpf bpf ${path}`);
}

function openMap(name: MapName, directory: string, sizes: MapSizes): OpenMap {
  const { layout, entries, ...rest } = MAPS[name];
  const shape: MapShape = { ...rest, maxEntries: entries(sizes) };
  const kernelName = `${BPF_PREFIX}${name}`;
  const path = join(directory, `${kernelName}-v${layout}-${shape.maxEntries}`);
  const known = openPinIfAny(path);
  if (known !== undefined) {
    const info = readMapInfo(known);
    if (isOf(info, shape, kernelName)) return { name, fd: known, path, info };
    closeSync(known);
  }
  const fd = createMap(kernelName, shape);
  repin(fd, path);
  return { name, fd, path, info: readMapInfo(fd) };
}

const isOf = (info: MapInfo, shape: MapShape, name: string): boolean =>
  info.name === name && (Object.keys(shape) as (keyof MapShape)[]).every((key) => info[key] === shape[key]);

function repin(fd: number, path: string): void {
  rmSync(path, { force: true });
  pin(fd, path);
}

function openPinIfAny(path: string): number | undefined {
  try {
    return openPin(path);
  } catch (error) {
    if (error instanceof KernelError && error.code === 'ENOENT') return undefined;
    throw error;
  }
}

function isPinned({ path, info }: OpenMap): boolean {
  const fd = openPinIfAny(path);
  if (fd === undefined) return false;
  try {
    return readMapInfo(fd).id === info.id;
  } finally {
    closeSync(fd);
  }
}

/** A value for each CPU, 8 bytes each; what counts is their sum. */
function readCounters(fd: number, possibleCpus: number): Readonly<Record<CounterName, bigint>> {
  const value = Buffer.alloc(8 * possibleCpus);
  const key = Buffer.alloc(4);
  const read = (index: number): bigint => {
    key.writeUInt32LE(index);
    readElement(fd, key, value);
    return Array.from({ length: possibleCpus }, (_, cpu) => value.readBigUInt64LE(8 * cpu)).reduce((a, b) => a + b, 0n);
  };
  return Object.fromEntries(COUNTERS.map((name, index) => [name, read(index)])) as Record<CounterName, bigint>;
}
