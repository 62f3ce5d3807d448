/** One hash map of the kernel, or whatever stands for it: entries go in and out in batches. */
import { closeSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { KernelError } from '../errors.ts';
import { type BatchResult, type Cursor, deleteBatch, type Entries, lookupBatch, updateBatch } from './commands.ts';

export interface BpfMap {
  readonly name: string;
  readonly keyBytes: number;
  readonly valueBytes: number;
  readonly maxEntries: number;
  /** Writes entries from the first on until one fails. */
  update(entries: Required<Entries>): BatchResult;
  /** The same for removing; an entry that is not there fails with ENOENT. */
  delete(entries: Entries): BatchResult;
  /**
   * All entries, in no order, in pieces. What is there from the beginning to the end comes exactly once, whatever else changes
   * meanwhile: the kernel reads bucket by bucket. Rejects with KernelError, or with the signal's reason.
   */
  read(onEntries: (entries: Required<Entries>) => void, signal: AbortSignal): Promise<void>;
}

/** Entries that one call reads: to make values of them takes a millisecond, after which others get their turn. */
const READ_ENTRIES = 256;

/** A map of the kernel by its descriptor, which belongs to it. */
export class KernelMap implements BpfMap {
  readonly name: string;
  readonly keyBytes: number;
  readonly valueBytes: number;
  readonly maxEntries: number;
  readonly fd: number;

  constructor(fd: number, shape: Pick<BpfMap, 'name' | 'keyBytes' | 'valueBytes' | 'maxEntries'>) {
    this.fd = fd;
    this.name = shape.name;
    this.keyBytes = shape.keyBytes;
    this.valueBytes = shape.valueBytes;
    this.maxEntries = shape.maxEntries;
  }

  update(entries: Required<Entries>): BatchResult {
    return this.#explained(updateBatch(this.fd, entries, this.#object));
  }

  delete(entries: Entries): BatchResult {
    return deleteBatch(this.fd, entries, this.#object);
  }

  async read(onEntries: (entries: Required<Entries>) => void, signal: AbortSignal): Promise<void> {
    const keys = Buffer.alloc(READ_ENTRIES * this.keyBytes);
    const values = Buffer.alloc(READ_ENTRIES * this.valueBytes);
    let cursor: Cursor | undefined;
    do {
      const { count, next } = lookupBatch(this.fd, { keys, values, count: READ_ENTRIES }, cursor, this.#object);
      onEntries({ keys, values, count });
      cursor = next;
      if (cursor) await nextTurn(undefined, { signal });
    } while (cursor);
  }

  close(): void {
    closeSync(this.fd);
  }

  get #object(): string {
    return `entries of map ${this.name}`;
  }

  /** E2BIG is what a full map says, and nothing that a person could understand. */
  #explained({ done, error }: BatchResult): BatchResult {
    if (!(error instanceof KernelError) || error.code !== 'E2BIG')
      return error === undefined ? { done } : { done, error };
    const detail = `it is full: it holds ${this.maxEntries} entries, which the settings allow`;
    return { done, error: new KernelError({ ...error, code: 'ENOSPC', detail, cause: error }) };
  }
}
