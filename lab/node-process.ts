/** A program of one node, kept running as an init system or kubelet would: the agent, containerd. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { LabError, messageOf } from './lab-error.ts';
import { inNode, type NodeRef } from './node.ts';
import { until } from './until.ts';

export interface ProcessStatus {
  readonly state: 'running' | 'restarting' | 'stopped';
  /** As the host numbers it. */
  readonly pid?: number;
  readonly restarts: number;
  /** How the last run ended: `signal SIGKILL`, `exit code 78`. */
  readonly lastEnd?: string;
}

export interface ProcessOptions {
  /** `the agent`, for messages. */
  readonly name: string;
  readonly node: NodeRef;
  readonly argv: readonly string[];
  /** Takes what it prints. */
  readonly logFile: string;
  readonly log: Logger;
}

/** The first restart is immediate; then these, doubling, and from the start again after a good run. */
const BACKOFF = { minMs: 250, maxMs: 10_000, goodRunMs: 10_000 } as const;
const READY_DEADLINE_MS = 30_000;
/** A program that ends this often before it was ready will not become so. */
const HOPELESS_RESTARTS = 3;
const LOG_TAIL_LINES = 5;
const HOLD_DEADLINE_MS = 10_000;

export class NodeProcess {
  readonly #options: ProcessOptions;
  readonly #log: Logger;
  #child: ChildProcess | undefined;
  #restarts = 0;
  #lastEnd: string | undefined;
  #stopped = false;
  /** The present run ends because somebody asked for it, which is no failure. */
  #isKilled = false;
  /** Pending while the program is held back. */
  #held: PromiseWithResolvers<void> | undefined;

  constructor(options: ProcessOptions) {
    this.#options = options;
    this.#log = options.log.child({ node: options.node.name });
  }

  /** Runs the program again and again until the signal; resolves then. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    let failures = 0;
    signal.addEventListener('abort', () => this.release(), { once: true });
    while (!signal.aborted) {
      await this.#held?.promise;
      if (signal.aborted) break;
      const startMs = performance.now();
      this.#lastEnd = await this.#runOnce().catch(messageOf);
      if (signal.aborted) break;
      this.#restarts += 1;
      failures = this.#isKilled || performance.now() - startMs > BACKOFF.goodRunMs ? 0 : failures + 1;
      this.#isKilled = false;
      const waitMs = failures <= 1 ? 0 : Math.min(BACKOFF.maxMs, BACKOFF.minMs * 2 ** (failures - 2));
      const fields = { end: this.#lastEnd, restarts: this.#restarts, waitMs };
      this.#log.warn(fields, `${this.#options.name} ended, starting it again`);
      if (waitMs > 0) await delay(waitMs, undefined, { signal }).catch(() => undefined);
    }
    this.#stopped = true;
  }

  async status(): Promise<ProcessStatus> {
    const pid = await this.#pid();
    return {
      state: this.#stopped || this.#held ? 'stopped' : pid === undefined ? 'restarting' : 'running',
      ...(pid !== undefined && { pid }),
      restarts: this.#restarts,
      ...(this.#lastEnd !== undefined && { lastEnd: this.#lastEnd }),
    };
  }

  /** SIGKILL, as the kernel's OOM killer would. Returns the process that was killed. Throws LabError when none runs. */
  async kill(): Promise<number> {
    const pid = await this.#pid();
    if (pid !== undefined) {
      process.kill(pid, 'SIGKILL');
      this.#isKilled = true;
      return pid;
    }
    throw new LabError({
      operation: `kill ${this.#title}`,
      expected: 'a running process',
      received: this.#lastEnd ?? 'none',
    });
  }

  /** SIGKILL, and no new one until release(). Resolves when none runs. */
  async hold(signal: AbortSignal): Promise<void> {
    this.#held ??= Promise.withResolvers();
    const wait = { describe: `${this.#title} to end`, deadlineMs: HOLD_DEADLINE_MS, signal };
    // A new one may be about to start: then its process has no number yet.
    await until(async () => this.#child === undefined || (await this.#killChild()), wait);
  }

  /** Lets the program run again. */
  release(): void {
    this.#held?.resolve();
    this.#held = undefined;
  }

  async #killChild(): Promise<false> {
    const pid = await this.#pid();
    if (pid === undefined) return false;
    this.#isKilled = true;
    killIfAlive(pid);
    return false;
  }

  /** Resolves when `isReady` says so. Throws LabError, with the end of the log, when that does not happen. */
  async ready(what: string, isReady: () => Promise<boolean>, signal: AbortSignal): Promise<void> {
    const wait = { describe: what, deadlineMs: READY_DEADLINE_MS, intervalMs: 20, signal };
    try {
      await until(async () => (await isReady()) || this.#isNotHopeless(), wait);
    } catch (cause) {
      throw await this.#notReady(what, cause);
    }
  }

  #isNotHopeless(): false {
    if (this.#stopped) throw new Error('the node ended');
    if (this.#restarts < HOPELESS_RESTARTS) return false;
    throw new Error(`it ended ${this.#restarts} times, the last time with ${this.#lastEnd}`);
  }

  async #notReady(expected: string, cause: unknown): Promise<LabError> {
    const log = await readFile(this.#options.logFile, 'utf8').catch(messageOf);
    const tail = log.trimEnd().split('\n').slice(-LOG_TAIL_LINES).join('\n');
    return new LabError({
      operation: `get ${this.#title} ready`,
      expected,
      received: `${messageOf(cause)}; the end of its log:\n${tail || '(empty)'}`,
      cause,
    });
  }

  get #title(): string {
    return `${this.#options.name} of ${this.#options.node.name}`;
  }

  async #runOnce(): Promise<string> {
    const { node, argv, logFile } = this.#options;
    const [file, ...args] = inNode(node, argv);
    const log = await open(logFile, 'a');
    const child = spawn(file, args, { stdio: ['ignore', log.fd, log.fd] });
    this.#child = child;
    const end = once(child, 'exit');
    await log.close();
    const [code, signalName] = (await end) as [number | null, string | null];
    this.#child = undefined;
    return signalName === null ? `exit code ${code}` : `signal ${signalName}`;
  }

  /** The program is the only child of nsenter, which stays outside of the node to wait for it. */
  async #pid(): Promise<number | undefined> {
    const outer = this.#child?.pid;
    if (outer === undefined) return undefined;
    const children = await readFile(`/proc/${outer}/task/${outer}/children`, 'utf8').catch(() => '');
    const pid = Number.parseInt(children, 10);
    return Number.isNaN(pid) ? undefined : pid;
  }
}

function killIfAlive(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
