/** The commands of bpf(2) that Tulle uses itself, on descriptors. Offsets are those of union bpf_attr (linux/bpf.h). */
import { closeSync } from 'node:fs';
import { isNotFound, KernelError } from '../errors.ts';
import { bpf, type Pointer } from '../libc.ts';
import { loadMapBtf } from './btf.ts';

const COMMAND = {
  MAP_CREATE: 0,
  MAP_LOOKUP_ELEM: 1,
  MAP_UPDATE_ELEM: 2,
  PROG_LOAD: 5,
  OBJ_PIN: 6,
  OBJ_GET: 7,
  PROG_DETACH: 9,
  PROG_GET_FD_BY_ID: 13,
  MAP_GET_FD_BY_ID: 14,
  OBJ_GET_INFO_BY_FD: 15,
  PROG_QUERY: 16,
  MAP_LOOKUP_BATCH: 24,
  MAP_UPDATE_BATCH: 26,
  MAP_DELETE_BATCH: 27,
} as const;

/** BPF_MAP_TYPE_SK_STORAGE: values in sockets, which are made only with type information. */
export const SK_STORAGE = 24;

/** BPF_OBJ_NAME_LEN - 1: longer names of programs are cut off. */
export const OBJECT_NAME_MAX = 15;

export interface MapShape {
  /** BPF_MAP_TYPE_*. */
  readonly type: number;
  readonly keyBytes: number;
  readonly valueBytes: number;
  readonly maxEntries: number;
  readonly flags: number;
}

export interface MapInfo extends MapShape {
  readonly id: number;
  readonly name: string;
}

export interface ProgramInfo {
  readonly id: number;
  /** At most OBJECT_NAME_MAX characters. */
  readonly name: string;
  readonly mapIds: readonly number[];
  /** How many the verifier went through; 0 before Linux 5.16. */
  readonly verifiedInstructions: number;
}

/** How far a command on many entries came. */
export interface BatchResult {
  /** Entries done, from the first on. */
  readonly done: number;
  /** What the next entry failed with. */
  readonly error?: unknown;
}

/** A new map; returns its descriptor. Throws KernelError, as everything here does. */
export function createMap(name: string, { type, keyBytes, valueBytes, maxEntries, flags }: MapShape): number {
  const attribute = Buffer.alloc(72);
  for (const [i, value] of [type, keyBytes, valueBytes, maxEntries, flags].entries())
    attribute.writeUInt32LE(value, 4 * i);
  attribute.write(name, 28, 'latin1');
  const what = { operation: 'create', object: `map ${name}` };
  if (type !== SK_STORAGE) return bpf(COMMAND.MAP_CREATE, attribute, [], what);
  const btf = loadMapBtf(valueBytes);
  try {
    for (const [i, value] of [btf.fd, btf.keyType, btf.valueType].entries()) attribute.writeUInt32LE(value, 48 + 4 * i);
    return bpf(COMMAND.MAP_CREATE, attribute, [], what);
  } finally {
    closeSync(btf.fd);
  }
}

/** BPF_PROG_TYPE_SCHED_CLS and BPF_PROG_TYPE_CGROUP_SOCK_ADDR. */
const PROGRAM_TYPE = { tc: 3, socket: 18 } as const;

/** A load that a signal interrupts fails with EAGAIN (bpf_check, kernel/bpf/verifier.c): a child that ends is enough. */
const INTERRUPTED_LOADS = 10;

/** Has the kernel verify a program for a hook of sockets, from instructions of 8 bytes; returns its descriptor. */
export const loadSocketProgram = (attachType: number, instructions: Buffer): number =>
  loadProgram({ type: PROGRAM_TYPE.socket, name: '', instructions, attachType }, 'a program for sockets');

/** The same for a filter of tc. */
export const loadTcProgram = (name: string, instructions: Buffer): number =>
  loadProgram({ type: PROGRAM_TYPE.tc, name, instructions }, `program ${name}`);

function loadProgram(
  {
    type,
    name,
    instructions,
    attachType = 0,
  }: { readonly type: number; readonly name: string; readonly instructions: Buffer; readonly attachType?: number },
  object: string,
): number {
  const attribute = Buffer.alloc(72);
  attribute.writeUInt32LE(type, 0);
  attribute.writeUInt32LE(instructions.length / 8, 4);
  attribute.write(name, 48, OBJECT_NAME_MAX, 'latin1');
  attribute.writeUInt32LE(attachType, 68);
  const pointers = [
    { at: 8, to: instructions },
    { at: 16, to: Buffer.from('Dual BSD/GPL\0') },
  ];
  for (let attempt = 1; ; attempt++) {
    try {
      return bpf(COMMAND.PROG_LOAD, attribute, pointers, { operation: 'load', object });
    } catch (error) {
      if (!(error instanceof KernelError && error.code === 'EAGAIN') || attempt === INTERRUPTED_LOADS) throw error;
    }
  }
}

/** Gives an object a name in a bpffs: it then lives as long as that. */
export function pin(fd: number, path: string): void {
  const attribute = Buffer.alloc(16);
  attribute.writeUInt32LE(fd, 8);
  bpf(COMMAND.OBJ_PIN, attribute, [pathPointer(path)], { operation: 'pin', object: path });
}

/** Descriptor of a pinned map or program. */
export const openPin = (path: string): number =>
  bpf(COMMAND.OBJ_GET, Buffer.alloc(16), [pathPointer(path)], { operation: 'open', object: path });

const pathPointer = (path: string): Pointer => ({ at: 0, to: Buffer.from(`${path}\0`) });

export const openMapById = (id: number): number => openById(COMMAND.MAP_GET_FD_BY_ID, `map ${id}`, id);
export const openProgramById = (id: number): number => openById(COMMAND.PROG_GET_FD_BY_ID, `program ${id}`, id);

/** Undefined for what went away since its id was listed. */
export function readById<T>(id: number, open: (id: number) => number, read: (fd: number) => T): T | undefined {
  let fd: number;
  try {
    fd = open(id);
  } catch (error) {
    if (isNotFound(error)) return undefined;
    throw error;
  }
  try {
    return read(fd);
  } finally {
    closeSync(fd);
  }
}

function openById(command: number, object: string, id: number): number {
  const attribute = Buffer.alloc(12);
  attribute.writeUInt32LE(id);
  return bpf(command, attribute, [], { operation: 'open', object });
}

export function readMapInfo(fd: number): MapInfo {
  const info = readInfo(fd, Buffer.alloc(48));
  const word = (i: number): number => info.readUInt32LE(4 * i);
  const shape = { type: word(0), keyBytes: word(2), valueBytes: word(3), maxEntries: word(4), flags: word(5) };
  return { id: word(1), name: nameAt(info, 24), ...shape };
}

/** A program of Tulle uses no more maps than Tulle has; of others the rest is left out. */
const MAP_IDS_MAX = 32;

export function readProgramInfo(fd: number): ProgramInfo {
  const ids = Buffer.alloc(4 * MAP_IDS_MAX);
  const info = Buffer.alloc(224);
  info.writeUInt32LE(MAP_IDS_MAX, 52);
  readInfo(fd, info, { at: 56, to: ids, in: info });
  const count = Math.min(info.readUInt32LE(52), MAP_IDS_MAX);
  const mapIds = Array.from({ length: count }, (_, i) => ids.readUInt32LE(4 * i));
  return { id: info.readUInt32LE(4), name: nameAt(info, 64), mapIds, verifiedInstructions: info.readUInt32LE(216) };
}

function readInfo(fd: number, info: Buffer, ...inner: readonly Pointer[]): Buffer {
  const attribute = Buffer.alloc(16);
  attribute.writeUInt32LE(fd, 0);
  attribute.writeUInt32LE(info.length, 4);
  const what = { operation: 'read', object: `BPF object of descriptor ${fd}` };
  bpf(COMMAND.OBJ_GET_INFO_BY_FD, attribute, [{ at: 8, to: info }, ...inner], what);
  return info;
}

const nameAt = (info: Buffer, offset: number): string =>
  info.toString('latin1', offset, offset + OBJECT_NAME_MAX + 1).replace(/\0.*$/s, '');

/** More programs than this on one hook are not a thing that happens (the kernel's limit is 64). */
const ATTACHED_MAX = 64;

/** BPF_F_ALLOW_MULTI */
const ALLOW_MULTI = 2;

export interface AttachedPrograms {
  /** In the order in which they run. */
  readonly ids: readonly number[];
  /** Whoever attached the only one lets nobody else attach. */
  readonly isExclusive: boolean;
}

/** What is attached to exactly this cgroup. */
export function queryPrograms(cgroupFd: number, attachType: number): AttachedPrograms {
  const ids = Buffer.alloc(4 * ATTACHED_MAX);
  const attribute = Buffer.alloc(64);
  attribute.writeUInt32LE(cgroupFd, 0);
  attribute.writeUInt32LE(attachType, 4);
  attribute.writeUInt32LE(ATTACHED_MAX, 24);
  const what = { operation: 'list', object: `programs of attach type ${attachType}` };
  bpf(COMMAND.PROG_QUERY, attribute, [{ at: 16, to: ids }], what);
  const count = attribute.readUInt32LE(24);
  return {
    ids: Array.from({ length: count }, (_, i) => ids.readUInt32LE(4 * i)),
    isExclusive: count > 0 && (attribute.readUInt32LE(12) & ALLOW_MULTI) === 0,
  };
}

/** Takes a program, by its descriptor, from a hook of this cgroup. */
export function detachProgram(cgroupFd: number, attachType: number, programFd: number): void {
  const attribute = Buffer.alloc(16);
  for (const [i, value] of [cgroupFd, programFd, attachType].entries()) attribute.writeUInt32LE(value, 4 * i);
  bpf(COMMAND.PROG_DETACH, attribute, [], { operation: 'detach', object: `a program of attach type ${attachType}` });
}

/** Reads one value of an array map into `value`. */
export const readElement = (fd: number, key: Buffer, value: Buffer): void =>
  element(COMMAND.MAP_LOOKUP_ELEM, 'read', fd, key, value);

export const writeElement = (fd: number, key: Buffer, value: Buffer): void =>
  element(COMMAND.MAP_UPDATE_ELEM, 'write', fd, key, value);

function element(command: number, operation: string, fd: number, key: Buffer, value: Buffer): void {
  const attribute = Buffer.alloc(32);
  attribute.writeUInt32LE(fd, 0);
  const pointers = [
    { at: 8, to: key },
    { at: 16, to: value },
  ];
  bpf(command, attribute, pointers, { operation, object: 'an element of a map' });
}

/** Keys, one after the other, and their values; `values` is absent where only keys matter. */
export interface Entries {
  readonly keys: Buffer;
  readonly values?: Buffer;
  readonly count: number;
}

export const updateBatch = (fd: number, entries: Required<Entries>, object: string): BatchResult =>
  changeBatch(COMMAND.MAP_UPDATE_BATCH, fd, entries, { operation: 'write', object });

export const deleteBatch = (fd: number, { keys, count }: Entries, object: string): BatchResult =>
  changeBatch(COMMAND.MAP_DELETE_BATCH, fd, { keys, count }, { operation: 'remove', object });

function changeBatch(
  command: number,
  fd: number,
  entries: Entries,
  what: { operation: string; object: string },
): BatchResult {
  const { count } = entries;
  if (count === 0) return { done: 0 };
  const attribute = batchAttribute(fd, count);
  try {
    bpf(command, attribute, batchPointers(entries), what);
    return { done: count };
  } catch (error) {
    // An error that comes before the first entry leaves the count as it was.
    const done = attribute.readUInt32LE(BATCH_COUNT);
    return { done: done < count ? done : 0, error };
  }
}

/** Where a walk through a hash map goes on. */
export type Cursor = Buffer;

/** Fills keys and values with the next entries; without a cursor in the answer the walk is over. */
export function lookupBatch(
  fd: number,
  into: Required<Entries>,
  from: Cursor | undefined,
  object: string,
): { readonly count: number; readonly next?: Cursor } {
  const next = Buffer.alloc(4);
  const attribute = batchAttribute(fd, into.count);
  const cursors = [...(from ? [{ at: 0, to: from }] : []), { at: 8, to: next }];
  try {
    bpf(COMMAND.MAP_LOOKUP_BATCH, attribute, [...cursors, ...batchPointers(into)], { operation: 'list', object });
    return { count: attribute.readUInt32LE(BATCH_COUNT), next };
  } catch (error) {
    // The end, with what was found before it.
    if (!isNotFound(error)) throw error;
    return { count: attribute.readUInt32LE(BATCH_COUNT) };
  }
}

/** Offset of the count in the attribute: how many may be done, then how many were. */
const BATCH_COUNT = 32;

function batchAttribute(fd: number, count: number): Buffer {
  const attribute = Buffer.alloc(56);
  attribute.writeUInt32LE(count, BATCH_COUNT);
  attribute.writeUInt32LE(fd, 36);
  return attribute;
}

const batchPointers = ({ keys, values }: Entries): readonly Pointer[] => [
  { at: 16, to: keys },
  ...(values ? [{ at: 24, to: values }] : []),
];
