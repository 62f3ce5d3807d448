/**
 * DELs that came while no agent listened: files that the executable left, each one whole request. See cni/tulle-cni.c for
 * the other half of the lock.
 */
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { type AttachmentId, type CniRequest, deleteQueueName, parseRequest } from '../../cni/protocol.ts';
import { tryLockExclusive } from '../kernel/libc.ts';
import type { Attachments } from './attachments.ts';

/** Holders keep the lock for one file's writing; one that hangs must not keep the agent from starting. */
const LOCK_ATTEMPTS = 500;
const LOCK_PAUSE_MS = 10;

export interface DeleteQueueOptions {
  readonly runDir: string;
  readonly attachments: Attachments;
  readonly log: Logger;
}

export class DeleteQueue {
  readonly #options: DeleteQueueOptions;
  readonly #directory: string;

  constructor(options: DeleteQueueOptions) {
    this.#options = options;
    this.#directory = join(options.runDir, 'delete-queue');
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
  }

  /** Carries out what is queued and then runs `listen`, both under the lock: no request falls between the two. */
  async drainThen(listen: () => Promise<void>): Promise<void> {
    const lock = openSync(join(this.#options.runDir, 'delete-queue.lock'), 'a', 0o600);
    try {
      if (await this.#lock(lock)) this.#sweep();
      await this.#carryOutAll();
      await listen();
    } finally {
      closeSync(lock);
    }
  }

  /**
   * Carries out the queued DEL of one attachment, before its next ADD: runtimes may use a container id again, and a DEL that
   * was queued while the agent did not answer must not take the new attachment away.
   */
  async carryOutBefore({ containerId, ifName }: AttachmentId): Promise<void> {
    const path = join(this.#directory, deleteQueueName(containerId, ifName));
    if (existsSync(path)) await this.#carryOut(path);
  }

  /** Carries out what is queued; what fails stays for the next time. */
  async drain(): Promise<void> {
    if (readdirSync(this.#directory).some(isBeingWritten)) this.#sweepIfFree();
    await this.#carryOutAll();
  }

  async #carryOutAll(): Promise<void> {
    for (const name of readdirSync(this.#directory)) {
      if (!/^[0-9a-f]{16}$/.test(name)) continue;
      await this.#carryOut(join(this.#directory, name));
    }
  }

  /** What executables left that were killed while they wrote. Only under the lock: then nobody writes. */
  #sweep(): void {
    for (const name of readdirSync(this.#directory).filter(isBeingWritten))
      rmSync(join(this.#directory, name), { force: true });
  }

  #sweepIfFree(): void {
    const lock = openSync(join(this.#options.runDir, 'delete-queue.lock'), 'a', 0o600);
    try {
      if (tryLockExclusive(lock)) this.#sweep();
    } finally {
      closeSync(lock);
    }
  }

  async #carryOut(path: string): Promise<void> {
    const { attachments, log } = this.#options;
    const request = this.#read(path);
    try {
      if (request?.verb === 'DEL') await attachments.del(request);
      rmSync(path, { force: true });
    } catch (err) {
      log.warn({ err, path }, 'a queued DEL failed and stays queued');
    }
  }

  /** What cannot be understood now never will be: its attachment is collected when the namespace is gone. */
  #read(path: string): CniRequest | undefined {
    try {
      return parseRequest(readFileSync(path));
    } catch (err) {
      this.#options.log.warn({ err, path }, 'a queued DEL cannot be read and is dropped');
      return undefined;
    }
  }

  /** Whether it was to be had. */
  async #lock(fd: number): Promise<boolean> {
    for (let attempt = 0; attempt < LOCK_ATTEMPTS; attempt++) {
      if (tryLockExclusive(fd)) return true;
      await delay(LOCK_PAUSE_MS);
    }
    this.#options.log.warn(
      { path: join(this.#options.runDir, 'delete-queue.lock') },
      'a CNI executable holds the lock of the delete queue for seconds: going on without',
    );
    return false;
  }
}

/** Files are renamed once they are whole. */
const isBeingWritten = (name: string): boolean => name.startsWith('.');
