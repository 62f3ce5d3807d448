/** What happened to the objects of one kind, oldest first and bounded: what watches and old snapshots are read from. */

import { expired } from './status.ts';

/**
 * Events have a position, counted from 0 since the start and never reused, so that a reader is one number and needs no
 * queue of its own: a slow reader finds that its position has been forgotten.
 */
export class History<Event extends { readonly revision: number }> {
  readonly #limit: number;
  #events: Event[] = [];
  /** Position of the first event of the array; those before #oldest in it are forgotten and wait to be cut off. */
  #base = 0;
  #oldest = 0;
  #compacted: number;

  /** At most `limit` events are kept; those up to the revision `compacted` happened before this history began. */
  constructor(limit: number, compacted = 0) {
    this.#limit = limit;
    this.#compacted = compacted;
  }

  /** Revision up to which events are forgotten. */
  get compacted(): number {
    return this.#compacted;
  }

  /** Position of the oldest event that is still known. */
  get oldest(): number {
    return this.#oldest;
  }

  /** Position that the next event will have. */
  get next(): number {
    return this.#base + this.#events.length;
  }

  append(event: Event): void {
    this.#events.push(event);
    while (this.next - this.#oldest > this.#limit) this.#forgetOldest();
  }

  /** Throws RangeError for a position that is forgotten or yet to come. */
  at(position: number): Event {
    const event = position < this.#oldest ? undefined : this.#events[position - this.#base];
    if (!event) throw new RangeError(`no event at ${position}: known are ${this.#oldest} to ${this.next}`);
    return event;
  }

  /** Position of the first event after a revision. Throws StatusError 410 when some of those are forgotten. */
  positionAfter(revision: number): number {
    if (revision < this.#compacted) throw expired(revision, this.#compacted);
    let low = this.#oldest;
    let high = this.next;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.at(middle).revision > revision) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Forgets everything up to and including a revision. */
  compact(revision: number): void {
    while (this.#oldest < this.next && this.at(this.#oldest).revision <= revision) this.#forgetOldest();
    this.#compacted = Math.max(this.#compacted, revision);
  }

  #forgetOldest(): void {
    this.#compacted = Math.max(this.#compacted, this.at(this.#oldest).revision);
    this.#oldest++;
    // Cut in large pieces: one shift an event would move the whole array each time.
    if (this.#oldest - this.#base <= this.#events.length / 2) return;
    this.#events = this.#events.slice(this.#oldest - this.#base);
    this.#base = this.#oldest;
  }
}
