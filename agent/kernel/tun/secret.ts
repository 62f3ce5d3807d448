/** The secret that the nodes share, read from a file that is replaced while the agent runs (a Secret mounted by kubelet). */
import { open } from 'node:fs/promises';
import { type Secret, secretOf } from './keys.ts';

/** Which secrets are good now. */
export interface SecretSource {
  /** What new sessions are made of; undefined as long as there is none. */
  current(): Secret | undefined;
  /** The one before, while nodes may not have the new one yet. */
  former(): Secret | undefined;
  /** What is wrong with the file, and what to do. */
  problem(): string | undefined;
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

/** Reads the file now and every second until the signal ends it. What was read last stays good when the file is not. */
export class SecretFile implements SecretSource {
  readonly #options: SecretFileOptions;
  #current: Secret | undefined;
  #former: { readonly secret: Secret; readonly untilMs: number } | undefined;
  #problem: string | undefined;

  constructor(options: SecretFileOptions) {
    this.#options = options;
  }

  /** Resolves once the file was read for the first time, whatever came of it. */
  async start(signal: AbortSignal): Promise<void> {
    await this.read();
    if (signal.aborted) return;
    let reading = false;
    const timer = setInterval(async () => {
      if (reading) return; // A file system that hangs.
      reading = true;
      await this.read();
      reading = false;
    }, READ_EVERY_MS);
    timer.unref();
    signal.addEventListener('abort', () => clearInterval(timer), { once: true });
  }

  current(): Secret | undefined {
    return this.#current;
  }

  former(): Secret | undefined {
    return this.#former && this.#options.clock() < this.#former.untilMs ? this.#former.secret : undefined;
  }

  problem(): string | undefined {
    return this.#problem;
  }

  /** Never throws: what is wrong is a problem. */
  async read(): Promise<void> {
    const { file } = this.#options;
    const remedy = this.#current ? 'the secret read before stays in use' : 'until then no packet passes the tunnel';
    try {
      this.#take(parseSecret(await readStart(file)));
      this.#problem = undefined;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      this.#problem = `cannot use tun.secretFile ${file}: expected ${LEAST_BYTES} to ${MOST_BYTES} bytes, got ${code ?? message}; ${remedy}`;
    }
  }

  #take(bytes: Uint8Array): void {
    if (this.#current && Buffer.compare(this.#current.bytes, bytes) === 0) return;
    if (this.#current) this.#former = { secret: this.#current, untilMs: this.#options.clock() + FORMER_MS };
    this.#current = secretOf(bytes);
  }
}

/** As much of a file as tells that it is too long. */
async function readStart(file: string): Promise<Buffer> {
  await using handle = await open(file);
  const { bytesRead, buffer } = await handle.read(Buffer.alloc(MOST_BYTES + 3), 0);
  return buffer.subarray(0, bytesRead);
}

/** All bytes but one line end, which editors and `echo` put there. Throws RangeError for what is too short or too long. */
export function parseSecret(content: Uint8Array): Uint8Array {
  const hasNewline = content.at(-1) === 0x0a;
  const end = hasNewline ? content.length - (content.at(-2) === 0x0d ? 2 : 1) : content.length;
  if (end < LEAST_BYTES) throw new RangeError(end === 0 ? 'an empty file' : `${end} bytes`);
  if (end > MOST_BYTES) throw new RangeError('more');
  return content.slice(0, end);
}
