/** The image of the process that holds a pod's namespaces, made from nothing: no registry is asked for it. */
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';

/** The whole name: containerd finds an image only under the name that it would pull it by. */
export const PAUSE_IMAGE = 'docker.io/tulle/pause:1';

const SOURCE = fileURLToPath(new URL('pause.c', import.meta.url));
const COMPILE_TIMEOUT_MS = 30_000;
/** Names of the image specification (OCI image-spec, "platform") by those of Node. */
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };

/**
 * The image as a tar that `ctr images import` reads: the layout of `docker save`, one layer with one static executable,
 * the same bytes for the same compiler. Throws execa's error when the compiler (musl-gcc) fails.
 */
export async function buildPauseImage(signal: AbortSignal): Promise<Buffer> {
  const layer = tar([{ path: 'pause', content: await compile(signal), mode: 0o755 }]);
  const config = JSON.stringify({
    architecture: ARCHITECTURES[process.arch] ?? process.arch,
    os: 'linux',
    config: { Entrypoint: ['/pause'] },
    rootfs: { type: 'layers', diff_ids: [`sha256:${sha256(layer)}`] },
  });
  const name = `${sha256(config)}.json`;
  const manifest = JSON.stringify([{ Config: name, RepoTags: [PAUSE_IMAGE], Layers: ['layer.tar'] }]);
  return tar([
    { path: 'manifest.json', content: Buffer.from(manifest), mode: 0o644 },
    { path: name, content: Buffer.from(config), mode: 0o644 },
    { path: 'layer.tar', content: layer, mode: 0o644 },
  ]);
}

async function compile(signal: AbortSignal): Promise<Buffer> {
  const dir = await mkdtemp(join(tmpdir(), 'tulle-pause-'));
  try {
    const target = join(dir, 'pause');
    const flags = ['-std=c11', '-D_POSIX_C_SOURCE=200809L', '-Os', '-Wall', '-Wextra', '-Werror', '-static', '-s'];
    await execa('musl-gcc', [...flags, SOURCE, '-o', target], { timeout: COMPILE_TIMEOUT_MS, cancelSignal: signal });
    return await readFile(target);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

interface TarFile {
  /** At most 100 bytes. */
  readonly path: string;
  readonly content: Buffer;
  readonly mode: number;
}

const BLOCK_BYTES = 512;

/** Regular files of root, from the epoch, in ustar format (POSIX.1-1988, "Extended tar Format"). */
function tar(files: readonly TarFile[]): Buffer {
  const blocks = files.flatMap((file) => [tarHeader(file), file.content, padding(file.content.length)]);
  return Buffer.concat([...blocks, Buffer.alloc(2 * BLOCK_BYTES)]);
}

const padding = (bytes: number): Buffer => Buffer.alloc((BLOCK_BYTES - (bytes % BLOCK_BYTES)) % BLOCK_BYTES);

function tarHeader({ path, content, mode }: TarFile): Buffer {
  const header = Buffer.alloc(BLOCK_BYTES);
  const octal = (value: number, offset: number, bytes: number) =>
    header.write(value.toString(8).padStart(bytes - 1, '0'), offset);
  header.write(path, 0);
  octal(mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(content.length, 124, 12);
  octal(0, 136, 12);
  header.write('0', 156);
  header.write('ustar\x0000', 257);
  // The sum counts its own field as spaces.
  header.fill(' ', 148, 156);
  octal(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    7,
  );
  header[154] = 0;
  return header;
}

const sha256 = (data: Buffer | string): string => createHash('sha256').update(data).digest('hex');
