/** What the runtime finds on the host: the executable first, and the configuration last, when the agent is ready. */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { CONFLIST_NAME } from '../../cni/conflist.ts';

/** Installs the executable as `tulle`, and as `loopback` where the host has none. Written beside and renamed. */
export function installExecutable(executable: string, cniBinDir: string): void {
  mkdirSync(cniBinDir, { recursive: true, mode: 0o755 });
  const names = existsSync(join(cniBinDir, 'loopback')) ? ['tulle'] : ['tulle', 'loopback'];
  for (const name of names) replaceFile(join(cniBinDir, name), (path) => copyFileSync(executable, path));
}

/** Writes the network configuration unless it is there already, and removes what an interrupted write left. */
export function installConflist(text: string, cniConfDir: string): void {
  mkdirSync(cniConfDir, { recursive: true, mode: 0o755 });
  for (const name of readdirSync(cniConfDir)) {
    if (name.startsWith(`.${CONFLIST_NAME}.`)) rmSync(join(cniConfDir, name), { force: true });
  }
  const path = join(cniConfDir, CONFLIST_NAME);
  if (existsSync(path) && readFileSync(path, 'utf8') === text) return;
  replaceFile(path, (temporary) => writeFileSync(temporary, text, { mode: 0o644 }));
}

/** The temporary name begins with a dot: runtimes read only *.conf, *.conflist and *.json. */
function replaceFile(path: string, write: (temporary: string) => void): void {
  const slash = path.lastIndexOf('/');
  const temporary = `${path.slice(0, slash)}/.${path.slice(slash + 1)}.${process.pid}.new`;
  write(temporary);
  renameSync(temporary, path);
}
