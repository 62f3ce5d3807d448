import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { execa } from 'execa';
import { buildPauseImage, PAUSE_IMAGE } from './pause-image.ts';
import { until } from './until.ts';

const TIMEOUT_MS = 60_000;

test('the pause image has one layer with one static executable, which waits for SIGTERM', async (t) => {
  const cwd = await mkdtemp(join(tmpdir(), 'tulle-test-pause-'));
  t.teardown(() => rm(cwd, { recursive: true }));
  const [image, again] = [await build(), await build()];
  t.deepEqual(image, again, 'the same bytes each time');

  await writeFile(join(cwd, 'image.tar'), image);
  await execa('tar', ['-xf', 'image.tar'], { cwd });
  const [manifest] = JSON.parse(await readFile(join(cwd, 'manifest.json'), 'utf8'));
  t.deepEqual([manifest.RepoTags, manifest.Layers], [[PAUSE_IMAGE], ['layer.tar']]);
  const { config, rootfs } = JSON.parse(await readFile(join(cwd, manifest.Config), 'utf8'));
  t.deepEqual(config, { Entrypoint: ['/pause'] });
  const [digest] = (await execa('sha256sum', ['layer.tar'], { cwd })).stdout.split(' ');
  t.deepEqual(rootfs.diff_ids, [`sha256:${digest}`]);

  const { stdout } = await execa('tar', ['-xvvf', 'layer.tar', '--numeric-owner'], { cwd });
  t.regex(stdout, /^-rwxr-xr-x 0\/0 +\d+ \S+ \S+ pause$/);
  t.false((await execa('readelf', ['-l', 'pause'], { cwd })).stdout.includes('INTERP'));
  const pause = execa(join(cwd, 'pause'), { reject: false, timeout: TIMEOUT_MS, killSignal: 'SIGKILL' });
  const waits = async () => (await readFile(`/proc/${pause.pid}/status`, 'utf8')).includes('SigCgt:\t0000000000004002');
  await until(waits, { describe: 'handlers of SIGINT and SIGTERM', deadlineMs: TIMEOUT_MS });
  pause.kill('SIGTERM');
  t.is((await pause).exitCode, 0);
});

const build = (): Promise<Buffer> => buildPauseImage(AbortSignal.timeout(TIMEOUT_MS));
