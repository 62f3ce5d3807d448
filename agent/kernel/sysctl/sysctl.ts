/**
 * Driver of sysctls: a written list of paths. The value that a file had before Tulle first wrote it is stored once, never
 * overwritten by a restart, and written back when the item is no longer wanted; see FormerValues.
 */
import { type Key, keyOf, type Sysctl } from '../../model/items.ts';
import type { Change, Driver, Notice } from '../../reconcile/types.ts';
import type { NetlinkMessage } from '../netlink/message.ts';
import type { NetlinkMonitor } from '../netlink/monitor.ts';
import { readForwarding } from '../netlink/netconf.ts';
import type { SysctlFiles } from './files.ts';
import { FormerValues } from './former-values.ts';

export interface SysctlDriver extends Driver<'sysctl'> {
  /** The value before Tulle wrote the file; undefined when it never did. */
  former(path: string): string | undefined;
}

export interface SysctlDriverOptions {
  readonly files: SysctlFiles;
  /** JSON object of former values by path, below the run directory: a reboot forgets both alike. */
  readonly stateFile: string;
  /** Tells of forwarding that somebody else switches; of other sysctls the kernel says nothing. */
  readonly monitor?: NetlinkMonitor;
}

export function createSysctlDriver({ files, stateFile, monitor }: SysctlDriverOptions): SysctlDriver {
  const former = new FormerValues(files, stateFile);

  const applyOne = (change: Change<'sysctl'>): void => {
    if (change.action === 'remove') former.restore(change.from.path);
    else {
      const { path, value } = change.item.value;
      former.remember(path);
      files.write(path, value);
    }
  };

  return {
    kind: 'sysctl',
    lane: 'netlink',
    merge: 'same',
    equal: (wanted, found) => wanted.value === found.value,
    former: (path) => former.valueOf(path),
    async list() {
      const found = new Map<Key<'sysctl'>, Sysctl>();
      for (const path of former.paths()) {
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
