/** `tulle`, the script that starts Node: what it leaves on the disk. */
import { execFileSync } from 'node:child_process';
import {
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';

/** A checkout of one module. */
function makeCheckout(t: { teardown(end: () => void): void }): string {
  const home = mkdtempSync(join(tmpdir(), 'tulle-test-launcher-'));
  t.teardown(() => rmSync(home, { recursive: true }));
  copyFileSync(fileURLToPath(new URL('../tulle', import.meta.url)), join(home, 'tulle'));
  for (const directory of ['agent', 'node_modules/.bin']) mkdirSync(join(home, directory), { recursive: true });
  symlinkSync(process.execPath, join(home, 'node_modules/.bin/node'));
  writeFileSync(join(home, 'agent/part.ts'), 'export const text: string = "it runs";');
  writeFileSync(join(home, 'agent/main.ts'), 'import { text } from "./part.ts"; process.stdout.write(text);');
  return home;
}

function start(home: string): string {
  const { NODE_COMPILE_CACHE: _, ...env } = process.env;
  return execFileSync('sh', ['-c', 'umask 0; exec "$0"', join(home, 'tulle')], { env, encoding: 'utf8' });
}

test('nobody else can write what the next start will run, whatever the umask', (t) => {
  const home = makeCheckout(t);
  t.is(start(home), 'it runs');
  const cache = join(home, 'node_modules/.cache');
  const below = readdirSync(cache, { recursive: true, encoding: 'utf8' }).map((name) => join(cache, name));
  t.true(below.some((path) => statSync(path).isFile()));
  for (const path of [cache, ...below]) t.is(statSync(path).mode & 0o022, 0, path);
});

const asRoot = process.getuid?.() === 0 ? test : test.skip;

asRoot('root leaves nothing in the checkout of a user, who could not delete it', (t) => {
  const home = makeCheckout(t);
  chownSync(home, 1000, 1000);
  t.is(start(home), 'it runs');
  t.false(existsSync(join(home, 'node_modules/.cache')));
});
