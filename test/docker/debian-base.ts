#!/usr/bin/env node
/**
 * The base of the image in tests: a Debian made from its packages, since no registry may be within reach, with what the
 * Dockerfile installs downloaded beforehand, since a test has no network. Kept in a cache; run this file to fill it.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';

export const DOCKERFILE = fileURLToPath(new URL('../../deploy/Dockerfile', import.meta.url));

const SUITE = 'bookworm';
/** A bound against hanging: 45 s on two idle processors. */
const TIMEOUT_MS = 600_000;
const OPTIONS = [
  ...['--mode=root', '--variant=apt', '--skip=cleanup/apt/lists,cleanup/apt/cache'],
  ...['man', 'doc', 'locale'].map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`),
  ...['Acquire::Languages "none"', 'Acquire::GzipIndexes "true"', 'Acquire::Retries "0"'].map(
    (line) => `--aptopt=${line}`,
  ),
];

/** `$XDG_CACHE_HOME/tulle/docker`. Some 150 MB; may be deleted at any time. */
const cacheDirectory = (): string => join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'tulle/docker');

/** Path of a tar of the file system, from the cache or made now, after `onMake`. Throws execa's error: no network. */
export async function debianBase(onMake?: () => void, cache = cacheDirectory()): Promise<string> {
  const packages = packagesOf(readFileSync(DOCKERFILE, 'utf8'));
  const hooks = [
    `rm -f "$1"/var/cache/apt/archives/*.deb`,
    `chroot "$1" apt-get install --yes --download-only --no-install-recommends ${packages.join(' ')}`,
    `rm -f "$1"/var/cache/apt/*.bin`,
  ];
  const args = [...OPTIONS, ...hooks.map((hook) => `--customize-hook=${hook}`), SUITE];
  const key = createHash('sha256').update(args.join('\0')).digest('hex').slice(0, 16);
  const file = join(cache, `${SUITE}-${key}.tar`);
  if (existsSync(file)) return file;
  onMake?.();
  rmSync(cache, { recursive: true, force: true });
  mkdirSync(cache, { recursive: true });
  const beside = join(cache, `.${process.pid}.new.tar`);
  // Whatever it mounts goes with its mount namespace, however it ends.
  await execa('unshare', ['--mount', '--', 'mmdebstrap', ...args, beside], {
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
  });
  renameSync(beside, file);
  return file;
}

/** The words of the Dockerfile's `apt-get install` that are no options. */
export function packagesOf(dockerfile: string): readonly string[] {
  const words = /apt-get install (?<words>[^\n\\&]+)/.exec(dockerfile)?.groups?.['words'] ?? '';
  return words.split(/\s+/).filter((word) => /^[a-z0-9][a-z0-9.+-]+$/.test(word));
}

if (import.meta.main) await debianBase(() => console.log('setup: making a small Debian for the test of the image'));
