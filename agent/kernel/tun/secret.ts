/** The secret that the nodes share, read from a file that is replaced while the agent runs (a Secret mounted by kubelet). */
import { closeSync, constants, openSync, readSync } from 'node:fs';
import { type Secret, secretOf } from './keys.ts';

/** Which secrets are good now. */
export interface SecretSource {
  /** What new sessions are made of; undefined as long as there is none. */
  readonly current: Secret | undefined;
  /** The one before, while nodes may not have the new one yet. */
  readonly former: Secret | undefined;
}

/** Fewer cannot be 256 bits of chance. */
const LEAST_BYTES = 32;
const MOST_BYTES = 4096;

/** kubelet brings a new secret to all nodes within 90 seconds or so; a node that is later has another problem. */
const FORMER_MS = 5 * 60_000;
const READ_EVERY_MS = 1_000;

export interface SecretFileOptions {
  readonly file: string;
  /** Milliseconds that only go forward. */
  readonly clock: () => number;
}

/** Reads the file now, and every second until it is closed. */
export function openSecret(file: string): SecretFile {
  const secret = new SecretFile({ file, clock: () => performance.now() });
  secret.follow();
  return secret;
}

/** What was read last stays good when the file is not. */
export class SecretFile implements SecretSource {
  readonly #options: SecretFileOptions;
  #current: Secret | undefined;
  #former: { readonly secret: Secret; readonly untilMs: number } | undefined;
  #problem: string | undefined;
  #timer: NodeJS.Timeout | undefined;

  /** Reads once; a file that cannot be used is a problem and no exception. */
  constructor(options: SecretFileOptions) {
    this.#options = options;
    this.read();
  }

  /** Reads every second. The name leads elsewhere after a change, so there is no one file to watch. */
  follow(): void {
    this.#timer ??= setInterval(() => this.read(), READ_EVERY_MS).unref();
  }

  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  get current(): Secret | undefined {
    return this.#current;
  }

  get former(): Secret | undefined {
    return this.#former && this.#options.clock() < this.#former.untilMs ? this.#former.secret : undefined;
  }

  /** What is wrong with the file, and what follows from it. */
  get problem(): string | undefined {
    return this.#problem;
  }

  read(): void {
    const { file } = this.#options;
    const remedy = this.#current ? 'the secret read before stays in use' : 'until then no packet passes the tunnel';
    try {
      this.#take(parseSecret(readStart(file)));
      this.#problem = undefined;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const expected = `a file of ${LEAST_BYTES} to ${MOST_BYTES} bytes`;
      this.#problem = `cannot use tun.secretFile ${file}: expected ${expected}, got ${code ?? message}; ${remedy}`;
    }
  }

  #take(bytes: Uint8Array): void {
    if (this.#current && Buffer.compare(this.#current.bytes, bytes) === 0) return;
    if (this.#current) this.#former = { secret: this.#current, untilMs: this.#options.clock() + FORMER_MS };
    this.#current = secretOf(bytes);
  }
}

/** As much of a file as tells that it is too long. A pipe without a writer is an empty file and nothing to wait for. */
function readStart(file: string): Buffer {
  const fd = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const bytes = Buffer.alloc(MOST_BYTES + 3);
    return bytes.subarray(0, readSync(fd, bytes));
  } finally {
    closeSync(fd);
  }
}

/** All bytes but one line end, which editors and `echo` put there. Throws RangeError for what is too short or too long. */
export function parseSecret(content: Uint8Array): Uint8Array {
  const hasNewline = content.at(-1) === 0x0a;
  const end = hasNewline ? content.length - (content.at(-2) === 0x0d ? 2 : 1) : content.length;
  if (end < LEAST_BYTES) throw new RangeError(end === 0 ? 'an empty file' : `${end} bytes`);
  if (end > MOST_BYTES) throw new RangeError('more');
  return Uint8Array.from(content.subarray(0, end));
}
