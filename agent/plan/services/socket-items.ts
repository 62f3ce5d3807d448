/**
 * Services for sockets: what the eBPF programs look up when a socket of this node connects or sends. Packets that arrive
 * (the external frontends) are another renderer's.
 */

import { type AnyItem, type Item, item } from '../../model/items.ts';
import type { BackendSet, Frontend } from '../../model/services.ts';

export function socketItems(frontends: readonly Frontend[], sets: readonly BackendSet[]): readonly AnyItem[] {
  const internal = frontends.filter(({ scope }) => scope === 'internal');
  const used = new Set<string>(internal.map(({ target }) => target));
  const setItems = new Map<string, Item<'backend-set'>>();
  for (const set of sets) if (used.has(set.id)) setItems.set(set.id, item('backend-set', set));
  // A frontend switches to a set that is there already.
  const needsOf = ({ target }: Frontend) => setItems.get(target)?.key ?? [];
  const frontendItems = internal.map((frontend) => item('frontend', frontend, [needsOf(frontend)].flat()));
  return [...setItems.values(), ...frontendItems];
}
