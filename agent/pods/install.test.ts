import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { findConflist, findExecutables, installConflist, installExecutable } from './install.ts';

function directory(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), 'tulle-install-'));
  t.teardown(() => rmSync(path, { recursive: true }));
  return path;
}

test('what was installed is found as own, and what others put there is not', (t) => {
  const bin = directory(t);
  const executable = join(directory(t), 'tulle-cni');
  writeFileSync(executable, 'ours');
  t.deepEqual(findExecutables(executable, join(bin, 'absent')), { own: [], foreign: [] });
  installExecutable(executable, bin);
  writeFileSync(join(bin, 'portmap'), 'ours');
  const paths = (...names: readonly string[]) => names.map((name) => join(bin, name));
  t.deepEqual(findExecutables(executable, bin), { own: paths('loopback', 'tulle'), foreign: [] });

  writeFileSync(join(bin, 'loopback'), 'the reference plugin');
  writeFileSync(join(bin, 'tulle'), 'of another version');
  t.deepEqual(findExecutables(executable, bin), { own: [], foreign: paths('tulle') });
  rmSync(executable);
  t.deepEqual(findExecutables(executable, bin), { own: [], foreign: paths('tulle') });
});

test("a loopback that the host has stays the host's", (t) => {
  const bin = directory(t);
  const executable = join(directory(t), 'tulle-cni');
  writeFileSync(executable, 'ours');
  writeFileSync(join(bin, 'loopback'), 'the reference plugin');
  installExecutable(executable, bin);
  t.is(readFileSync(join(bin, 'loopback'), 'utf8'), 'the reference plugin');
});

test('a new version takes the place of an old one under both names', (t) => {
  const bin = directory(t);
  const executable = join(directory(t), 'tulle-cni');
  for (const version of ['1', '2']) {
    writeFileSync(executable, version);
    installExecutable(executable, bin);
    t.deepEqual(
      ['tulle', 'loopback'].map((name) => readFileSync(join(bin, name), 'utf8')),
      [version, version],
    );
  }
});

test('the conflist is found with what an interrupted write left, and nothing else', (t) => {
  const conf = directory(t);
  writeFileSync(join(conf, '.10-tulle.conflist.4711.new'), '{');
  writeFileSync(join(conf, '05-mine.conflist'), '{}');
  t.deepEqual(findConflist(conf), [join(conf, '.10-tulle.conflist.4711.new')]);
  installConflist('{}', conf);
  t.deepEqual(readdirSync(conf).sort(), ['05-mine.conflist', '10-tulle.conflist']);
  t.deepEqual(findConflist(conf), [join(conf, '10-tulle.conflist')]);
  t.false(existsSync(join(conf, 'absent')));
  t.deepEqual(findConflist(join(conf, 'absent')), []);
});

test('what is installed already is not written again, and one that cannot be executed is', (t) => {
  const bin = directory(t);
  const executable = join(directory(t), 'tulle-cni');
  writeFileSync(executable, 'ours', { mode: 0o755 });
  const inode = () => statSync(join(bin, 'tulle')).ino;
  installExecutable(executable, bin);
  const first = inode();
  installExecutable(executable, bin);
  t.is(inode(), first);
  chmodSync(join(bin, 'tulle'), 0o644);
  installExecutable(executable, bin);
  t.is(statSync(join(bin, 'tulle')).mode & 0o777, 0o755);
});
