/** What tells the runtime that pods can start: written last, when the node's own network is in the kernel, and kept there. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { installConflist, installExecutable } from './pods/install.ts';

export interface InstallerOptions {
  readonly executable: string;
  readonly cniBinDir: string;
  readonly cniConfDir: string;
  /** Text of the network configuration. */
  readonly conflist: string;
  /** Resolves when everything of the node's own network is in the kernel; rejects with what keeps it from being so. */
  readonly settle: (signal: AbortSignal) => Promise<void>;
  readonly log: Logger;
}

const RETRY_MS = 2_000;

export class Installer {
  readonly #options: InstallerOptions;
  #reason: string | undefined = 'its own network is not in the kernel yet';
  #installed = false;
  #running: Promise<void> | undefined;

  constructor(options: InstallerOptions) {
    this.#options = options;
  }

  /** Why the runtime has not been told yet; undefined when it has. */
  get reason(): string | undefined {
    return this.#reason;
  }

  /** Starts once; calls `done` when the configuration stands. Ends with the signal. */
  start(signal: AbortSignal, done: () => void): void {
    this.#running ??= this.#run(signal).then(done, (err: unknown) => {
      if (!signal.aborted) this.#options.log.error({ err }, 'the installation of the network configuration ended');
    });
  }

  /** Puts back what somebody removed or altered since. Throws the errors of the file system, which are the reason until it succeeds. */
  keep(): void {
    if (!this.#installed) return;
    try {
      this.#write();
      this.#reason = undefined;
    } catch (err) {
      this.#reason = err instanceof Error ? err.message : String(err);
      throw err;
    }
  }

  /** The reconciler has its own backoff; this only asks again, and says once what is wrong. */
  async #run(signal: AbortSignal): Promise<void> {
    for (;;) {
      try {
        await this.#options.settle(signal);
        this.#write();
        this.#reason = undefined;
        this.#installed = true;
        return;
      } catch (err) {
        signal.throwIfAborted();
        const reason = err instanceof Error ? err.message : String(err);
        if (reason !== this.#reason) this.#options.log.error({ err }, 'not ready for pods');
        this.#reason = reason;
      }
      await delay(RETRY_MS, undefined, { signal });
    }
  }

  #write(): void {
    const { executable, cniBinDir, cniConfDir, conflist } = this.#options;
    installExecutable(executable, cniBinDir);
    installConflist(conflist, cniConfDir);
  }
}
