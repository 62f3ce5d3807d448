import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { openSysctls } from './files.ts';
import { FormerValues } from './former-values.ts';

const FORWARD = 'net/ipv4/ip_forward';

/** A tree of files in the place of /proc/sys, and the store over it. */
function world(t: ExecutionContext, content: Readonly<Record<string, string>>) {
  const root = mkdtempSync(join(tmpdir(), 'tulle-sysctl-'));
  t.teardown(() => rmSync(root, { recursive: true }));
  for (const [path, text] of Object.entries(content)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  const files = openSysctls({ root });
  const open = () => new FormerValues(files, join(root, 'state.json'));
  return { root, files, open };
}

test('the value before the first write comes back, also after a restart', (t) => {
  const { files, open } = world(t, { [FORWARD]: '0\n' });
  const first = open();
  first.remember(FORWARD);
  files.write(FORWARD, '1');
  first.remember(FORWARD);
  const second = open();
  second.remember(FORWARD);
  t.is(second.valueOf(FORWARD), '0');
  second.restore(FORWARD);
  t.is(files.read(FORWARD), '0');
  t.deepEqual([...open().paths()], []);
});

test('what the kernel writes along with forwarding is restored, where it differed', (t) => {
  const before = {
    [FORWARD]: '0',
    'net/ipv4/conf/all/forwarding': '0',
    'net/ipv4/conf/all/accept_redirects': '0',
    'net/ipv4/conf/eth0/forwarding': '0',
    'net/ipv4/conf/eth1/forwarding': '1',
    'net/ipv4/conf/gone/forwarding': '1',
  };
  const { root, files, open } = world(t, before);
  open().remember(FORWARD);
  for (const path of Object.keys(before)) files.write(path, path.endsWith('redirects') ? '1' : '0');
  files.write(FORWARD, '1');
  rmSync(join(root, 'net/ipv4/conf/gone'), { recursive: true });
  files.write('net/ipv4/conf/eth0/forwarding', '7');
  open().restore(FORWARD);
  const after = Object.keys(before).map((path) => [path, files.read(path)]);
  t.deepEqual(Object.fromEntries(after), {
    ...before,
    // Equal to the switch for all: the kernel itself brings it back.
    'net/ipv4/conf/eth0/forwarding': '7',
    'net/ipv4/conf/gone/forwarding': undefined,
  });
});

test('what cannot be saved is not remembered, so that the next attempt saves it', (t) => {
  const { root, files } = world(t, { [FORWARD]: '0' });
  const stateFile = join(root, 'full/state.json');
  const former = new FormerValues(files, stateFile);
  for (let attempt = 0; attempt < 2; attempt++) t.throws(() => former.remember(FORWARD), { message: /ENOENT/ });
  mkdirSync(dirname(stateFile));
  former.remember(FORWARD);
  t.is(new FormerValues(files, stateFile).valueOf(FORWARD), '0');
});

test('a file that is not there cannot be remembered, and a broken store is as good as none', (t) => {
  const { root, open } = world(t, { [FORWARD]: '0' });
  t.throws(() => open().remember('net/ipv6/conf/all/forwarding'), { message: /ENOENT/ });
  for (const text of ['', '{"net/ipv4/ip_forward":"0"}', '[null]', '{"../etc":{"value":"0","sideEffects":{}}}']) {
    writeFileSync(join(root, 'state.json'), text);
    t.deepEqual([...open().paths()], [], text);
  }
  open().remember(FORWARD);
  t.deepEqual(JSON.parse(readFileSync(join(root, 'state.json'), 'utf8')), {
    [FORWARD]: { value: '0', sideEffects: {} },
  });
});
