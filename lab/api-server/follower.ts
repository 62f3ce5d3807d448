/** A controller's view of one kind: all objects, and what has changed since it looked last. */

import type { KindRow } from './kinds.ts';
import { type ApiObject, keyOfRef, refOf } from './objects.ts';
import type { Store } from './store.ts';

/** `before` is absent for an object that was not there, `after` for one that is gone. */
export type OnChange = (before: ApiObject | undefined, after: ApiObject | undefined) => void;

export class Follower {
  readonly #store: Store;
  readonly #row: KindRow;
  readonly #onChange: OnChange;
  readonly #objects = new Map<string, ApiObject>();
  #position = -1;

  constructor(store: Store, row: KindRow, onChange: OnChange) {
    this.#store = store;
    this.#row = row;
    this.#onChange = onChange;
  }

  /** By `<namespace>/<name>`, as of the last catchUp. */
  get objects(): ReadonlyMap<string, ApiObject> {
    return this.#objects;
  }

  /** Tells of everything that is new; of what the store has forgotten in between, only what came of it. */
  catchUp(): void {
    const history = this.#store.history(this.#row);
    if (this.#position < history.oldest) this.#compare();
    while (this.#position < history.next) {
      const { before, after } = history.at(this.#position++);
      this.#set((after ?? before)?.object as ApiObject, after?.object);
    }
  }

  #compare(): void {
    this.#position = this.#store.history(this.#row).next;
    const present = this.#store.list(this.#row).objects.map(({ object }) => object);
    const keys = new Set(present.map((object) => keyOfRef(refOf(object))));
    for (const [key, object] of [...this.#objects]) if (!keys.has(key)) this.#set(object, undefined);
    for (const object of present) this.#set(object, object);
  }

  #set(object: ApiObject, after: ApiObject | undefined): void {
    const key = keyOfRef(refOf(object));
    const before = this.#objects.get(key);
    if (before === after) return;
    if (after) this.#objects.set(key, after);
    else this.#objects.delete(key);
    this.#onChange(before, after);
  }
}
