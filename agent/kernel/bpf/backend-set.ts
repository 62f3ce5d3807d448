/**
 * Driver of backend sets: one entry a backend, under the set's id and a slot. An id stands for its content, so a set is
 * written before anything leads to it, and never changes; what differs from its id's content was altered by hand.
 */
import { type Family, familyOf } from '../../model/ip.ts';
import { type Key, keyOf } from '../../model/items.ts';
import { type Backend, type BackendSet, type BackendSetId, compareBackends } from '../../model/services.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import { ASIDE_MS, inTurns } from '../../turns.ts';
import {
  BACKEND_BYTES,
  BACKEND_KEY_BYTES,
  isBackendSealed,
  type Place,
  readBackendKey,
  readEndpoint,
  sealBackend,
  writeBackendKey,
  writeEndpoint,
} from './layout.ts';
import type { BpfMap } from './map.ts';
import { Occupancy } from './occupancy.ts';
import { type Part, removeParts, renderParts, writeParts } from './parts.ts';

export interface BackendSetDriver extends Driver<'backend-set'> {
  /** How many backends the set has in the map; undefined when it is not there whole. */
  sizeOf(id: BackendSetId): number | undefined;
  /** Entries in the map. */
  readonly entries: number;
}

/** A set as it was read. */
interface FoundSet extends BackendSet {
  /** Given where they are not 0, 1, 2 ... with what belongs there. */
  readonly damagedSlots?: readonly number[];
}

export function createBackendSetDriver({ map }: { map: BpfMap }): BackendSetDriver {
  const sizes = new Occupancy<BackendSetId>();
  return {
    kind: 'backend-set',
    lane: 'bpf',
    merge: 'same',
    listsAside: true,
    equal: (wanted, found) =>
      (found as FoundSet).damagedSlots === undefined && isSameContent(wanted.backends, found.backends),
    list: (signal) =>
      sizes.relist((onWhole) => readSets(map, ({ id, backends }) => onWhole(id, backends.length), signal)),
    async apply(batch) {
      const writes = batch.filter((change) => change.action !== 'remove');
      const failures = write(map, writes);
      for (const { key, item } of writes) {
        sizes.set(item.value.id, failures.has(key) ? undefined : item.value.backends.length);
      }
      const removals = batch.filter((change) => change.action === 'remove');
      for (const { from } of removals) sizes.set(from.id, undefined);
      const parts = removals.map(({ key, from }) => renderSlots(key, from.id, slotsOf(from)));
      for (const [key, error] of removeParts(map, parts)) failures.set(key, error);
      return failures;
    },
    sizeOf: (id) => sizes.of(id),
    get entries() {
      return sizes.total;
    },
  };
}

/** The found ones come in the order of the slots. */
function isSameContent(wanted: readonly Backend[], found: readonly Backend[]): boolean {
  if (wanted === found) return true;
  if (wanted.length !== found.length) return false;
  const sorted = found.toSorted(compareBackends);
  return wanted.every((backend, i) => compareBackends(backend, sorted[i] as Backend) === 0);
}

type SetKey = Key<'backend-set'>;
type Write = Exclude<Change<'backend-set'>, { action: 'remove' }>;

/** Then takes away what an altered set had besides. */
function write(map: BpfMap, changes: readonly Write[]): Map<SetKey, Error> {
  const wanted = changes.map(({ key, item }) => ({ key, value: item.value }));
  const { parts, failures } = renderParts(wanted, renderSet);
  for (const [key, error] of writeParts(map, parts)) failures.set(key, error);
  const superfluous = changes.flatMap((change) => {
    if (change.action === 'create' || failures.has(change.key)) return [];
    const { id, backends } = change.item.value;
    const slots = slotsOf(change.from).filter((slot) => slot >= backends.length);
    return slots.length > 0 ? renderSlots(change.key, id, slots) : [];
  });
  for (const [key, error] of removeParts(map, superfluous)) failures.set(key, error);
  return failures;
}

/** The entries of a set, sorted by their bytes. */
function renderSet({ id, backends }: BackendSet): Omit<Part<SetKey>, 'owner'> {
  const endpoints = backends.map((backend) => {
    const endpoint = Buffer.alloc(BACKEND_BYTES);
    writeEndpoint(endpoint, 0, backend);
    return endpoint;
  });
  const values = Buffer.concat(endpoints.sort(Buffer.compare));
  const keys = Buffer.alloc(backends.length * BACKEND_KEY_BYTES);
  for (const slot of backends.keys()) {
    const place = placeOf(keys, values, slot);
    writeBackendKey(keys, place.keyAt, id, slot);
    sealBackend(place);
  }
  return { keys, values };
}

const placeOf = (keys: Buffer, values: Buffer, i: number): Place => ({
  keys,
  keyAt: i * BACKEND_KEY_BYTES,
  values,
  valueAt: i * BACKEND_BYTES,
});

const slotsOf = (set: FoundSet): readonly number[] => set.damagedSlots ?? [...set.backends.keys()];

function renderSlots(owner: SetKey, id: BackendSetId, slots: readonly number[]): Part<SetKey> {
  const keys = Buffer.alloc(slots.length * BACKEND_KEY_BYTES);
  for (const [i, slot] of slots.entries()) writeBackendKey(keys, i * BACKEND_KEY_BYTES, id, slot);
  return { owner, keys, values: Buffer.alloc(0) };
}

/** What is in the map, by set. */
async function readSets(
  map: BpfMap,
  onWhole: (set: FoundSet) => void,
  signal: AbortSignal,
): Promise<Map<SetKey, FoundSet>> {
  const slots = new Map<BackendSetId, [slot: number, backend: Backend | undefined][]>();
  await map.read(({ keys, values, count }) => {
    for (let i = 0; i < count; i++) {
      const place = placeOf(keys, values, i);
      const { set, slot } = readBackendKey(keys, place.keyAt);
      const backend = isBackendSealed(place) ? readEndpoint(values, place.valueAt) : undefined;
      const known = slots.get(set);
      if (known) known.push([slot, backend]);
      else slots.set(set, [[slot, backend]]);
    }
  }, signal);
  return inTurns(foundSets(slots, onWhole), signal, ASIDE_MS);
}

function* foundSets(
  slots: ReadonlyMap<BackendSetId, [slot: number, backend: Backend | undefined][]>,
  onWhole: (set: FoundSet) => void,
): Generator<void, Map<SetKey, FoundSet>> {
  const found = new Map<SetKey, FoundSet>();
  for (const [id, entries] of slots) {
    const set = foundSet(id, entries);
    found.set(keyOf('backend-set', set), set);
    if (set.damagedSlots === undefined) onWhole(set);
    yield;
  }
  return found;
}

function foundSet(id: BackendSetId, entries: [slot: number, backend: Backend | undefined][]): FoundSet {
  entries.sort(([a], [b]) => a - b);
  const backends = entries.flatMap(([, backend]) => backend ?? []);
  const family: Family = backends[0] ? familyOf(backends[0].ip) : 'ipv4';
  const isWhole = entries.every(([slot, backend], i) => slot === i && backend !== undefined);
  return { id, family, backends, ...(!isWhole && { damagedSlots: entries.map(([slot]) => slot) }) };
}
