#!/usr/bin/env node
/**
 * Makes a package of the agent that runs by itself: `node scripts/bundle.ts [DIRECTORY]`, by default `dist`. It has the
 * shape of a checkout (`tulle`, agent/, cni/build/, node_modules/) and holds Node; the sources are bundled to a few
 * JavaScript files, and of the dependencies only those are there that bring native code. deploy/Dockerfile copies it.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { type BuildOptions, build, type Plugin } from 'esbuild';

const HOME = join(import.meta.dirname, '..');
const MAIN = 'agent/main.ts';
/** Left as they are, because they find their native part by where they are. */
const PACKAGES = ['koffi', `@koromix/koffi-linux-${process.arch}`, 'netlink', 'node-gyp-build'];
/** Of these packages: sources of the native part, documentation, and objects for other machines and C libraries. */
const SUPERFLUOUS = [
  /\/node_modules\/.*\.(map|md|ts|cc|hh|inc)$/,
  /\/node_modules\/.*\/(doc|vendor)$/,
  /\/musl_\w+$/,
  new RegExp(`/prebuilds/(?!linux-${process.arch}$)[^/]+$`),
];
const NODE = `node_modules/node-linux-${process.arch}/bin/node`;

/**
 * Replaces the directory by a bundle of this checkout. Throws when something of it is missing: run scripts/setup.
 */
export async function bundle(directory: string): Promise<void> {
  rmSync(directory, { recursive: true, force: true });
  const urls = new Urls();
  const options: BuildOptions = {
    absWorkingDir: HOME,
    outdir: join(directory, dirname(MAIN)),
    // All files beside each other: a URL relative to one of them then means the same in each.
    entryNames: '[name]',
    chunkNames: '[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node24.12',
    external: PACKAGES,
    // Packages in CommonJS ask for Node's own modules by this name.
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
    plugins: [withoutLab, urls.plugin],
    logLevel: 'warning',
  };
  // Threads start from files of their own, which are known once everything was read.
  await build({ ...options, entryPoints: [MAIN], write: false });
  await build({ ...options, entryPoints: [MAIN, ...urls.sources] });
  for (const file of ['tulle', 'LICENSE', ...urls.files]) copy(file, directory);
  for (const name of PACKAGES) copy(join('node_modules', name), directory);
  copy(NODE, directory, 'node_modules/.bin/node');
}

/**
 * What the sources name by `new URL('./x', import.meta.url)`: other sources are bundled, too, and other files are
 * copied to the same place below the bundle.
 */
class Urls {
  readonly sources = new Set<string>();
  readonly files = new Set<string>();

  readonly plugin: Plugin = {
    name: 'urls',
    setup: ({ onLoad }) => {
      onLoad({ filter: /\/(agent|cni)\/.*\.ts$/ }, ({ path }) => {
        const text = readFileSync(path, 'utf8');
        const contents = text.replaceAll(
          /new URL\('(\.[^']+)', import\.meta\.url\)/g,
          (_, to: string) => `new URL('${this.#moved(relative(HOME, resolve(dirname(path), to)))}', import.meta.url)`,
        );
        return { contents, loader: 'ts' };
      });
    },
  };

  #moved(target: string): string {
    if (target.endsWith('.ts')) {
      this.sources.add(target);
      return `./${basename(target, '.ts')}.js`;
    }
    this.files.add(target);
    return relative(dirname(MAIN), target);
  }
}

/** The lab belongs to a checkout: it runs programs that no node has. */
const withoutLab: Plugin = {
  name: 'without-lab',
  setup: ({ onLoad }) => {
    const contents = `export function labCommand() {
      throw new Error('cannot run a lab: expected a checkout of Tulle, got the bundled agent');
    }`;
    onLoad({ filter: /\/lab\/cli\.ts$/ }, () => ({ contents, loader: 'js' }));
  },
};

function copy(path: string, directory: string, to = path): void {
  const [from, target] = [join(HOME, path), join(directory, to)];
  if (!existsSync(from)) throw new Error(`cannot bundle ${path}: expected a file, got none; run scripts/setup`);
  mkdirSync(dirname(target), { recursive: true });
  cpSync(from, target, { recursive: true, filter: (source) => !SUPERFLUOUS.some((pattern) => pattern.test(source)) });
}

if (import.meta.main) await bundle(resolve(process.argv[2] ?? join(HOME, 'dist')));
