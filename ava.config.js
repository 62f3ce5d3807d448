import { statSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';

const HOME = import.meta.dirname;

/** `ava` runs everything; scripts/test.ts gives it the folders of one group at a time. */
export default {
  extensions: ['ts'],
  files: ['{agent,cni,deploy,lab,scripts,bench}/**/*.test.ts', 'test/**/*.test.ts'],
  // Tests of kernel code change the network namespace of a thread: each file gets a process of its own.
  workerThreads: false,
  concurrency: 2,
  // Time without any test finishing. A bound against hanging, never a measurement.
  timeout: '60s',
  environmentVariables: compileCache(),
};

/** For the tests and each process that they start, which is what most of their time goes to; as ./tulle has it. */
function compileCache() {
  const isOwn = statSync(HOME).uid === process.geteuid?.();
  if (!isOwn || process.env.NODE_COMPILE_CACHE !== undefined) return {};
  return { NODE_COMPILE_CACHE: join(HOME, 'node_modules/.cache/tulle') };
}
