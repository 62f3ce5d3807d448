/** The run directory: pod records must be writable at any time, and must not survive a reboot. */
import { existsSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Check, type Finding, verdict } from './finding.ts';

/** TMPFS_MAGIC, RAMFS_MAGIC (linux/magic.h). */
const IN_MEMORY = [0x01021994, 0x858458f6];
/** A record takes less than 4 KiB; the sum of all pods of a node a few hundred KiB. */
const LEAST_BYTES = 4 << 20;

export const runDir: Check = {
  name: 'run-dir',
  async run({ config: { runDir: path } }) {
    if (!existsSync(path)) return { skipped: `${path} does not exist: no agent has run here` };
    const { type, bsize, bavail, files, ffree } = statfsSync(path);
    const freeBytes = bsize * bavail;
    const refusal = tryWriting(path);
    return verdict(`${path}, ${Math.round(freeBytes / 2 ** 20)} MiB free`, [
      IN_MEMORY.includes(type) ? undefined : lasting(path, type),
      refusal === undefined ? undefined : readOnly(path, refusal, freeBytes),
      refusal === undefined && (freeBytes < LEAST_BYTES || (files > 0 && ffree < 100))
        ? full(path, freeBytes, ffree)
        : undefined,
    ]);
  },
};

function tryWriting(path: string): NodeJS.ErrnoException | undefined {
  const file = join(path, `.doctor.${process.pid}`);
  try {
    writeFileSync(file, 'x'.repeat(4096), { mode: 0o600 });
    return undefined;
  } catch (error) {
    return error as NodeJS.ErrnoException;
  } finally {
    rmSync(file, { force: true });
  }
}

const lasting = (path: string, type: number): Finding => ({
  severity: 'warning',
  summary: `${path} survives a reboot`,
  evidence: [`statfs ${path}: type 0x${type.toString(16)}, expected tmpfs (0x1021994)`],
  cause:
    'The run directory is on a disk. After a reboot, records of pods that are gone keep their addresses until they are looked at one by one.',
  remedy: 'put it below /run, or mount a tmpfs there',
});

const readOnly = (path: string, { code, message }: NodeJS.ErrnoException, freeBytes: number): Finding => ({
  severity: 'error',
  summary: `nothing can be written to ${path}`,
  evidence: [message, `${freeBytes} bytes free`],
  cause:
    code === 'ENOSPC'
      ? 'Its file system is full. New pods are refused, because their records cannot be kept.'
      : 'It is mounted read-only, or this program may not write there.',
  remedy:
    code === 'ENOSPC'
      ? `see what fills it: du -ax ${path.split('/').slice(0, 2).join('/')} | sort -n | tail`
      : 'mount it writable, and run as root',
});

const full = (path: string, freeBytes: number, freeFiles: number): Finding => ({
  severity: 'warning',
  summary: `the file system of ${path} is nearly full`,
  evidence: [`${freeBytes} bytes and ${freeFiles} files free`],
  cause: 'Something else fills it. When it is full, new pods are refused, because their records cannot be kept.',
  remedy: `see what fills it: du -ax ${path.split('/').slice(0, 2).join('/')} | sort -n | tail`,
});
