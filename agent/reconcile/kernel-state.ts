import { isDeepStrictEqual } from 'node:util';
import type { Fragment, FragmentId } from '../model/fragment.ts';
import { type AnyItem, type Key, type Kind, kindOf } from '../model/items.ts';
import { Reachability } from './reachability.ts';

export interface Claim {
  readonly fragment: Fragment;
  readonly item: AnyItem;
}

export interface Contest {
  readonly key: Key;
  readonly winner: Fragment;
  readonly losers: readonly Fragment[];
}

export interface Problem {
  readonly fragment: FragmentId;
  readonly cause: string;
  /** One sentence for people, with the remedy. */
  readonly problem: string;
}

/**
 * What the kernel should hold: the items of all fragments in effect, indexed by key, and which keys changed since somebody
 * looked. Plain data, no I/O. The content is a function of the fragments alone, never of the order in which they came.
 */
export class KernelState {
  readonly #merge: Readonly<Record<Kind, 'one' | 'same'>>;
  readonly #graph = new Reachability();
  /** Claims of live fragments, sorted by rank; never an empty list. */
  readonly #claims = new Map<Kind, Map<Key, Claim[]>>();
  /** Keys with more than one claim: the only ones that can be contested. */
  readonly #crowded = new Set<Key>();
  /** Fragments with problems, in effect or not: few among thousands, and asked for with every status. */
  readonly #troubled = new Set<FragmentId>();
  readonly #dirty = new Map<Kind, Set<Key>>();
  readonly #listeners: ((kind: Kind) => void)[] = [];
  /** Keys that were wanted once and may not be any more. */
  #history: Set<Key> | undefined = new Set();

  constructor(merge: Readonly<Record<Kind, 'one' | 'same'>>) {
    this.#merge = merge;
  }

  /**
   * Puts a fragment in the place of the one with this id, or takes it away. Returns the keys that it touched: those of the
   * old and the new one and of shared fragments that came into effect or went out of it. Cost follows those items only. The
   * same object again is a no-op; a key becomes dirty only if what is wanted for it really changed.
   */
  replace(id: FragmentId, fragment: Fragment | undefined): readonly Key[] {
    if (fragment && fragment.id !== id)
      throw new TypeError(`cannot store fragment ${fragment.id} as ${id}: the ids differ`);
    const before = this.#graph.get(id);
    if (before === fragment) return [];
    if (fragment && fragment.problems.length > 0) this.#troubled.add(id);
    else this.#troubled.delete(id);
    const wasLive = this.#graph.isLive(id);
    const flipped = this.#graph.replace(id, fragment);

    const wantedBefore = new Map<Key, AnyItem | undefined>();
    if (before && wasLive) this.#withdraw(before, wantedBefore);
    if (fragment && this.#graph.isLive(id)) this.#enter(fragment, wantedBefore);
    for (const other of flipped) {
      const shared = other === id ? undefined : this.#graph.get(other);
      if (!shared) continue;
      if (this.#graph.isLive(other)) this.#enter(shared, wantedBefore);
      else this.#withdraw(shared, wantedBefore);
    }
    this.#markChanged(wantedBefore);
    return [...wantedBefore.keys()];
  }

  fragment(id: FragmentId): Fragment | undefined {
    return this.#graph.get(id);
  }

  /** All of them, in effect or not. */
  fragments(): Iterable<Fragment> {
    return this.#graph.all();
  }

  /** The item that should be in the kernel under this key. */
  wanted(key: Key): AnyItem | undefined {
    return this.claims(key)[0]?.item;
  }

  /** Who in effect wants something under this key, the winner first. */
  claims(key: Key): readonly Claim[] {
    return this.#claims.get(kindOf(key))?.get(key) ?? [];
  }

  /** The wanted keys of one kind. */
  keys(kind: Kind): Iterable<Key> {
    return this.#claims.get(kind)?.keys() ?? [];
  }

  count(kind: Kind): number {
    return this.#claims.get(kind)?.size ?? 0;
  }

  /** The keys to look at, which are clean from then on. */
  takeDirty(kind: Kind): Key[] {
    const dirty = this.#dirty.get(kind);
    if (!dirty) return [];
    this.#dirty.delete(kind);
    return [...dirty];
  }

  /** Asks that this key be looked at again, at once, whatever backoff it is in. */
  markDirty(key: Key): void {
    this.#noteDirty(key);
    this.#tell(kindOf(key));
  }

  /** Calls back, synchronously, whenever keys of a kind became dirty; once per replace() and kind. */
  onDirty(listener: (kind: Kind) => void): void {
    this.#listeners.push(listener);
  }

  /** Whether this key was ever wanted. True for all once forgetHistory() was called. */
  wasWanted(key: Key): boolean {
    return this.#history === undefined || this.#history.has(key) || this.wanted(key) !== undefined;
  }

  /** Ends the record of what was ever wanted; see Reconciler.enableSweep. */
  forgetHistory(): void {
    this.#history = undefined;
  }

  contested(): readonly Contest[] {
    return [...this.#crowded].sort().flatMap((key) => this.#contest(key) ?? []);
  }

  /** What could not be planned as asked, and contested keys in words, of the fragments in effect. */
  problems(): readonly Problem[] {
    const planned = [...this.#troubled]
      .filter((id) => this.#graph.isLive(id))
      .flatMap((id) => {
        const { cause, problems } = this.#graph.get(id) as Fragment;
        return problems.map((problem) => ({ fragment: id, cause, problem }));
      });
    const contested = this.contested().flatMap(({ key, winner, losers }) =>
      losers.map(({ id, cause }) => ({ fragment: id, cause, problem: contestText(key, cause, winner) })),
    );
    return [...planned, ...contested];
  }

  #enter(fragment: Fragment, wantedBefore: Map<Key, AnyItem | undefined>): void {
    for (const item of fragment.items) {
      const { kind, key } = item;
      const ofKind = this.#claimsOf(kind);
      const claims = ofKind.get(key);
      if (!wantedBefore.has(key)) wantedBefore.set(key, claims?.[0]?.item);
      if (claims) {
        claims.splice(placeAfter(claims, fragment), 0, { fragment, item });
        this.#crowded.add(key);
        // Nearly all have one: a list that is made with it has room for one, an empty one that grows takes room for many.
      } else ofKind.set(key, [{ fragment, item }]);
    }
  }

  #claimsOf(kind: Kind): Map<Key, Claim[]> {
    const known = this.#claims.get(kind);
    if (known) return known;
    const made = new Map<Key, Claim[]>();
    this.#claims.set(kind, made);
    return made;
  }

  #withdraw(fragment: Fragment, wantedBefore: Map<Key, AnyItem | undefined>): void {
    for (const { kind, key } of fragment.items) {
      const ofKind = this.#claimsOf(kind);
      const claims = ofKind.get(key) ?? [];
      if (!wantedBefore.has(key)) wantedBefore.set(key, claims[0]?.item);
      claims.splice(placeAfter(claims, fragment) - 1, 1);
      if (claims.length === 1) this.#crowded.delete(key);
      if (claims.length > 0) continue;
      ofKind.delete(key);
      this.#history?.add(key);
    }
  }

  #markChanged(wantedBefore: ReadonlyMap<Key, AnyItem | undefined>): void {
    const kinds = new Set<Kind>();
    for (const [key, before] of wantedBefore) {
      if (isSameItem(before, this.wanted(key))) continue;
      this.#noteDirty(key);
      kinds.add(kindOf(key));
    }
    for (const kind of kinds) this.#tell(kind);
  }

  #noteDirty(key: Key): void {
    const kind = kindOf(key);
    const dirty = this.#dirty.get(kind);
    if (dirty) dirty.add(key);
    else this.#dirty.set(kind, new Set([key]));
  }

  #tell(kind: Kind): void {
    for (const listener of this.#listeners) listener(kind);
  }

  #contest(key: Key): Contest | undefined {
    const [winning, ...others] = this.claims(key);
    if (!winning) return undefined;
    const coexists = ({ fragment, item }: Claim): boolean =>
      (this.#merge[kindOf(key)] === 'same' || fragment === winning.fragment) &&
      isDeepStrictEqual(item.value, winning.item.value);
    const losers = new Set(others.filter((claim) => !coexists(claim)).map(({ fragment }) => fragment));
    return losers.size > 0 ? { key, winner: winning.fragment, losers: [...losers] } : undefined;
  }
}

/** Rank decides, then the id; by code units, so that every node decides alike. */
function isBefore(a: Fragment, b: Fragment): boolean {
  return a.rank === b.rank ? a.id < b.id : a.rank < b.rank;
}

/** Index after the last claim of this fragment or of one before it (binary search). */
function placeAfter(claims: readonly Claim[], fragment: Fragment): number {
  let low = 0;
  let high = claims.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isBefore(fragment, (claims[middle] as Claim).fragment)) high = middle;
    else low = middle + 1;
  }
  return low;
}

function isSameItem(a: AnyItem | undefined, b: AnyItem | undefined): boolean {
  if (a === b) return true;
  return (
    a !== undefined && b !== undefined && isDeepStrictEqual(a.value, b.value) && isDeepStrictEqual(a.needs, b.needs)
  );
}

const contestText = (key: Key, loser: string, winner: Fragment): string =>
  `${loser} cannot have ${key}: expected to be the only claim, but ${winner.cause} has the older one; ` +
  `give one of the two another value, or remove it`;
