/** Two builds of Tulle side by side and a link to the one that runs next, as the image of a DaemonSet is replaced. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';

const HOME = fileURLToPath(new URL('../..', import.meta.url));
const PARTS = ['agent', 'cni', 'ebpf', 'package.json', 'tulle'];

export interface Build {
  readonly version: string;
  /** Texts that this build has in place of those of the checkout; each must occur in its file. */
  readonly edits?: readonly { readonly file: string; readonly from: string; readonly to: string }[];
}

export interface Builds {
  /** A `tulle` that is always the one that was switched to last; the first at the beginning. */
  readonly tulle: string;
  /** What starts from now on is of this version. */
  switchTo(version: string): void;
  remove(): void;
}

/** Copies the checkout once a build, each with a CNI executable of its own, and with programs of its own where those are edited. */
export async function createBuilds(builds: readonly Build[]): Promise<Builds> {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-test-builds-'));
  const current = join(directory, 'current');
  const switchTo = (version: string) => {
    symlinkSync(version, `${current}.new`);
    renameSync(`${current}.new`, current);
  };
  await Promise.all(builds.map((build) => copyBuild(join(directory, build.version), build)));
  switchTo(builds[0]?.version as string);
  return { tulle: join(current, 'tulle'), switchTo, remove: () => rmSync(directory, { recursive: true }) };
}

async function copyBuild(home: string, { version, edits = [] }: Build): Promise<void> {
  mkdirSync(home);
  for (const part of PARTS) cpSync(join(HOME, part), join(home, part), { recursive: true });
  symlinkSync(join(HOME, 'node_modules'), join(home, 'node_modules'));
  const description = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8')) as object;
  writeFileSync(join(home, 'package.json'), JSON.stringify({ ...description, version }, undefined, 2));
  for (const { file, from, to } of edits) {
    const text = readFileSync(join(home, file), 'utf8');
    if (!text.includes(from)) throw new Error(`cannot edit ${file}: expected ${from} in it, got none`);
    writeFileSync(join(home, file), text.replaceAll(from, to));
  }
  const isMade = (part: string) => part === 'cni' || edits.some(({ file }) => file.startsWith(`${part}/`));
  for (const part of ['cni', 'ebpf'].filter(isMade)) await execa('make', ['-s', '-C', join(home, part)]);
}
