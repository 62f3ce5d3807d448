/** Entries of a map that belong to items, written and removed in batches, with failures by item. */
import { KernelError } from '../errors.ts';
import type { BpfMap } from './map.ts';

/** Entries in the order in which they are written. Those of one owner stand together. */
export class Rows<Owner> {
  readonly owners: readonly Owner[];
  readonly keys: Buffer;
  readonly values: Buffer;
  readonly #map: BpfMap;

  /** Of as many entries as there are owners, all zero. */
  constructor(map: BpfMap, owners: readonly Owner[]) {
    this.#map = map;
    this.owners = owners;
    this.keys = Buffer.alloc(owners.length * map.keyBytes);
    this.values = Buffer.alloc(owners.length * map.valueBytes);
  }

  /** Where the key and the value of entry `i` are. */
  at(i: number): { keys: Buffer; keyAt: number; values: Buffer; valueAt: number } {
    return { keys: this.keys, keyAt: i * this.#map.keyBytes, values: this.values, valueAt: i * this.#map.valueBytes };
  }

  /** Writes all; an owner one of whose entries fails is given up, and has perhaps some of them. */
  write(): Map<Owner, Error> {
    const failures = new Map<Owner, Error>();
    for (let i = 0; i < this.owners.length; ) {
      const { done, error } = this.#map.update(this.#from(i));
      i += done;
      if (error === undefined) continue;
      const owner = this.owners[i] as Owner;
      failures.set(owner, error as Error);
      while (i < this.owners.length && this.owners[i] === owner) i++;
    }
    return failures;
  }

  /** Removes all that are there. */
  remove(): Map<Owner, Error> {
    const failures = new Map<Owner, Error>();
    for (let i = 0; i < this.owners.length; ) {
      const { done, error } = this.#map.delete(this.#from(i));
      i += done;
      if (error === undefined) continue;
      if (!(error instanceof KernelError && error.code === 'ENOENT'))
        failures.set(this.owners[i] as Owner, error as Error);
      i++;
    }
    return failures;
  }

  #from(i: number): { keys: Buffer; values: Buffer; count: number } {
    const { keyAt, valueAt } = this.at(i);
    return { keys: this.keys.subarray(keyAt), values: this.values.subarray(valueAt), count: this.owners.length - i };
  }
}
