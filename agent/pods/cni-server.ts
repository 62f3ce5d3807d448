/** Where the CNI executable asks: one request a connection on a Unix socket that only root can reach. */
import { chmodSync, mkdirSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Logger } from 'pino';
import {
  type AddRequest,
  CNI_CODES,
  CniError,
  type CniRequest,
  type PodResult,
  parseRequest,
  REQUEST_MAX_BYTES,
  renderAnswer,
  renderError,
  renderResult,
} from '../../cni/protocol.ts';
import type { Attachments } from './attachments.ts';
import { toCniError } from './cni-errors.ts';
import type { DeleteQueue } from './delete-queue.ts';

/** The executable connects first, and waits for the runtime's standard input for up to 5 s. */
const REQUEST_TIMEOUT_MS = 10_000;
/** Below the executable's own deadline, so that the runtime gets the reason. */
const VERB_TIMEOUT_MS = 50_000;

export interface CniCall {
  readonly verb: CniRequest['verb'] | 'unknown';
  /** CNI error code, 0 for success. */
  readonly code: number;
  readonly durationMs: number;
}

export interface CniServerOptions {
  readonly runDir: string;
  readonly attachments: Attachments;
  readonly queue: Pick<DeleteQueue, 'carryOutBefore'>;
  readonly log: Logger;
  readonly onCall?: (call: CniCall) => void;
}

export class CniServer {
  readonly #options: CniServerOptions;
  readonly #server: Server;
  /** Of the verbs that are carried out. */
  readonly #deadlines = new Set<AbortController>();
  #isClosed = false;

  constructor(options: CniServerOptions) {
    this.#options = options;
    // Half open: the executable ends its side after the request and waits for the answer.
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#receive(socket));
  }

  /** Listens on `<runDir>/cni.sock`, replacing the socket of a process that died. */
  async listen(): Promise<void> {
    const { runDir } = this.#options;
    const path = join(runDir, 'cni.sock');
    mkdirSync(runDir, { recursive: true, mode: 0o700 });
    rmSync(path, { force: true });
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(path, resolve);
    });
    chmodSync(path, 0o600);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    for (const deadline of this.#deadlines) deadline.abort(new Error('the agent stops'));
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #receive(socket: Socket): void {
    const chunks: Buffer[] = [];
    let bytes = 0;
    socket.setTimeout(REQUEST_TIMEOUT_MS, () => socket.destroy());
    socket.on('error', () => socket.destroy());
    socket.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > REQUEST_MAX_BYTES) this.#refuse(socket, `a request has at most ${REQUEST_MAX_BYTES} bytes`);
      else chunks.push(chunk);
    });
    socket.on('end', () => {
      socket.setTimeout(0);
      // The runtime's input was of no use, which the executable has told it.
      if (bytes === 0) socket.end();
      else if (!socket.destroyed && socket.writable) void this.#answer(socket, Buffer.concat(chunks));
    });
  }

  #refuse(socket: Socket, reason: string): void {
    socket.removeAllListeners('data');
    socket.resume();
    socket.end(renderAnswer(1, renderError(undefined, new CniError(CNI_CODES.decodingFailure, reason))));
  }

  async #answer(socket: Socket, bytes: Buffer): Promise<void> {
    const startedMs = performance.now();
    let request: CniRequest | undefined;
    let made: PodResult | undefined;
    let code = 0;
    let answer: Buffer;
    try {
      request = parseRequest(bytes);
      if (request.verb === 'ADD') {
        made = await this.#add(request);
        answer = renderAnswer(0, renderResult(request.config.cniVersion, made));
      } else {
        await this.#perform(request);
        answer = renderAnswer(0);
      }
    } catch (cause) {
      const error = toCniError(cause, request ? `carry out ${request.verb}` : 'read the request');
      code = error.code;
      answer = renderAnswer(1, renderError(versionOf(request), error));
    }
    if (made) this.#undoUnlessRead(socket, made);
    socket.end(answer);
    // The runtime does not wait for this.
    this.#report(request, code, performance.now() - startedMs, answer);
  }

  async #add(request: AddRequest): Promise<PodResult> {
    await this.#options.queue.carryOutBefore(request);
    return this.#bounded((signal) => this.#options.attachments.add(request, signal));
  }

  /** AbortSignal.any and AbortSignal.timeout together cost what a request to the kernel does. */
  async #bounded<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const deadline = new AbortController();
    const tooLate = () => deadline.abort(new DOMException('the deadline of the call is over', 'TimeoutError'));
    const timer = setTimeout(tooLate, VERB_TIMEOUT_MS);
    this.#deadlines.add(deadline);
    if (this.#isClosed) deadline.abort(new Error('the agent stops'));
    try {
      return await work(deadline.signal);
    } finally {
      this.#deadlines.delete(deadline);
      clearTimeout(timer);
    }
  }

  /** The verbs whose success has no output (SPEC, section 2). */
  async #perform(request: Exclude<CniRequest, AddRequest>): Promise<void> {
    const { attachments } = this.#options;
    switch (request.verb) {
      case 'DEL':
        return attachments.del(request);
      case 'CHECK':
        return this.#bounded((signal) => attachments.check(request, signal));
      case 'GC':
        return attachments.gc(request);
      case 'STATUS':
        return attachments.status();
      default:
        throw new CniError(CNI_CODES.invalidEnvironment, `CNI_COMMAND ${request.verb} is not for the agent`);
    }
  }

  /** An ADD whose caller died before it read the answer would leave an attachment that no runtime knows of. */
  #undoUnlessRead(socket: Socket, made: PodResult): void {
    const { attachments, log } = this.#options;
    socket.once('error', () => {
      log.warn({ link: made.hostLink }, 'the caller of an ADD went away, which is undone');
      attachments.undo(made).catch((err: unknown) => {
        log.error({ link: made.hostLink, err }, 'an ADD without a caller cannot be undone');
      });
    });
  }

  #report(request: CniRequest | undefined, code: number, durationMs: number, answer: Buffer): void {
    const verb = request?.verb ?? 'unknown';
    this.#options.onCall?.({ verb, code, durationMs });
    const fields = {
      verb,
      containerId: request && 'containerId' in request ? request.containerId : undefined,
      durationMs: Math.round(durationMs * 100) / 100,
    };
    if (code === 0) this.#options.log.info(fields, 'CNI call');
    else this.#options.log.warn({ ...fields, code, answer: answer.toString('utf8', 0, 1000) }, 'CNI call failed');
  }
}

const versionOf = (request: CniRequest | undefined) =>
  request && 'config' in request ? request.config?.cniVersion : undefined;
