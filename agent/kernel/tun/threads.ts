/** The two threads that carry packets, their descriptors, and what they count. */
import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { TunPathItem } from '../../model/items.ts';
import { allowInterrupts, interruptThread } from '../libc.ts';
import { Counters, INBOUND, OUTBOUND, ROWS } from './counters.ts';
import { openTunQueue } from './device.ts';
import { ATTENTION, type FromThread, type ThreadData, type ToThread } from './messages.ts';
import { openAskingSocket } from './path-mtu.ts';
import type { PeerEntry } from './peers.ts';
import { openTunnelSocket } from './socket.ts';

/** Buffers are not in V8's heap, and next to nothing is made for a packet. */
const RESOURCE_LIMITS = { maxYoungGenerationSizeMb: 2 } as const;

/** A signal that comes just before a thread waits is lost, and nobody is told: it is sent again. Seldom, as a busy thread looks anyway. */
const INTERRUPT_MS = 5;
/** A thread that has not looked by then never will. */
const EXIT_MS = 1000;

export interface ThreadsOptions {
  readonly item: TunPathItem;
  readonly onMessage: (message: Exclude<FromThread, { kind: 'taken' }>) => void;
}

interface Thread {
  readonly worker: Worker;
  readonly attention: Int32Array;
  readonly ended: Promise<void>;
}

export class Threads {
  readonly outbound = new Counters(OUTBOUND);
  readonly inbound = new Counters(INBOUND);
  /** What a packet for a peer may have, by slot, where the path takes less than the device; else 0. */
  readonly pathMtus = new Int32Array(new SharedArrayBuffer(4 * ROWS));
  readonly socketFd: number;
  readonly #tunFd: number;
  readonly #askingFd: number;
  readonly #threads: readonly Thread[];
  /** Entries that the threads have not taken up yet, by their numbers. */
  readonly #awaited = new Map<number, { left: number; readonly resolve: () => void }>();
  #lastNumber = 0;
  #interrupting: NodeJS.Timeout | undefined;
  #isStopping = false;
  #isBroken = false;

  /** Attaches to the device and binds the socket. Throws KernelError. */
  constructor({ item, onMessage }: ThreadsOptions) {
    allowInterrupts();
    const opened: number[] = [];
    const keep = (fd: number): number => {
      opened.push(fd);
      return fd;
    };
    let takesUdp: boolean;
    try {
      const queue = openTunQueue(item.link);
      this.#tunFd = keep(queue.fd);
      takesUdp = queue.takesUdp;
      this.socketFd = keep(openTunnelSocket(item.local, item.port));
      this.#askingFd = keep(openAskingSocket(item.local));
    } catch (error) {
      for (const fd of opened) closeSync(fd);
      throw error;
    }
    const shared = {
      tunFd: this.#tunFd,
      takesUdp,
      socketFd: this.socketFd,
      askingFd: this.#askingFd,
      port: item.port,
      encryption: item.encryption,
      pathMtus: this.pathMtus.buffer as SharedArrayBuffer,
    };
    this.#threads = [
      this.#start(
        { ...shared, role: 'outbound', attention: newAttention(), counters: this.outbound.shared },
        onMessage,
      ),
      this.#start({ ...shared, role: 'inbound', attention: newAttention(), counters: this.inbound.shared }, onMessage),
    ];
    process.once('exit', this.#exit);
  }

  #start(workerData: ThreadData, onMessage: ThreadsOptions['onMessage']): Thread {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), {
      workerData,
      name: `tun-${workerData.role}`,
      resourceLimits: RESOURCE_LIMITS,
    });
    const { promise, resolve } = Promise.withResolvers<void>();
    const attention = new Int32Array(workerData.attention);
    const ended = (reason: string): void => {
      Atomics.store(attention, ATTENTION.isAsked, 0);
      resolve();
      this.#broke(reason, onMessage);
    };
    worker.on('message', (message: FromThread) => {
      if (this.#isStopping) return;
      if (message.kind === 'taken') this.#taken(message.number);
      else if (message.kind === 'broken') this.#broke(message.reason, onMessage);
      else onMessage(message);
    });
    worker.on('error', (error: Error) => ended(`the thread ${workerData.role} failed: ${error.message}`));
    worker.on('exit', () => ended(`the thread ${workerData.role} ended`));
    worker.unref();
    return { worker, attention, ended: promise };
  }

  /** Told once: a thread that says so ends. */
  #broke(reason: string, onMessage: ThreadsOptions['onMessage']): void {
    if (!this.#isStopping && !this.#isBroken) onMessage({ kind: 'broken', reason });
    this.#isBroken = true;
  }

  /** Resolves once both threads act by it; never, if they are stopped before. */
  enter(entry: PeerEntry): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const number = this.#lastNumber++;
    this.#awaited.set(number, { left: this.#threads.length, resolve });
    this.#tell({ kind: 'peer', entry, number });
    return promise;
  }

  #taken(number: number): void {
    const awaited = this.#awaited.get(number);
    if (!awaited || --awaited.left > 0) return;
    this.#awaited.delete(number);
    awaited.resolve();
  }

  remove(slot: number): void {
    this.#tell({ kind: 'no-peer', slot });
  }

  #tell(message: ToThread): void {
    for (const { worker, attention } of this.#threads) {
      worker.postMessage(message);
      Atomics.store(attention, ATTENTION.isAsked, 1);
    }
    this.#interrupt();
  }

  #deaf(): readonly Thread[] {
    return this.#threads.filter(({ attention }) => Atomics.load(attention, ATTENTION.isAsked) !== 0);
  }

  /** Until both threads have looked: one that was about to wait, or does not run yet, did not hear it. */
  #interrupt(): void {
    clearTimeout(this.#interrupting);
    const deaf = this.#deaf();
    for (const { attention } of deaf) {
      const thread = Atomics.load(attention, ATTENTION.thread);
      if (thread !== 0) interruptThread(thread);
    }
    if (deaf.length > 0) this.#interrupting = setTimeout(() => this.#interrupt(), INTERRUPT_MS);
  }

  /** The process ends otherwise than by stop(): Node.js would wait for a thread for as long as the kernel keeps it. */
  readonly #exit = (): void => {
    this.#isStopping = true;
    this.#tell({ kind: 'stop' });
    const pause = new Int32Array(new SharedArrayBuffer(4));
    for (let i = 0; i < EXIT_MS / INTERRUPT_MS && this.#deaf().length > 0; i++) {
      this.#interrupt();
      Atomics.wait(pause, 0, 0, INTERRUPT_MS);
    }
  };

  /** Ends the threads, which wait for nothing else; then nobody is attached to the device. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    this.#tell({ kind: 'stop' });
    await Promise.all(this.#threads.map(({ ended }) => ended));
    clearTimeout(this.#interrupting);
    process.off('exit', this.#exit);
    for (const fd of [this.#tunFd, this.socketFd, this.#askingFd]) closeSync(fd);
  }
}

const newAttention = (): SharedArrayBuffer => new SharedArrayBuffer(4 * ATTENTION.words);
