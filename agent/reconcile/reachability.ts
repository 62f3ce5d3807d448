import type { Fragment, FragmentId } from '../model/fragment.ts';

/**
 * Which fragments are in effect: the roots (not shared), and the shared ones that a root requires, directly or through
 * others. Nothing is counted, so nothing can be counted wrong and a cycle cannot keep itself alive: after a change the
 * part of the graph below it is looked at again, held up by what is alive outside of it.
 */
export class Reachability {
  readonly #fragments = new Map<FragmentId, Fragment>();
  /** Requirers by what they require; also for ids that do not exist (yet). */
  readonly #requirers = new Map<FragmentId, Set<FragmentId>>();
  readonly #live = new Set<FragmentId>();

  isLive(id: FragmentId): boolean {
    return this.#live.has(id);
  }

  get(id: FragmentId): Fragment | undefined {
    return this.#fragments.get(id);
  }

  all(): Iterable<Fragment> {
    return this.#fragments.values();
  }

  /** Puts `after` in the place of what `id` was. Returns the ids that came alive or died by it, possibly `id` itself. */
  replace(id: FragmentId, after: Fragment | undefined): readonly FragmentId[] {
    const before = this.#fragments.get(id);
    if (after) this.#fragments.set(id, after);
    else this.#fragments.delete(id);
    return this.#reconsider(this.#rewire(id, before, after));
  }

  /** Follows the changed edges; returns the ids whose own standing may have changed. */
  #rewire(id: FragmentId, before: Fragment | undefined, after: Fragment | undefined): Set<FragmentId> {
    const [old, now] = [before?.requires ?? [], after?.requires ?? []];
    const gone = old.filter((target) => !now.includes(target));
    const come = now.filter((target) => !old.includes(target));
    for (const target of gone) this.#unlink(id, target);
    for (const target of come) this.#link(id, target);
    const changed = new Set([...gone, ...come]);
    const sameStanding = before && after && before.shared === after.shared;
    return sameStanding ? changed : changed.add(id);
  }

  #link(requirer: FragmentId, target: FragmentId): void {
    const requirers = this.#requirers.get(target);
    if (requirers) requirers.add(requirer);
    else this.#requirers.set(target, new Set([requirer]));
  }

  #unlink(requirer: FragmentId, target: FragmentId): void {
    const requirers = this.#requirers.get(target);
    requirers?.delete(requirer);
    if (requirers?.size === 0) this.#requirers.delete(target);
  }

  #reconsider(starts: Iterable<FragmentId>): FragmentId[] {
    const suspects = this.#below(starts);
    const held = [...suspects].filter((id) => this.#isHeldFromOutside(id, suspects));
    const alive = this.#below(held);
    const flipped = [...suspects].filter((id) => this.#live.has(id) !== alive.has(id));
    for (const id of flipped) if (!this.#live.delete(id)) this.#live.add(id);
    return flipped;
  }

  #isHeldFromOutside(id: FragmentId, suspects: ReadonlySet<FragmentId>): boolean {
    const fragment = this.#fragments.get(id);
    if (!fragment) return false;
    if (!fragment.shared) return true;
    for (const requirer of this.#requirers.get(id) ?? []) {
      if (this.#live.has(requirer) && !suspects.has(requirer)) return true;
    }
    return false;
  }

  /** The starts and everything they require; of the ids that do not exist only the starts. */
  #below(starts: Iterable<FragmentId>): Set<FragmentId> {
    const seen = new Set(starts);
    // A Set visits what is added while it is walked.
    for (const id of seen) {
      for (const target of this.#fragments.get(id)?.requires ?? []) if (this.#fragments.has(target)) seen.add(target);
    }
    return seen;
  }
}
