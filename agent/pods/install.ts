/**
 * What the runtime finds on the host: the executable first, and the configuration last, when the agent is ready. Removed
 * in the reverse order.
 */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { CONFLIST_NAME, type ConflistOptions, renderConflist } from '../../cni/conflist.ts';

/** The settings that the network configuration follows from. */
export interface ConflistSettings {
  readonly 'cni.chain': NonNullable<ConflistOptions['chain']>;
  readonly 'services.mode': string;
}

/** Its text. Who serves Services serves host ports. */
export const conflistOf = ({ 'cni.chain': chain, 'services.mode': mode }: ConflistSettings): string =>
  renderConflist({ chain, hostPorts: mode !== 'off' });

/**
 * Installs the executable as `tulle`, and as `loopback` where the host has none, or has one that an earlier version of
 * Tulle installed. Written beside and renamed; what is there already is left as it is, so that a full disk does not matter.
 */
export function installExecutable(executable: string, cniBinDir: string): void {
  mkdirSync(cniBinDir, { recursive: true, mode: 0o755 });
  const [tulle, loopback] = [join(cniBinDir, 'tulle'), join(cniBinDir, 'loopback')];
  const isForeign = existsSync(loopback) && !(existsSync(tulle) && readFileSync(tulle).equals(readFileSync(loopback)));
  const names = isForeign ? ['tulle'] : ['loopback', 'tulle'];
  const bytes = readFileSync(executable);
  for (const path of names.map((name) => join(cniBinDir, name))) {
    if (!isInstalled(path, bytes)) replaceFile(path, (temporary) => copyFileSync(executable, temporary));
  }
}

const isInstalled = (path: string, bytes: Buffer): boolean =>
  existsSync(path) && (statSync(path).mode & 0o111) === 0o111 && readFileSync(path).equals(bytes);

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

/** The network configuration and what an interrupted write left of it: absolute paths. */
export function findConflist(cniConfDir: string): readonly string[] {
  return namesIn(cniConfDir)
    .filter((name) => name === CONFLIST_NAME || name.startsWith(`.${CONFLIST_NAME}.`))
    .map((name) => join(cniConfDir, name));
}

/** Installed copies of this executable, and files of the same names that are something else: absolute paths. */
export function findExecutables(
  executable: string,
  cniBinDir: string,
): { readonly own: readonly string[]; readonly foreign: readonly string[] } {
  const bytes = existsSync(executable) ? readFileSync(executable) : undefined;
  const isOwn = (path: string) => bytes !== undefined && readFileSync(path).equals(bytes);
  const found = namesIn(cniBinDir).filter((name) => /^(tulle|loopback|\.(tulle|loopback)\.\d+\.new)$/.test(name));
  const paths = found.map((name) => join(cniBinDir, name));
  const own = paths.filter(isOwn);
  return { own, foreign: paths.filter((path) => path.endsWith('/tulle') && !own.includes(path)) };
}

const namesIn = (directory: string): readonly string[] => (existsSync(directory) ? readdirSync(directory) : []);

/** The temporary name begins with a dot: runtimes read only *.conf, *.conflist and *.json. */
function replaceFile(path: string, write: (temporary: string) => void): void {
  const slash = path.lastIndexOf('/');
  const temporary = `${path.slice(0, slash)}/.${path.slice(slash + 1)}.${process.pid}.new`;
  write(temporary);
  renameSync(temporary, path);
}
