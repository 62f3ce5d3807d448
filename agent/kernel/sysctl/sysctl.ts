/**
 * Driver of sysctls: a written list of paths. The value that a file had before Tulle first wrote it is stored once, never
 * overwritten by a restart, and written back when the item is no longer wanted.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { type Key, keyOf, type Sysctl } from '../../model/items.ts';
import type { Change, Driver, Notice } from '../../reconcile/types.ts';
import { isNotFound, KernelError } from '../errors.ts';
import type { NetlinkMonitor } from '../netlink/monitor.ts';
import { readForwarding } from '../netlink/netconf.ts';
import type { NetlinkMessage } from '../netlink/socket.ts';
import { isSysctlPath, type SysctlFiles } from './files.ts';

export interface SysctlDriver extends Driver<'sysctl'> {
  /** The value before Tulle wrote the file; undefined when it never did. */
  former(path: string): string | undefined;
  /** Writes every former value back. Throws KernelError at the first that cannot be written. */
  restore(): void;
}

export interface SysctlDriverOptions {
  readonly files: SysctlFiles;
  /** JSON object of former values by path, below the run directory: a reboot forgets both alike. */
  readonly stateFile: string;
  /** Tells of forwarding that somebody else switches; of other sysctls the kernel says nothing. */
  readonly monitor?: NetlinkMonitor;
}

export function createSysctlDriver({ files, stateFile, monitor }: SysctlDriverOptions): SysctlDriver {
  const former = readState(stateFile);

  /** Before the first write: a crash in between must not take Tulle's value for the former one. */
  const remember = (path: string): void => {
    if (former.has(path)) return;
    const value = files.read(path);
    if (value === undefined) throw new KernelError({ code: 'ENOENT', operation: 'write', object: `sysctl ${path}` });
    writeState(stateFile, former.set(path, value));
  };

  const restore = (path: string): void => {
    const value = former.get(path);
    try {
      if (value !== undefined) files.write(path, value);
    } catch (error) {
      // The link that the file belonged to is gone, and its settings with it.
      if (!isNotFound(error)) throw error;
    }
    former.delete(path);
    writeState(stateFile, former);
  };

  const applyOne = (change: Change<'sysctl'>): void => {
    if (change.action === 'remove') restore(change.from.path);
    else {
      const { path, value } = change.item.value;
      remember(path);
      files.write(path, value);
    }
  };

  return {
    kind: 'sysctl',
    lane: 'netlink',
    merge: 'same',
    equal: (wanted, found) => wanted.value === found.value,
    former: (path) => former.get(path),
    restore() {
      for (const path of [...former.keys()]) restore(path);
    },
    async list() {
      const found = new Map<Key<'sysctl'>, Sysctl>();
      for (const path of former.keys()) {
        const value = files.read(path);
        if (value !== undefined) found.set(keyOf('sysctl', { path, value }), { path, value });
      }
      return found;
    },
    async apply(batch) {
      const failures = new Map<Key<'sysctl'>, Error>();
      for (const change of batch) {
        try {
          applyOne(change);
        } catch (error) {
          failures.set(change.key, error as Error);
        }
      }
      return failures;
    },
    ...(monitor && {
      watch: (notice: Notice<'sysctl'>, signal: AbortSignal) => {
        const message = (seen: NetlinkMessage) => {
          for (const { path, value } of readForwarding(seen)) {
            // The kernel tells of many settings that were never Tulle's business.
            if (former.has(path)) notice.found(`sysctl ${path}`, { path, value });
          }
        };
        monitor.subscribe({ message, lost: (reason) => notice.stale(reason) }, signal);
      },
    }),
  };
}

/** A state file that cannot be read is as good as none: the values of now become the former ones. */
function readState(file: string): Map<string, string> {
  try {
    const entries = Object.entries(JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>);
    return new Map(
      entries.filter((entry): entry is [string, string] => isSysctlPath(entry[0]) && typeof entry[1] === 'string'),
    );
  } catch {
    return new Map();
  }
}

function writeState(file: string, former: ReadonlyMap<string, string>): void {
  try {
    writeFileSync(`${file}.new`, JSON.stringify(Object.fromEntries(former)), { mode: 0o600 });
    renameSync(`${file}.new`, file);
  } catch (cause) {
    throw new KernelError({
      code: (cause as NodeJS.ErrnoException).code ?? 'EIO',
      operation: 'save',
      object: `former sysctl values in ${file}`,
      cause,
    });
  }
}
