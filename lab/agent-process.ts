/** The agent of one node, kept running as kubelet keeps a DaemonSet's container running. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readdir, readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { CONF_DIR } from './cni-client.ts';
import { LabError, messageOf } from './lab-error.ts';
import { inNode, type NodeRef, pathOnHost } from './node.ts';
import { until } from './until.ts';

export interface AgentStatus {
  readonly state: 'running' | 'restarting' | 'stopped';
  /** As the host numbers it. */
  readonly pid?: number;
  readonly restarts: number;
  /** A conflist is there: the runtime may attach pods. */
  readonly ready: boolean;
  /** How the last run ended: `signal SIGKILL`, `exit code 78`. */
  readonly lastEnd?: string;
}

/** The first restart is immediate; then these, doubling, and from the start again after a good run. */
const BACKOFF = { minMs: 250, maxMs: 10_000, goodRunMs: 10_000 } as const;
const READY_DEADLINE_MS = 30_000;
/** An agent that ends this often before it was ready will not become so. */
const HOPELESS_RESTARTS = 3;
const LOG_TAIL_LINES = 5;
const HOLD_DEADLINE_MS = 10_000;

export class AgentProcess {
  readonly #node: NodeRef;
  readonly #argv: readonly string[];
  readonly #logFile: string;
  readonly #log: Logger;
  #child: ChildProcess | undefined;
  #restarts = 0;
  #lastEnd: string | undefined;
  #stopped = false;
  /** Pending while the agent is held back. */
  #held: PromiseWithResolvers<void> | undefined;

  constructor(options: { node: NodeRef; argv: readonly string[]; logFile: string; log: Logger }) {
    this.#node = options.node;
    this.#argv = options.argv;
    this.#logFile = options.logFile;
    this.#log = options.log.child({ node: options.node.name });
  }

  /** Runs the agent again and again until the signal; resolves then. Never rejects. */
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
      failures = performance.now() - startMs > BACKOFF.goodRunMs ? 0 : failures + 1;
      const waitMs = failures <= 1 ? 0 : Math.min(BACKOFF.maxMs, BACKOFF.minMs * 2 ** (failures - 2));
      this.#log.warn({ end: this.#lastEnd, restarts: this.#restarts, waitMs }, 'agent ended, starting it again');
      if (waitMs > 0) await delay(waitMs, undefined, { signal }).catch(() => undefined);
    }
    this.#stopped = true;
  }

  async status(): Promise<AgentStatus> {
    const pid = await this.#pid();
    return {
      state: this.#stopped || this.#held ? 'stopped' : pid === undefined ? 'restarting' : 'running',
      ...(pid !== undefined && { pid }),
      restarts: this.#restarts,
      ready: await this.#hasConflist(),
      ...(this.#lastEnd !== undefined && { lastEnd: this.#lastEnd }),
    };
  }

  /** SIGKILL, as the kernel's OOM killer would. Returns the process that was killed. Throws LabError when none runs. */
  async kill(): Promise<number> {
    const pid = await this.#pid();
    if (pid !== undefined) {
      process.kill(pid, 'SIGKILL');
      return pid;
    }
    throw new LabError({
      operation: `kill the agent of ${this.#node.name}`,
      expected: 'a running agent',
      received: this.#lastEnd ?? 'none',
    });
  }

  /** SIGKILL, and no new one until release(). Resolves when none runs. */
  async hold(signal: AbortSignal): Promise<void> {
    this.#held ??= Promise.withResolvers();
    const wait = { describe: 'the agent to end', deadlineMs: HOLD_DEADLINE_MS, signal };
    // A new one may be about to start: then its process has no number yet.
    await until(async () => this.#child === undefined || (await this.#killChild()), wait);
  }

  /** Lets the agent run again. */
  release(): void {
    this.#held?.resolve();
    this.#held = undefined;
  }

  async #killChild(): Promise<false> {
    const pid = await this.#pid();
    if (pid !== undefined) killIfAlive(pid);
    return false;
  }

  /** Resolves when the conflist is there. Throws LabError, with the end of the log, when that does not happen. */
  async ready(signal: AbortSignal): Promise<void> {
    const wait = { describe: 'a conflist', deadlineMs: READY_DEADLINE_MS, intervalMs: 20, signal };
    try {
      await until(() => this.#isReadyOrHopeless(), wait);
    } catch (cause) {
      throw await this.#notReady(cause);
    }
  }

  async #isReadyOrHopeless(): Promise<boolean> {
    if (await this.#hasConflist()) return true;
    if (this.#stopped) throw new Error('the node ended');
    if (this.#restarts < HOPELESS_RESTARTS) return false;
    throw new Error(`the agent ended ${this.#restarts} times, the last time with ${this.#lastEnd}`);
  }

  async #notReady(cause: unknown): Promise<LabError> {
    const tail = (await readFile(this.#logFile, 'utf8')).trimEnd().split('\n').slice(-LOG_TAIL_LINES).join('\n');
    return new LabError({
      operation: `get the agent of ${this.#node.name} ready`,
      expected: `a conflist in ${CONF_DIR}`,
      received: `${messageOf(cause)}; the end of its log:\n${tail || '(empty)'}`,
      cause,
    });
  }

  async #runOnce(): Promise<string> {
    const [file, ...args] = inNode(this.#node, this.#argv);
    const log = await open(this.#logFile, 'a');
    const child = spawn(file, args, { stdio: ['ignore', log.fd, log.fd] });
    this.#child = child;
    const end = once(child, 'exit');
    await log.close();
    const [code, signalName] = (await end) as [number | null, string | null];
    this.#child = undefined;
    return signalName === null ? `exit code ${code}` : `signal ${signalName}`;
  }

  /** The agent is the only child of nsenter, which stays outside of the node to wait for it. */
  async #pid(): Promise<number | undefined> {
    const outer = this.#child?.pid;
    if (outer === undefined) return undefined;
    const children = await readFile(`/proc/${outer}/task/${outer}/children`, 'utf8').catch(() => '');
    const pid = Number.parseInt(children, 10);
    return Number.isNaN(pid) ? undefined : pid;
  }

  async #hasConflist(): Promise<boolean> {
    // Nothing can be read of a node that ended.
    const files = await readdir(pathOnHost(this.#node, CONF_DIR)).catch(() => []);
    return files.some((name) => name.endsWith('.conflist'));
  }
}

function killIfAlive(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
