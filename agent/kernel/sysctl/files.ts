/** The files below /proc/sys of one network namespace. Synchronous: each is one small read or write in memory. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { KernelError } from '../errors.ts';
import { inNetns } from '../libc.ts';

export interface SysctlFiles {
  /** The trimmed value, or undefined when there is no such file (no such link, no IPv6). Throws other KernelErrors. */
  read(path: string): string | undefined;
  /** Throws KernelError, ENOENT included. */
  write(path: string, value: string): void;
  /** Several reads and writes in one visit of the namespace. */
  together<T>(action: () => T): T;
  /** Names in a directory; none when there is no such directory. Throws other KernelErrors. */
  names(directory: string): readonly string[];
}

export interface SysctlFilesOptions {
  /** Where /proc/sys of the host is seen. A container's own is read-only unless it is privileged. */
  readonly root?: string;
  /** The namespace whose files are meant; /proc/sys/net shows those of the thread that opens them. */
  readonly netnsFd?: number | undefined;
}

/** Component by component: no `..`, no empty one, nothing that is not part of a sysctl's or a link's name. */
const SAFE_PATH = /^net(\/(?!\.{1,2}(\/|$))[A-Za-z0-9_.:@-]+)+$/;

/** Whether a path, relative to /proc/sys, names a network sysctl and nothing else. */
export const isSysctlPath = (path: string): boolean => SAFE_PATH.test(path);

export function openSysctls({ root = '/proc/sys', netnsFd }: SysctlFilesOptions = {}): SysctlFiles {
  let isInside = netnsFd === undefined;
  const inside = <T>(action: () => T): T => (isInside || netnsFd === undefined ? action() : inNetns(netnsFd, action));
  return {
    together(action) {
      if (isInside) return action();
      return inside(() => {
        isInside = true;
        try {
          return action();
        } finally {
          isInside = false;
        }
      });
    },
    read(path) {
      try {
        return inside(() => readFileSync(fileOf(root, path, 'read'), 'latin1').trim());
      } catch (error) {
        const failure = toKernelError(error, 'read', path);
        if (failure.code === 'ENOENT') return undefined;
        throw failure;
      }
    },
    write(path, value) {
      try {
        // Opened without O_CREAT and O_TRUNC, which a file system of this kind may refuse.
        inside(() => writeFileSync(fileOf(root, path, 'write'), value, { flag: 'r+' }));
      } catch (error) {
        throw toKernelError(error, 'write', path);
      }
    },
    names(directory) {
      try {
        return inside(() => readdirSync(fileOf(root, directory, 'list')));
      } catch (error) {
        const failure = toKernelError(error, 'list', directory);
        if (failure.code === 'ENOENT') return [];
        throw failure;
      }
    },
  };
}

function fileOf(root: string, path: string, operation: string): string {
  if (isSysctlPath(path)) return `${root}/${path}`;
  const detail = 'expected a path below net/ of letters, digits and _ . : @ -';
  throw new KernelError({ code: 'EINVAL', operation, object: `sysctl ${JSON.stringify(path)}`, detail });
}

const READ_ONLY = new Set(['EROFS', 'EACCES', 'EPERM']);

function toKernelError(error: unknown, operation: string, path: string): KernelError {
  if (error instanceof KernelError) return error;
  const code = (error as NodeJS.ErrnoException).code ?? 'EIO';
  const detail = READ_ONLY.has(code)
    ? "/proc/sys is read-only here: run privileged, or mount the host's /proc/sys/net writable and name its root in the settings"
    : undefined;
  return new KernelError({ code, operation, object: `sysctl ${path}`, detail, cause: error });
}
