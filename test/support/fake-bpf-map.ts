/** A hash map of the kernel that is none: the same answers, and failures on request. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { BatchResult, Entries } from '../../agent/kernel/bpf/commands.ts';
import type { BpfMap } from '../../agent/kernel/bpf/map.ts';
import { KernelError } from '../../agent/kernel/errors.ts';

export class FakeBpfMap implements BpfMap {
  readonly name: string;
  readonly keyBytes: number;
  readonly valueBytes: number;
  readonly maxEntries: number;
  /** Values by the hexadecimal digits of their keys. */
  readonly store = new Map<string, Buffer>();
  /** Entries written and removed since the beginning. */
  written = 0;
  removed = 0;
  readonly #refused = new Set<string>();

  constructor({
    name,
    keyBytes,
    valueBytes,
    maxEntries,
  }: Pick<BpfMap, 'name' | 'keyBytes' | 'valueBytes' | 'maxEntries'>) {
    this.name = name;
    this.keyBytes = keyBytes;
    this.valueBytes = valueBytes;
    this.maxEntries = maxEntries;
  }

  /** Entries with this key cannot be written from now on. */
  refuse(key: Buffer): void {
    this.#refused.add(key.toString('hex'));
  }

  update({ keys, values, count }: Required<Entries>): BatchResult {
    for (let i = 0; i < count; i++) {
      const key = this.#key(keys, i);
      if (this.#refused.has(key)) return { done: i, error: this.#error('ENOMEM', 'write') };
      if (!this.store.has(key) && this.store.size >= this.maxEntries)
        return { done: i, error: this.#error('ENOSPC', 'write') };
      this.store.set(key, Buffer.from(values.subarray(i * this.valueBytes, (i + 1) * this.valueBytes)));
      this.written++;
    }
    return { done: count };
  }

  delete({ keys, count }: Entries): BatchResult {
    for (let i = 0; i < count; i++) {
      if (!this.store.delete(this.#key(keys, i))) return { done: i, error: this.#error('ENOENT', 'remove') };
      this.removed++;
    }
    return { done: count };
  }

  /** Two at a time, with a turn in between, as the map is by then. */
  async read(onEntries: (entries: Required<Entries>) => void): Promise<void> {
    let piece: [string, Buffer][] = [];
    const pass = (): void => {
      const keys = Buffer.concat(piece.map(([key]) => Buffer.from(key, 'hex')));
      onEntries({ keys, values: Buffer.concat(piece.map(([, value]) => value)), count: piece.length });
      piece = [];
    };
    for (const entry of this.store) {
      if (piece.push(entry) < 2) continue;
      pass();
      await nextTurn();
    }
    pass();
  }

  #key(keys: Buffer, i: number): string {
    return keys.toString('hex', i * this.keyBytes, (i + 1) * this.keyBytes);
  }

  #error(code: string, operation: string): KernelError {
    return new KernelError({ code, operation, object: `entries of map ${this.name}` });
  }
}
