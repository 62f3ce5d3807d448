import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { pino } from 'pino';
import { Installer } from './installer.ts';

test('a configuration that cannot be put back is why the node is not ready, until it is back', async (t) => {
  const home = await mkdtemp(join(tmpdir(), 'tulle-installer-'));
  t.teardown(() => rm(home, { recursive: true }));
  const executable = join(home, 'executable');
  await writeFile(executable, 'an executable');
  const cniConfDir = join(home, 'net.d');
  const installer = new Installer({
    executable,
    cniBinDir: join(home, 'bin'),
    cniConfDir,
    conflist: '{}',
    settle: async () => {},
    log: pino({ level: 'silent' }),
  });
  const { promise: installed, resolve } = Promise.withResolvers<void>();
  installer.start(AbortSignal.timeout(10_000), resolve);
  await installed;
  t.is(installer.reason, undefined);

  await rm(cniConfDir, { recursive: true });
  await writeFile(cniConfDir, 'a file where a directory should be');
  t.throws(() => installer.keep());
  t.truthy(installer.reason);

  await rm(cniConfDir);
  installer.keep();
  t.is(installer.reason, undefined);
});
