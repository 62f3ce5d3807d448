/** Directories of the cgroup v2 hierarchy: what holds the processes of a lab together, and outlives a crash. */
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { until } from './until.ts';

const KILL_DEADLINE_MS = 10_000;

export async function createCgroup(path: string): Promise<void> {
  await mkdir(path, { recursive: true });
}

/** Kills every process in the directory and below; none is left when this returns. An absent directory has none. */
export async function killCgroup(path: string, signal?: AbortSignal): Promise<void> {
  try {
    await writeFile(join(path, 'cgroup.kill'), '1');
  } catch (error) {
    if (isAbsent(error)) return;
    throw error;
  }
  await until(async () => !(await isPopulated(path)), {
    describe: `the processes of ${path} to end`,
    deadlineMs: KILL_DEADLINE_MS,
    signal,
  });
}

/** Kills what is inside and removes the directory with all below it. Idempotent. */
export async function removeCgroup(path: string, signal?: AbortSignal): Promise<void> {
  await killCgroup(path, signal);
  await removeTree(path);
}

/** cgroup-v2.rst, "cgroup.events". */
async function isPopulated(path: string): Promise<boolean> {
  return (await readFile(join(path, 'cgroup.events'), 'utf8')).includes('populated 1');
}

/** Only directories can be removed, deepest first; their files go with them. */
async function removeTree(path: string): Promise<void> {
  try {
    const entries = await readdir(path, { withFileTypes: true });
    for (const entry of entries) if (entry.isDirectory()) await removeTree(join(path, entry.name));
    await rmdir(path);
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
}

const isAbsent = (error: unknown): boolean => {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOENT' || code === 'ENODEV';
};
