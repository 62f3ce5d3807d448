/**
 * Services for sockets: what the eBPF programs look up when a socket of this node connects or sends. Packets that arrive
 * (the external frontends) are another renderer's.
 */
import type { Fragment } from '../../model/fragment.ts';
import { type AnyItem, type Item, item, type Key, SOCKET_HOOKS } from '../../model/items.ts';
import type { BackendSet, Frontend } from '../../model/services.ts';

const NOTHING: readonly Key[] = Object.freeze([]);

/**
 * The programs that look them up. Entered after all Services: until then those of an agent before this one go on with what
 * it wrote.
 */
export const socketPrograms = (build: string): Fragment => ({
  id: 'sockets',
  cause: 'services',
  rank: '',
  items: SOCKET_HOOKS.map((hook) => item('attachment', { hook, build })),
  requires: [],
  problems: [],
});

/** Sets first: a frontend switches to one that is there already. */
export function socketItems(frontends: readonly Frontend[], sets: readonly BackendSet[]): readonly AnyItem[] {
  const internal = frontends.filter(({ scope }) => scope === 'internal');
  const used = new Set<string>(internal.map(({ target }) => target));
  const setItems = sets.filter(({ id }) => used.has(id)).map((set) => item('backend-set', set));
  const needs = new Map<string, readonly Key[]>(setItems.map(({ key, value }) => [value.id, Object.freeze([key])]));
  const frontendItems = internal.map(
    (each): Item<'frontend'> => item('frontend', each, needs.get(each.target) ?? NOTHING),
  );
  return [...setItems, ...frontendItems];
}
