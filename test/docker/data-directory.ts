/** A directory on the disk for one dockerd, and the removal of those whose test was killed. */
import { randomBytes } from 'node:crypto';
import { closeSync, globSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { tryLockExclusive } from '../../agent/kernel/libc.ts';

export interface DataDirectory {
  readonly path: string;
  remove(): Promise<void>;
}

/** Not below /run, which is memory, nor below what a node of a lab has an overlay over: overlays do not stack. */
const PARENT = '/var/tmp';
const PREFIX = 'tulle-test-docker-';
const LOCK = 'lock';

/** Locked until it is removed or this process ends, however it ends. */
export async function createDataDirectory(): Promise<DataDirectory> {
  for (const name of globSync(`${PREFIX}*`, { cwd: PARENT })) sweep(join(PARENT, name));
  const name = `${PREFIX}${randomBytes(4).toString('hex')}`;
  const [path, beside] = [join(PARENT, name), join(PARENT, `.${name}`)];
  mkdirSync(beside, { mode: 0o700 });
  const fd = openSync(join(beside, LOCK), 'w');
  tryLockExclusive(fd);
  // Nobody finds it by its name before it is locked.
  renameSync(beside, path);
  return {
    path: join(path, 'data'),
    remove: async () => {
      rmSync(path, { recursive: true, force: true });
      closeSync(fd);
    },
  };
}

function sweep(path: string): void {
  const fd = openSync(join(path, LOCK), 'w');
  if (tryLockExclusive(fd)) rmSync(path, { recursive: true, force: true });
  closeSync(fd);
}
