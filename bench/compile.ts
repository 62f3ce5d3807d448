/** Our own small C programs, built when they are needed. */
import { join } from 'node:path';
import { execa } from 'execa';

const TIMEOUT_MS = 60_000;

/** Compiles bench/NAME.c into the directory and returns the program's path. Rejects with what gcc says. */
export async function compile(name: string, directory: string, signal: AbortSignal): Promise<string> {
  const program = join(directory, name);
  const source = join(import.meta.dirname, `${name}.c`);
  const flags = ['-std=gnu11', '-O2', '-Wall', '-Wextra', '-Werror', '-pthread'];
  await execa('gcc', [...flags, source, '-o', program], { timeout: TIMEOUT_MS, cancelSignal: signal });
  return program;
}
