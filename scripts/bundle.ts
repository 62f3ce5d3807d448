#!/usr/bin/env node
/**
 * Makes a package of the agent that runs by itself: `node scripts/bundle.ts [DIRECTORY]`, by default `dist`. It has the
 * shape of a checkout (`tulle`, agent/, cni/build/, node_modules/) and holds Node; the sources are bundled to a few
 * JavaScript files, and of the dependencies only those are there that bring native code. deploy/Dockerfile copies it.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { build, type Plugin } from 'esbuild';

const HOME = join(import.meta.dirname, '..');
const MAIN = 'agent/main.ts';
/** What threads run: sources of their own, which others name by their URL. */
const THREADS = ['agent/kernel/tun/worker.ts'];
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
  const files = new Set(['tulle', 'LICENSE']);
  await build({
    absWorkingDir: HOME,
    entryPoints: [MAIN, ...THREADS].map((file) => ({ in: file, out: basename(file, '.ts') })),
    outdir: join(directory, dirname(MAIN)),
    // All beside each other: a URL relative to one of them means the same in each.
    chunkNames: '[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node24.12',
    external: PACKAGES,
    // Packages in CommonJS ask for Node's own modules by this name.
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
    plugins: [withoutLab, withFiles(files)],
    logLevel: 'warning',
  });
  for (const file of files) copy(file, directory);
  for (const name of PACKAGES) copy(join('node_modules', name), directory);
  copy(NODE, directory, 'node_modules/.bin/node');
}

/** Adds the files that sources name by `new URL('./x', import.meta.url)`: they keep their places below the bundle. */
const withFiles = (files: Set<string>): Plugin => ({
  name: 'with-files',
  setup: ({ onLoad }) => {
    onLoad({ filter: /\/(agent|cni)\/.*\.ts$/ }, ({ path }) => {
      const contents = readFileSync(path, 'utf8').replaceAll(
        /new URL\('(\.[^']+)', import\.meta\.url\)/g,
        (_, target: string) => {
          const file = relative(HOME, resolve(dirname(path), target));
          if (THREADS.includes(file)) return `new URL('./${basename(file, '.ts')}.js', import.meta.url)`;
          files.add(file);
          return `new URL('${relative(dirname(MAIN), file)}', import.meta.url)`;
        },
      );
      return { contents, loader: 'ts' };
    });
  },
});

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
