/** Starts the few tools that Tulle needs (iptables-restore, ipset): never a shell, always with an end. */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ExecaError, execa } from 'execa';
import type { Logger } from 'pino';
import { KernelError } from './errors.ts';

export interface Command {
  /** Name of a program in SEARCH_PATH, or an absolute path. */
  readonly file: string;
  readonly args: readonly string[];
  readonly stdin?: string;
  /** After this time the process is killed and the call fails with ETIMEDOUT. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
  /** Called with each line of stdout as it comes; stdout is then not collected. */
  readonly onLine?: (line: string) => void;
}

/** What drivers need of a tool; the fakes of the tests implement it too. */
export type Run = (command: Command) => Promise<{ readonly stdout: string }>;

const SEARCH_PATH = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
const ENVIRONMENT = { PATH: SEARCH_PATH.join(':'), LC_ALL: 'C' };
/** Characters kept of stdout and stderr; a longer stdout fails the call (use onLine). */
const OUTPUT_LIMIT = 16 << 20;
const DETAIL_LIMIT = 600;

/** Debian package by the beginning of the program's name. */
const PACKAGES: readonly (readonly [prefix: string, name: string])[] = [
  ['iptables', 'iptables'],
  ['ip6tables', 'iptables'],
  ['ipset', 'ipset'],
  ['nsenter', 'util-linux'],
  ['ip', 'iproute2'],
];

/** Errno by what the tools say, first match wins. None of them reports the kernel's errno as such. */
const CODES: readonly (readonly [RegExp, string])[] = [
  [/xtables lock|Resource temporarily unavailable/i, 'EAGAIN'],
  [/resource busy|in use by a kernel component/i, 'EBUSY'],
  [/not permitted|permission denied|must be root/i, 'EPERM'],
  [/address family not supported/i, 'EAFNOSUPPORT'],
  [/protocol not supported/i, 'EPROTONOSUPPORT'],
  [/table does not exist|can't initialize ip6?tables/i, 'ENOPROTOOPT'],
  [/(set|chain|element).*(already exists|already added)|File exists/i, 'EEXIST'],
  [/hash is full|No space left/i, 'ENOSPC'],
  [/cannot allocate memory|memory allocation/i, 'ENOMEM'],
  [/bad rule|does(n't| not) exist|no such file|no chain\/target\/match/i, 'ENOENT'],
  [/invalid|unknown option|bad argument|syntax error|not supported/i, 'EINVAL'],
];

const paths = new Map<string, string>();

/**
 * Runs one program to its end. Rejects with KernelError: ENOPKG when it is not installed, ETIMEDOUT after a kill,
 * ECANCELED when the signal was aborted, otherwise a code guessed from stderr, which is the error's detail.
 */
export const run: Run = async (command) => {
  const { file, args, stdin = '', timeoutMs, signal, onLine } = command;
  const subprocess = execa(pathOf(file), args, {
    input: stdin,
    env: ENVIRONMENT,
    extendEnv: false,
    timeout: timeoutMs,
    killSignal: 'SIGKILL',
    maxBuffer: OUTPUT_LIMIT,
    buffer: { stdout: onLine === undefined },
    ...(signal && { cancelSignal: signal }),
  });
  try {
    const [{ stdout }] = await Promise.all([subprocess, onLine && eachLine(subprocess.stdout, onLine)]);
    return { stdout: stdout ?? '' };
  } catch (error) {
    throw error instanceof ExecaError ? commandError(command, error) : error;
  }
};

/** Splits by hand: a hundred thousand rules through execa's line generators cost several times as much. */
async function eachLine(stream: AsyncIterable<Buffer>, onLine: (line: string) => void): Promise<void> {
  let rest = '';
  for await (const chunk of stream) {
    const lines = (rest + chunk.toString('latin1')).split('\n');
    rest = lines.pop() as string;
    for (const line of lines) onLine(line);
    // Chunks that wait already would otherwise follow in the same turn, two megabytes of them.
    await nextTurn();
  }
  if (rest !== '') onLine(rest);
}

function pathOf(file: string): string {
  const known = paths.get(file);
  if (known !== undefined) return known;
  const candidates = file.startsWith('/') ? [file] : SEARCH_PATH.map((directory) => join(directory, file));
  const path = candidates.find(isExecutable);
  if (path === undefined) throw missing(file);
  paths.set(file, path);
  return path;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** ENOPKG, so that a missing tool is never taken for a missing object. */
function missing(file: string): KernelError {
  const name = PACKAGES.find(([prefix]) => file.startsWith(prefix))?.[1] ?? file;
  const detail = `not found in ${SEARCH_PATH.join(':')}; install the Debian package ${name}`;
  return new KernelError({ code: 'ENOPKG', operation: 'run', object: file, detail });
}

function commandError({ file, args, timeoutMs }: Command, error: ExecaError): KernelError {
  const object = [file, ...args].join(' ');
  const said = oneLine(String(error.stderr ?? ''));
  const fail = (code: string, detail: string) =>
    new KernelError({ code, operation: 'run', object, detail, cause: error });
  if (error.isCanceled) return fail('ECANCELED', 'aborted');
  if (error.timedOut) return fail('ETIMEDOUT', `killed after ${timeoutMs} ms ${said}`.trim());
  if (error.isMaxBuffer) return fail('EMSGSIZE', `wrote more than ${OUTPUT_LIMIT} characters`);
  const code = CODES.find(([pattern]) => pattern.test(said))?.[1] ?? 'EIO';
  return fail(code, said || `exit code ${error.exitCode ?? error.signal ?? error.code}`);
}

/** What a tool wrote, without its advice on how to use it. */
const oneLine = (stderr: string): string =>
  stderr
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('Try `'))
    .join('; ')
    .slice(0, DETAIL_LIMIT);

/** The same, noting what ran and how long it took. */
export const logged =
  (inner: Run, log: Logger): Run =>
  async (command) => {
    const start = performance.now();
    try {
      return await inner(command);
    } finally {
      const durationMs = Math.round(performance.now() - start);
      log.debug({ command: [command.file, ...command.args], durationMs }, 'ran a command');
    }
  };
