/**
 * What bridged pods may send with: a map of their own addresses and MACs, and the program that asks it (ebpf/pod_source.bpf.c).
 * Nothing is pinned: the filter that runs the program holds both, and an agent that starts finds the map by it. A program of
 * another build goes on with a map of this shape.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { bytesOf, type Family, familyOf, ipFromBytes } from '../../model/ip.ts';
import { type Key, keyOf, type Source } from '../../model/items.ts';
import { BPF_PREFIX, hash } from '../../model/kernel-names.ts';
import { macBytes, macFromBytes } from '../../model/mac.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import {
  createMap,
  loadTcProgram,
  type MapShape,
  openMapById,
  openProgramById,
  readById,
  readMapInfo,
  readProgramInfo,
} from './commands.ts';
import { STRUCTS } from './layout.ts';
import { type BpfMap, KernelMap } from './map.ts';
import { removeParts, writeParts } from './parts.ts';
import { linkProgram } from './program-file.ts';

export const BRIDGE_OBJECT_FILE = fileURLToPath(new URL('../../../ebpf/bridge.bpf.o', import.meta.url));

const MAP_NAME = `${BPF_PREFIX}sources`;
const PROGRAM_NAME = `${BPF_PREFIX}source`;
const { bytes: KEY_BYTES, fields: AT } = STRUCTS.pod_source;
/** The kernel has no maps without values. */
const VALUE_BYTES = 4;

/** BPF_MAP_TYPE_HASH and BPF_F_NO_PREALLOC: it costs what is in it, some addresses a pod. */
export const SOURCES_MAP: MapShape = {
  type: 1,
  keyBytes: KEY_BYTES,
  valueBytes: VALUE_BYTES,
  maxEntries: 65_536,
  flags: 1,
};

/** What the filter's driver asks of the program. */
export interface GuardProgram {
  /** Filter.program of this agent. */
  readonly build: string;
  /** Has the kernel verify it; returns a descriptor for the caller to close. Throws KernelError. */
  load(): number;
  /** Goes on with the map of a program that is attached, unless there is one already. */
  adopt(programId: number): void;
  /** Whether a program that is attached asks the map that is written. */
  isAsking(programId: number): boolean;
}

export class PodSources implements GuardProgram {
  readonly #object = readFileSync(BRIDGE_OBJECT_FILE);
  readonly build = hash(this.#object.toString('latin1'), 12);
  #map: { readonly entries: KernelMap; readonly id: number } | undefined;

  load(): number {
    return loadTcProgram(PROGRAM_NAME, linkProgram(this.#object, this.opened().fd));
  }

  adopt(programId: number): void {
    for (const id of this.#map ? [] : mapsOf(programId)) {
      const info = readById(id, openMapById, readMapInfo);
      if (info?.name === MAP_NAME && hasShape(info)) this.#map = keep(openMapById(id));
    }
  }

  isAsking(programId: number): boolean {
    return this.#map !== undefined && mapsOf(programId).includes(this.#map.id);
  }

  /** Undefined while nobody has written anything. */
  get map(): BpfMap | undefined {
    return this.#map?.entries;
  }

  /** Throws KernelError where no map can be made. */
  opened(): KernelMap {
    this.#map ??= keep(createMap(MAP_NAME, SOURCES_MAP));
    return this.#map.entries;
  }

  close(): void {
    this.#map?.entries.close();
    this.#map = undefined;
  }
}

const keep = (fd: number) => {
  const { id, ...shape } = readMapInfo(fd);
  return { entries: new KernelMap(fd, shape), id };
};

const mapsOf = (programId: number): readonly number[] =>
  readById(programId, openProgramById, readProgramInfo)?.mapIds ?? [];

const hasShape = (info: MapShape): boolean =>
  (Object.keys(SOURCES_MAP) as (keyof MapShape)[]).every((name) => info[name] === SOURCES_MAP[name]);

export interface SourceDriverOptions {
  readonly sources: Pick<PodSources, 'map' | 'opened'>;
  /** Finds the map of an earlier agent. */
  readonly adopt: () => Promise<void>;
}

export function createSourceDriver({ sources, adopt }: SourceDriverOptions): Driver<'source'> {
  return {
    kind: 'source',
    // With the links that need it, which then wait for no other lane.
    lane: 'netlink',
    merge: 'one',
    equal: () => true,
    async list(signal) {
      if (!sources.map) await adopt();
      return sources.map ? listSources(sources.map, signal) : new Map();
    },
    async apply(batch) {
      const parts = batch.map((change) => ({ owner: change.key, ...render(subjectOf(change)) }));
      if (batch[0]?.action !== 'remove') return writeParts(sources.opened(), parts);
      return sources.map ? removeParts(sources.map, parts) : new Map();
    },
  };
}

const subjectOf = (change: Change<'source'>): Source => (change.action === 'remove' ? change.from : change.item.value);

/** ETH_P_IP and ETH_P_IPV6 (linux/if_ether.h). */
const PROTOCOLS: Readonly<Record<Family, number>> = { ipv4: 0x0800, ipv6: 0x86dd };
const ADDRESS_BYTES: Readonly<Record<Family, number>> = { ipv4: 4, ipv6: 16 };

function render({ ip, mac }: Source): { readonly keys: Buffer; readonly values: Buffer } {
  const keys = Buffer.alloc(KEY_BYTES);
  keys.set(macBytes(mac), AT.mac.offset);
  keys.writeUInt16BE(PROTOCOLS[familyOf(ip)], AT.protocol.offset);
  keys.set(bytesOf(ip), AT.address.offset);
  return { keys, values: Buffer.alloc(VALUE_BYTES) };
}

/** Undefined for a key that nobody of Tulle's has written. */
function parse(key: Buffer): Source | undefined {
  const protocol = key.readUInt16BE(AT.protocol.offset);
  const family = (['ipv4', 'ipv6'] as const).find((each) => PROTOCOLS[each] === protocol);
  if (!family) return undefined;
  const address = key.subarray(AT.address.offset, AT.address.offset + ADDRESS_BYTES[family]);
  const source = { ip: ipFromBytes(address), mac: macFromBytes(key.subarray(0, AT.mac.bytes)) };
  return render(source).keys.equals(key) ? source : undefined;
}

/** What is in the map. Keys that no pod can have are removed at once: nothing that is wanted could ever replace them. */
async function listSources(map: BpfMap, signal: AbortSignal): Promise<Map<Key<'source'>, Source>> {
  const found = new Map<Key<'source'>, Source>();
  const foreign: Buffer[] = [];
  await map.read(({ keys, count }) => {
    for (let i = 0; i < count; i++) {
      const key = Buffer.from(keys.subarray(i * KEY_BYTES, (i + 1) * KEY_BYTES));
      const source = parse(key);
      if (source) found.set(keyOf('source', source), source);
      else foreign.push(key);
    }
  }, signal);
  for (const keys of foreign) map.delete({ keys, count: 1 });
  return found;
}
