/**
 * Driver of attachments: one program of Tulle's at each hook of the node's cgroup root, beside those of others (`multi`). A
 * new program is attached before the old one goes, and the two do together what one does: no call of a socket is missed.
 * A program is Tulle's own when it has the name of the hook and uses none but maps with Tulle's names. What is attached is
 * found and taken away without the tool, the bpffs and the pins: it goes on without them, too.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { type Attachment, type Key, keyOf, SOCKET_HOOKS, type SocketHook } from '../../model/items.ts';
import { BPF_PREFIX } from '../../model/kernel-names.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import type { Run } from '../command.ts';
import { KernelError } from '../errors.ts';
import {
  detachProgram,
  OBJECT_NAME_MAX,
  openMapById,
  openProgramById,
  type ProgramInfo,
  queryPrograms,
  readById,
  readMapInfo,
  readProgramInfo,
} from './commands.ts';
import type { Programs } from './programs.ts';

/** enum bpf_attach_type (linux/bpf.h). */
export const ATTACH_TYPES: Readonly<Record<SocketHook, number>> = {
  connect4: 10,
  connect6: 11,
  sendmsg4: 14,
  sendmsg6: 15,
  recvmsg4: 19,
  recvmsg6: 20,
  getpeername4: 29,
  getpeername6: 30,
};

const ATTACH_TIMEOUT_MS = 10_000;

export type AttachablePrograms = Omit<Programs, 'readPeers'>;

export interface AttachmentDriverOptions {
  /** Directory of the cgroup root. */
  readonly cgroup: string;
  readonly programs: AttachablePrograms;
  readonly run: Run;
}

export interface AttachmentDriver extends Driver<'attachment'> {
  /** Whether any program of Tulle's is attached, of whatever build. Throws KernelError. */
  isAttached(): boolean;
}

export function createAttachmentDriver(options: AttachmentDriverOptions): AttachmentDriver {
  const { cgroup, programs } = options;
  const list = (): Map<Key<'attachment'>, Attachment> => {
    const found = new Map<Key<'attachment'>, Attachment>();
    const hasMaps = programs.hasPinnedMaps();
    for (const hook of SOCKET_HOOKS) {
      const build = describe(ownAt(cgroup, hook), hasMaps ? programs.pinned(hook) : undefined, programs.build);
      if (build !== undefined) found.set(keyOf('attachment', { hook, build }), { hook, build });
    }
    return found;
  };
  return {
    kind: 'attachment',
    lane: 'bpf',
    merge: 'same',
    equal: (wanted, found) => wanted.build === found.build,
    list: async () => list(),
    isAttached: () => list().size > 0,
    async apply(batch, signal) {
      const failures = new Map<Key<'attachment'>, Error>();
      for (const change of batch) {
        try {
          await applyOne(options, change, signal);
        } catch (error) {
          failures.set(change.key, error as Error);
        }
      }
      const found = list();
      if (found.size === 0) programs.removeAll();
      else if (found.values().every(({ build }) => build === programs.build)) programs.removeOthers();
      return failures;
    },
  };
}

async function applyOne(
  { cgroup, programs, run }: AttachmentDriverOptions,
  change: Change<'attachment'>,
  signal: AbortSignal,
): Promise<void> {
  const hook = change.action === 'remove' ? change.from.hook : change.item.value.hook;
  let current: number | undefined;
  if (change.action !== 'remove') {
    await programs.load(signal);
    current = programs.pinned(hook)?.id;
  }
  const own = ownAt(cgroup, hook);
  if (current !== undefined && !own.some(({ id }) => id === current)) {
    const args = ['-n', 'cgroup', 'attach', cgroup, hook, 'pinned', programs.pathOf(hook), 'multi'];
    await run({ file: 'bpftool', args, timeoutMs: ATTACH_TIMEOUT_MS, signal });
  }
  for (const { id } of own) if (id !== current) detach(cgroup, hook, id);
}

/** Throws KernelError when another program leaves no room at a hook of this cgroup. */
export function requireRoom(cgroup: string): void {
  for (const hook of SOCKET_HOOKS) {
    const { ids, isExclusive } = withCgroup(cgroup, (fd) => queryPrograms(fd, ATTACH_TYPES[hook]));
    const [id = 0] = ids;
    if (!isExclusive) continue;
    const name = readById(id, openProgramById, readProgramInfo)?.name;
    throw new KernelError({
      code: 'EBUSY',
      operation: 'attach to',
      object: `${hook} of ${cgroup}`,
      detail: `expected a hook that can be shared, got one that program ${id} (${name}) has for itself; stop who attached it, then bpftool cgroup detach ${cgroup} ${hook} id ${id}`,
    });
  }
}

/** Tulle's programs at a hook, in the order in which they run. */
const ownAt = (cgroup: string, hook: SocketHook): readonly ProgramInfo[] =>
  withCgroup(cgroup, (fd) => queryPrograms(fd, ATTACH_TYPES[hook]).ids.flatMap((id) => ownProgram(id, hook) ?? []));

const detach = (cgroup: string, hook: SocketHook, id: number): void =>
  withCgroup(cgroup, (fd) =>
    readById(id, openProgramById, (programFd) => detachProgram(fd, ATTACH_TYPES[hook], programFd)),
  );

function withCgroup<T>(cgroup: string, work: (fd: number) => T): T {
  const fd = openSync(cgroup, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    return work(fd);
  } finally {
    closeSync(fd);
  }
}

function ownProgram(id: number, hook: SocketHook): ProgramInfo | undefined {
  const info = readById(id, openProgramById, readProgramInfo);
  if (info?.name !== `${BPF_PREFIX}${hook}`.slice(0, OBJECT_NAME_MAX)) return undefined;
  const isOwnMap = (map: number): boolean =>
    readById(map, openMapById, readMapInfo)?.name.startsWith(BPF_PREFIX) ?? false;
  return info.mapIds.length > 0 && info.mapIds.every(isOwnMap) ? info : undefined;
}

/** The build, when that and nothing else is attached; undefined: nothing is; otherwise what is, for people. */
function describe(own: readonly ProgramInfo[], pinned: ProgramInfo | undefined, build: string): string | undefined {
  if (own.length === 0) return undefined;
  const [only] = own;
  return own.length === 1 && only?.id === pinned?.id ? build : `programs ${own.map(({ id }) => id).join(', ')}`;
}
