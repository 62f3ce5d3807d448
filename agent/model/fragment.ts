/** What one cause (a node, a pod, later a Service or a policy) wants in the kernel: a pure, frozen value. */
import type { AnyItem } from './items.ts';

export type FragmentId = string;

export interface Fragment {
  readonly id: FragmentId;
  /** The API object or setting that asks for it, for people: `node worker-1`, `pod default/web`. */
  readonly cause: string;
  /**
   * Decides contested keys on every node alike: the smaller string wins. `<creation time>/<uid>`, see rankOf; local
   * things that nobody can contest use ''.
   */
  readonly rank: string;
  readonly items: readonly AnyItem[];
  /** Shared fragments this one cannot do without. */
  readonly requires: readonly FragmentId[];
  /** A shared fragment takes effect only while a root requires it, directly or through others. Others are roots. */
  readonly shared?: true;
  /** What could not be planned as asked, one sentence each, with the remedy. */
  readonly problems: readonly string[];
}

/** Older objects win; among equals the smaller uid. Milliseconds since the epoch, padded so that text order is time order. */
export const rankOf = (creationMs: number, uid: string): string => `${String(creationMs).padStart(15, '0')}/${uid}`;
