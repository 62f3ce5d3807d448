/** Calls of the real CNI executable, as a runtime makes them, against an agent that a test scripts. */
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { execa } from 'execa';

const CNI = join(import.meta.dirname, '../../cni');
export const EXECUTABLE = join(CNI, 'build/tulle-cni');
/** The same with deadlines of 0.4 s, and 2 s for standard input. */
export const IMPATIENT = `${EXECUTABLE}-test`;
/** Bound against hanging; longer than the longest deadline under test by far. */
export const TIMEOUT_MS = 20_000;

/** Builds both, if their sources changed. */
export async function makeExecutables(): Promise<void> {
  await execa('make', ['-s', '-C', CNI, 'test']);
}

export const CONFIG = JSON.stringify({ cniVersion: '0.4.0', name: 'tulle', type: 'tulle' });
export const ENVIRONMENT = {
  CNI_CONTAINERID: 'c0ffee',
  CNI_NETNS: '/proc/self/ns/net',
  CNI_IFNAME: 'eth0',
  CNI_ARGS: 'K8S_POD_NAME=web',
  CNI_PATH: '/opt/cni/bin',
};

export interface Call {
  readonly env?: Readonly<Record<string, string>>;
  readonly stdin?: string | Uint8Array;
  readonly executable?: string;
}

export interface Outcome {
  readonly exitCode: number | undefined;
  readonly stdout: string;
  /** The error object, where there is one. */
  readonly error: {
    readonly cniVersion?: string;
    readonly code?: number;
    readonly msg?: string;
    readonly details?: string;
  };
}

export const spawn = (runDir: string, verb: string, { env = {}, stdin = CONFIG, executable = EXECUTABLE }: Call) =>
  execa(executable, {
    env: { TULLE_RUN_DIR: runDir, ...ENVIRONMENT, CNI_COMMAND: verb, ...env },
    extendEnv: false,
    input: stdin,
    reject: false,
    stripFinalNewline: false,
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
  });

export async function call(runDir: string, verb: string, options: Call = {}): Promise<Outcome> {
  return outcomeOf(await spawn(runDir, verb, options));
}

export function outcomeOf({
  exitCode,
  stdout,
}: {
  readonly exitCode?: number | undefined;
  readonly stdout: string;
}): Outcome {
  return { exitCode, stdout, error: exitCode === 0 ? {} : JSON.parse(stdout) };
}

export function makeRunDir(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-cni-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  return directory;
}

export type Answer = (request: Buffer, socket: Socket) => void;

/** An agent that reads each request to its end and then does what the test wants. */
export async function listen(t: ExecutionContext, runDir: string, answer: Answer): Promise<void> {
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    const chunks: Buffer[] = [];
    sockets.add(socket);
    socket.on('data', (chunk) => chunks.push(Buffer.from(chunk)));
    socket.on('error', () => socket.destroy());
    socket.on('end', () => answer(Buffer.concat(chunks), socket));
  });
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  server.listen(join(runDir, 'cni.sock'));
  await once(server, 'listening');
}

export const queued = (runDir: string) => readdirSync(join(runDir, 'delete-queue'));
