/**
 * Driver of backend sets: one entry a backend, under the set's id and a slot. An id stands for its content, so a set is
 * written before anything leads to it, and never changes; what differs from its id's content was altered by hand.
 */
import type { Family } from '../../model/ip.ts';
import { familyOf } from '../../model/ip.ts';
import { type Key, keyOf } from '../../model/items.ts';
import { type Backend, type BackendSet, type BackendSetId, compareBackends } from '../../model/services.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import {
  BACKEND_BYTES,
  BACKEND_KEY_BYTES,
  isBackendSealed,
  readBackendKey,
  readEndpoint,
  STRUCTS,
  sealBackend,
  writeBackendKey,
  writeEndpoint,
} from './layout.ts';
import type { BpfMap } from './map.ts';
import { Rows } from './rows.ts';

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
  let sizes = new Map<BackendSetId, number>();
  return {
    kind: 'backend-set',
    lane: 'bpf',
    merge: 'same',
    equal: (wanted, found) =>
      (found as FoundSet).damagedSlots === undefined && isSameContent(wanted.backends, found.backends),
    async list(signal) {
      const sets = await readSets(map, signal);
      sizes = new Map([...sets.values()].filter(isWhole).map(({ id, backends }) => [id, backends.length]));
      return sets;
    },
    async apply(batch) {
      const writes = batch.filter((change) => change.action !== 'remove');
      const failures = write(map, writes);
      for (const { key, item } of writes) if (!failures.has(key)) sizes.set(item.value.id, item.value.backends.length);
      const removals = batch.filter((change) => change.action === 'remove');
      for (const { from } of removals) sizes.delete(from.id);
      for (const [key, error] of remove(
        map,
        removals.map(({ key, from }) => [key, from.id, slotsOf(from)]),
      )) {
        failures.set(key, error);
      }
      return failures;
    },
    sizeOf: (id) => sizes.get(id),
    get entries() {
      return sizes.values().reduce((sum, size) => sum + size, 0);
    },
  };
}

const isWhole = (set: FoundSet): boolean => set.damagedSlots === undefined;

/** The found ones come in the order of the slots. */
function isSameContent(wanted: readonly Backend[], found: readonly Backend[]): boolean {
  if (wanted === found) return true;
  if (wanted.length !== found.length) return false;
  const sorted = found.toSorted(compareBackends);
  return wanted.every((backend, i) => compareBackends(backend, sorted[i] as Backend) === 0);
}

type SetKey = Key<'backend-set'>;
type Write = Exclude<Change<'backend-set'>, { action: 'remove' }>;

/** What fails is taken away again, as far as it was written; then what an altered set had besides. */
function write(map: BpfMap, changes: readonly Write[]): Map<SetKey, Error> {
  const rows = new Rows<SetKey>(
    map,
    changes.flatMap(({ key, item }) => item.value.backends.map(() => key)),
  );
  const failures = new Map<SetKey, Error>();
  let start = 0;
  for (const { item } of changes) start = renderSet(rows, start, item.value);
  for (const [key, error] of rows.write()) failures.set(key, error);
  const superfluous = changes.map((change): [SetKey, BackendSetId, readonly number[]] => {
    const { id, backends } = change.item.value;
    const before = change.action === 'update' ? slotsOf(change.from) : [];
    const isKept = (slot: number): boolean => slot < backends.length && !failures.has(change.key);
    const all = failures.has(change.key) ? [...before, ...backends.keys()] : before;
    return [change.key, id, all.filter((slot) => !isKept(slot))];
  });
  for (const [key, error] of remove(map, superfluous)) failures.set(key, error);
  return failures;
}

/** Writes the entries of one set, sorted by their bytes, from entry `start` on; returns where the next set starts. */
function renderSet(rows: Rows<unknown>, start: number, { id, backends }: BackendSet): number {
  const endpointBytes = STRUCTS.endpoint.bytes;
  const endpoints = Buffer.alloc(backends.length * endpointBytes);
  for (const [i, backend] of backends.entries()) writeEndpoint(endpoints, i * endpointBytes, backend);
  const places = backends.map((_, i) => i * endpointBytes);
  places.sort((a, b) => endpoints.compare(endpoints, b, b + endpointBytes, a, a + endpointBytes));
  for (const [slot, place] of places.entries()) {
    const { keys, keyAt, values, valueAt } = rows.at(start + slot);
    writeBackendKey(keys, keyAt, id, slot);
    endpoints.copy(values, valueAt, place, place + endpointBytes);
    sealBackend(keys, keyAt, values, valueAt);
  }
  return start + backends.length;
}

const slotsOf = (set: FoundSet): readonly number[] => set.damagedSlots ?? [...set.backends.keys()];

function remove(map: BpfMap, sets: readonly [SetKey, BackendSetId, readonly number[]][]): Map<SetKey, Error> {
  const rows = new Rows<SetKey>(
    map,
    sets.flatMap(([key, , slots]) => slots.map(() => key)),
  );
  let i = 0;
  for (const [, id, slots] of sets) {
    for (const slot of slots) {
      writeBackendKey(rows.keys, i * BACKEND_KEY_BYTES, id, slot);
      i++;
    }
  }
  return rows.remove();
}

/** What is in the map, by set. */
async function readSets(map: BpfMap, signal: AbortSignal): Promise<Map<SetKey, FoundSet>> {
  const slots = new Map<BackendSetId, [slot: number, backend: Backend | undefined][]>();
  await map.read(({ keys, values, count }) => {
    for (let i = 0; i < count; i++) {
      const [keyAt, valueAt] = [i * BACKEND_KEY_BYTES, i * BACKEND_BYTES];
      const { set, slot } = readBackendKey(keys, keyAt);
      const backend = isBackendSealed(keys, keyAt, values, valueAt) ? readEndpoint(values, valueAt) : undefined;
      const known = slots.get(set);
      if (known) known.push([slot, backend]);
      else slots.set(set, [[slot, backend]]);
    }
  }, signal);
  return new Map(
    [...slots].map(([id, entries]) => foundSet(id, entries)).map((set) => [keyOf('backend-set', set), set]),
  );
}

function foundSet(id: BackendSetId, entries: [slot: number, backend: Backend | undefined][]): FoundSet {
  entries.sort(([a], [b]) => a - b);
  const backends = entries.flatMap(([, backend]) => backend ?? []);
  const family: Family = backends[0] ? familyOf(backends[0].ip) : 'ipv4';
  const isWhole = entries.every(([slot, backend], i) => slot === i && backend !== undefined);
  return { id, family, backends, ...(!isWhole && { damagedSlots: entries.map(([slot]) => slot) }) };
}
