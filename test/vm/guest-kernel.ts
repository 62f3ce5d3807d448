/**
 * The kernel that the guest runs, Debian's own 6.1: downloaded once from the package archive that this machine already
 * uses, unpacked beside it, and packed into an initramfs that can mount the host's files. Nothing is installed.
 */
import { existsSync, readdirSync } from 'node:fs';
import { chmod, copyFile, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, join } from 'node:path';
import { execa } from 'execa';

export interface GuestKernel {
  /** `6.1.0-56-amd64`. */
  readonly release: string;
  readonly image: string;
  /** Holds all modules of the release, for the guest's /lib/modules/<release>. */
  readonly modules: string;
}

const PACKAGE = /^linux-image-(?<release>6\.1\.0-(?<abi>\d+)-amd64) /;
const DOWNLOAD_TIMEOUT_MS = 300_000;
const UNPACK_TIMEOUT_MS = 120_000;
/** What the guest needs before it sees the host's files; everything else is loaded on demand. */
const EARLY_MODULES = ['virtio_pci', '9pnet_virtio', '9p', 'overlay', 'virtio-rng'];

/** `$XDG_CACHE_HOME/tulle/vm`. Some 450 MB; may be deleted at any time. */
export const cacheDirectory = (): string =>
  join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'tulle', 'vm');

/** The newest kernel in the cache, otherwise the newest of the archive, downloaded. Throws Error with what is missing. */
export async function guestKernel(cache = cacheDirectory()): Promise<GuestKernel> {
  await mkdir(cache, { recursive: true });
  const cached = readdirSync(cache).filter((name) => PACKAGE.test(`linux-image-${name} `));
  const release = cached.sort((a, b) => abiOf(a) - abiOf(b)).at(-1) ?? (await download(cache));
  const directory = join(cache, release);
  return {
    release,
    image: join(directory, 'boot', `vmlinuz-${release}`),
    modules: join(directory, 'lib/modules', release),
  };
}

const abiOf = (release: string): number => Number(release.split('-')[1]);

/** Unpacks beside and renames, so that a directory named after a release is always whole. */
async function download(cache: string): Promise<string> {
  const { stdout } = await execa('apt-cache', ['search', '--names-only', '^linux-image-6.1.0-[0-9]+-amd64$']);
  const releases = stdout.split('\n').flatMap((line) => PACKAGE.exec(line)?.groups?.['release'] ?? []);
  const release = releases.sort((a, b) => abiOf(a) - abiOf(b)).at(-1);
  if (release === undefined) {
    throw new Error(
      "cannot download a kernel: expected linux-image-6.1.0-*-amd64 in apt's lists, got none; run apt-get update, on Debian 12",
    );
  }
  const beside = await mkdtemp(join(cache, 'new-'));
  try {
    await execa('apt-get', ['download', `linux-image-${release}`], { cwd: beside, timeout: DOWNLOAD_TIMEOUT_MS });
    const file = readdirSync(beside).find((name) => name.endsWith('.deb')) ?? '';
    await execa('dpkg-deb', ['--extract', file, '.'], { cwd: beside, timeout: UNPACK_TIMEOUT_MS });
    await rm(join(beside, file));
    await execa('busybox', ['depmod', '-b', beside, release], { timeout: UNPACK_TIMEOUT_MS });
    await rename(beside, join(cache, release));
  } finally {
    await rm(beside, { recursive: true, force: true });
  }
  return release;
}

/**
 * Writes the initramfs to `file`: busybox, the early modules, init.sh, and what that is to become, of which no part holds a
 * line break. The kernel's own command line would take 32 words.
 */
export async function buildInitramfs(
  kernel: GuestKernel,
  { init, command }: { readonly init: string; readonly command: readonly string[] },
  file: string,
): Promise<void> {
  const root = `${file}.d`;
  await mkdir(join(root, 'bin'), { recursive: true });
  await mkdir(join(root, 'modules'));
  await copyFile(await staticBusybox(), join(root, 'bin/busybox'));
  await copyFile(init, join(root, 'init'));
  await chmod(join(root, 'init'), 0o755);
  await writeFile(join(root, 'command'), `${command.join('\n')}\n`);
  const modules = inLoadOrder(await readFile(join(kernel.modules, 'modules.dep'), 'latin1'), EARLY_MODULES);
  for (const path of modules) await copyFile(join(kernel.modules, path), join(root, 'modules', basename(path)));
  await writeFile(join(root, 'modules/order'), `${modules.map((path) => basename(path)).join('\n')}\n`);
  // The kernel takes an archive that is not compressed; cpio reads names from its standard input.
  const { stdout: names } = await execa('find', ['.'], { cwd: root });
  await execa('busybox', ['cpio', '-o', '-H', 'newc'], { cwd: root, input: `${names}\n`, stdout: { file } });
  await rm(root, { recursive: true });
}

/** `/bin/busybox` of busybox-static; that of the package busybox would need a C library. */
async function staticBusybox(): Promise<string> {
  const path = ['/bin/busybox', '/usr/bin/busybox'].find((candidate) => existsSync(candidate));
  if (path !== undefined) return path;
  throw new Error(
    'cannot build an initramfs: expected a static /bin/busybox, got none; apt-get install busybox-static',
  );
}

/** Paths of modules, each after those that it needs. `dep` is the text of modules.dep: `path: path path`. */
export function inLoadOrder(dep: string, names: readonly string[]): readonly string[] {
  const needs = new Map<string, readonly string[]>();
  for (const line of dep.split('\n')) {
    const [path = '', rest = ''] = line.split(':');
    if (path !== '') needs.set(path, rest.split(' ').filter(Boolean));
  }
  const byName = new Map([...needs.keys()].map((path) => [basename(path, '.ko'), path]));
  const ordered = new Set<string>();
  const add = (path: string): void => {
    for (const needed of needs.get(path) ?? []) add(needed);
    ordered.add(path);
  };
  for (const name of names) {
    const path = byName.get(name);
    if (path === undefined)
      throw new Error(`cannot find the module ${name}: expected it in modules.dep, got no such line`);
    add(path);
  }
  return [...ordered];
}
