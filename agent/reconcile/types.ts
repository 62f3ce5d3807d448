/** The small shapes that everything which touches the kernel shares. See ARCHITECTURE.md, "One idea". */
import type { Item, Key, Kind, Objects } from '../model/items.ts';

/** Batches of one lane run one at a time; lanes run side by side. See Driver.listsAside. */
export type Lane = 'netlink' | 'netfilter' | 'bpf';

export type Change<K extends Kind = Kind> = K extends Kind
  ?
      | { readonly action: 'create'; readonly kind: K; readonly key: Key<K>; readonly item: Item<K> }
      | {
          readonly action: 'update';
          readonly kind: K;
          readonly key: Key<K>;
          readonly item: Item<K>;
          readonly from: Objects[K];
        }
      | { readonly action: 'remove'; readonly kind: K; readonly key: Key<K>; readonly from: Objects[K] }
  : never;

/** How a driver's watch reports what it sees. */
export interface Notice<K extends Kind> {
  /** One object is now as given, or gone. Reports that equal what is known are ignored by the reconciler. */
  found(key: Key<K>, value: Objects[K] | undefined): void;
  /** What is known of this kind may be wrong (overrun, link down, address removed): list it again. */
  stale(reason: string): void;
  /** What was in the way of wanted objects like these may be gone: those that failed are tried again at once. */
  freed(isMeant: (wanted: Objects[K]) => boolean): void;
}

/** Moves one kind of object between the kernel and plain values. */
export interface Driver<K extends Kind> {
  readonly kind: K;
  readonly lane: Lane;
  /** 'one': a key belongs to one fragment, others are contested. 'same': fragments may share a key with an equal value. */
  readonly merge: 'one' | 'same';
  /** Changes in one apply(), where each call has a price of its own that makes more of them better than the usual number. */
  readonly batchSize?: number;
  /**
   * list() may run while batches of its lane are applied, of this kind, too: for what takes so long to list that no change
   * should wait. What is written meanwhile may be listed as it was or as it is, or in part.
   */
  readonly listsAside?: true;
  /** Whether the found object is what is wanted; fields that the kernel cannot show are not compared. */
  equal(wanted: Objects[K], found: Objects[K]): boolean;
  /** Everything that is marked as Tulle's own, wanted or not (see the ownership table). */
  list(signal: AbortSignal): Promise<ReadonlyMap<Key<K>, Objects[K]>>;
  /** Starts reporting and returns; stops with the signal. */
  watch?(notice: Notice<K>, signal: AbortSignal): void;
  /**
   * Applies one bounded batch: all creates and updates, or all removals, in the order given. Idempotent. Returns the
   * failures; a key that is absent succeeded. Never throws for a single object's sake.
   */
  apply(batch: readonly Change<K>[], signal: AbortSignal): Promise<ReadonlyMap<Key<K>, Error>>;
}

export type AnyDriver = { [K in Kind]: Driver<K> }[Kind];
export type Drivers = { readonly [K in Kind]: Driver<K> };
