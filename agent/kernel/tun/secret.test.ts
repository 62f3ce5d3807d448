import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { until } from '../../../test/support/until.ts';
import { openSecret, parseSecret, SecretFile } from './secret.ts';

const FIVE_MINUTES_MS = 300_000;
const first = 'a'.repeat(40);
const second = 'b'.repeat(40);

async function directory(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'tulle-secret-'));
  t.teardown(() => rm(path, { recursive: true }));
  return path;
}
const text = (bytes: Uint8Array | undefined): string | undefined => bytes && Buffer.from(bytes).toString();

test('a new secret takes the place of the old one, which is good for five minutes more', async (t) => {
  const file = join(await directory(t), 'secret');
  let now = 1_000;
  const source = new SecretFile({ file, clock: () => now });
  await writeFile(file, `${first}\n`);
  source.read();
  t.deepEqual([text(source.current?.bytes), source.former, source.problem], [first, undefined, undefined]);

  const before = source.current;
  source.read();
  t.is(source.current, before, 'the same content is the same value');

  await writeFile(file, second);
  source.read();
  t.deepEqual([text(source.current?.bytes), text(source.former?.bytes)], [second, first]);
  t.notDeepEqual(source.current?.epoch, source.former?.epoch);
  now += FIVE_MINUTES_MS - 1;
  t.is(text(source.former?.bytes), first);
  now += 1;
  t.is(source.former, undefined);
});

test('a file that is empty, too short, too long, a directory or gone is a problem, and the secret stays', async (t) => {
  const dir = await directory(t);
  const file = join(dir, 'secret');
  const source = new SecretFile({ file, clock: () => 0 });
  source.read();
  t.regex(source.problem ?? '', /^cannot use tun\.secretFile .*secret: expected .* got ENOENT; until then no packet/);
  t.is(source.current, undefined);

  await writeFile(file, first);
  source.read();
  t.is(source.problem, undefined);
  for (const [content, got] of [
    ['', 'an empty file'],
    ['\n', 'an empty file'],
    ['x'.repeat(31), '31 bytes'],
    [`${'x'.repeat(31)}\n`, '31 bytes'],
    ['x'.repeat(5_000), 'more'],
  ] as const) {
    await writeFile(file, content);
    source.read();
    t.regex(source.problem ?? '', new RegExp(`got ${got}; the secret read before stays in use$`));
    t.notRegex(source.problem ?? '', /xxx/);
    t.is(text(source.current?.bytes), first);
  }
  await rm(file);
  await mkdir(file);
  source.read();
  t.regex(source.problem ?? '', /got EISDIR/);
  await rm(file, { recursive: true });
  execFileSync('mkfifo', [file]);
  source.read();
  t.regex(source.problem ?? '', /got an empty file/);
  t.deepEqual([text(source.current?.bytes), source.former], [first, undefined]);
});

test('one line end is not part of the secret, whatever else is', (t) => {
  const body = Buffer.from('0123456789abcdef0123456789abcdef');
  for (const [end, kept] of [
    ['', ''],
    ['\n', ''],
    ['\r\n', ''],
    ['\n\n', '\n'],
    [' ', ' '],
    ['\r', '\r'],
    ['\0', '\0'],
  ]) {
    t.is(text(parseSecret(Buffer.concat([body, Buffer.from(end as string)]))), `${body}${kept}`);
  }
});

test('openSecret: notices a secret that is swapped as kubelet does it', async (t) => {
  const dir = await directory(t);
  const publish = async (name: string, content: string): Promise<void> => {
    await mkdir(join(dir, name));
    await writeFile(join(dir, name, 'secret'), content);
    await symlink(name, join(dir, '..data_tmp'));
    await rename(join(dir, '..data_tmp'), join(dir, '..data'));
  };
  await publish('..1', first);
  await symlink(join('..data', 'secret'), join(dir, 'secret'));
  const source = openSecret(join(dir, 'secret'));
  t.teardown(() => source.close());
  t.is(text(source.current?.bytes), first);
  await publish('..2', second);
  await until(() => text(source.current?.bytes) === second, 'the new secret');
  t.is(text(source.former?.bytes), first);
});
