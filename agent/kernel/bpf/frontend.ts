/** Driver of frontends: one entry each, which leads to a set or says what becomes of the connection. */
import { type Key, keyOf } from '../../model/items.ts';
import { type BackendSetId, type Frontend, isSetId } from '../../model/services.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import { KernelError } from '../errors.ts';
import {
  FRONTEND_BYTES,
  FRONTEND_KEY_BYTES,
  readFrontend,
  readFrontendKey,
  writeFrontend,
  writeFrontendKey,
} from './layout.ts';
import type { BpfMap } from './map.ts';
import { Occupancy } from './occupancy.ts';
import { type Part, removeParts, renderParts, writeParts } from './parts.ts';

export interface FrontendDriver extends Driver<'frontend'> {
  /** Entries in the map. */
  readonly entries: number;
}

/** A frontend as it was read. */
interface FoundFrontend extends Frontend {
  /** It must be written again: altered by hand, or its set has another size. */
  readonly isDamaged?: true;
}

export interface FrontendDriverOptions {
  readonly map: BpfMap;
  /** How many backends a set has that is in the kernel. */
  readonly sizeOf: (id: BackendSetId) => number | undefined;
}

export function createFrontendDriver({ map, sizeOf }: FrontendDriverOptions): FrontendDriver {
  const entries = new Occupancy<FrontendKey>();
  return {
    kind: 'frontend',
    lane: 'bpf',
    merge: 'one',
    listsAside: true,
    equal: (wanted, found) => !(found as FoundFrontend).isDamaged && isSame(wanted, found),
    list: (signal) => entries.relist((onFound) => readFrontends({ map, sizeOf, onFound }, signal)),
    async apply(batch) {
      const failures = write(
        { map, sizeOf },
        batch.filter((change) => change.action !== 'remove'),
      );
      for (const [key, error] of remove(
        map,
        batch.filter((change) => change.action === 'remove'),
      )) {
        failures.set(key, error);
      }
      for (const { key, action } of batch) {
        if (failures.has(key)) continue;
        entries.set(key, action === 'remove' ? undefined : 1);
      }
      return failures;
    },
    get entries() {
      return entries.total;
    },
  };
}

/** What the map does not hold is not compared: the Service, and which source ranges there are. */
const isSame = (a: Frontend, b: Frontend): boolean =>
  a.target === b.target &&
  a.kind === b.kind &&
  a.affinitySeconds === b.affinitySeconds &&
  a.masquerade === b.masquerade &&
  (a.sourceRanges === undefined) === (b.sourceRanges === undefined);

type FrontendKey = Key<'frontend'>;
type Write = Exclude<Change<'frontend'>, { action: 'remove' }>;
type Removal = Extract<Change<'frontend'>, { action: 'remove' }>;

function write({ map, sizeOf }: FrontendDriverOptions, changes: readonly Write[]): Map<FrontendKey, Error> {
  const wanted = changes.map(({ key, item }) => ({ key, value: item.value }));
  const { parts, failures } = renderParts(wanted, (frontend) => renderFrontend(frontend, sizeOf));
  for (const [key, error] of writeParts(map, parts)) failures.set(key, error);
  return failures;
}

function renderFrontend(frontend: Frontend, sizeOf: FrontendDriverOptions['sizeOf']): Omit<Part<FrontendKey>, 'owner'> {
  const { target } = frontend;
  const count = isSetId(target) ? sizeOf(target) : 0;
  if (count === undefined) throw setIsMissing(frontend);
  const place = { keys: renderKey(frontend), keyAt: 0, values: Buffer.alloc(FRONTEND_BYTES), valueAt: 0 };
  writeFrontend(place, frontend, count);
  return place;
}

function renderKey(frontend: Frontend): Buffer {
  const key = Buffer.alloc(FRONTEND_KEY_BYTES);
  writeFrontendKey(key, 0, frontend);
  return key;
}

const setIsMissing = (frontend: Frontend): KernelError =>
  new KernelError({
    code: 'ENOENT',
    operation: 'write',
    object: keyOf('frontend', frontend),
    detail: `expected its backend set ${frontend.target} in the kernel, got none`,
  });

function remove(map: BpfMap, changes: readonly Removal[]): Map<FrontendKey, Error> {
  return removeParts(
    map,
    changes.map(({ key, from }) => ({ owner: key, keys: renderKey(from), values: Buffer.alloc(0) })),
  );
}

/** What is in the map. Keys that no frontend has are removed at once: nothing that is wanted could ever replace them. */
async function readFrontends(
  { map, sizeOf, onFound }: FrontendDriverOptions & { readonly onFound: (key: FrontendKey, entries: number) => void },
  signal: AbortSignal,
): Promise<Map<FrontendKey, FoundFrontend>> {
  const found = new Map<FrontendKey, FoundFrontend>();
  const foreign: Buffer[] = [];
  await map.read(({ keys, values, count }) => {
    for (let i = 0; i < count; i++) {
      const place = { keys, keyAt: i * FRONTEND_KEY_BYTES, values, valueAt: i * FRONTEND_BYTES };
      const identity = readFrontendKey(keys, place.keyAt);
      if (identity === undefined) {
        foreign.push(Buffer.from(keys.subarray(place.keyAt, place.keyAt + FRONTEND_KEY_BYTES)));
        continue;
      }
      const { frontend, count: size, isSealed } = readFrontend(place, identity);
      const expected = isSetId(frontend.target) ? sizeOf(frontend.target) : 0;
      const isDamaged = !isSealed || size !== expected;
      const key = keyOf('frontend', frontend);
      found.set(key, isDamaged ? { ...frontend, isDamaged } : frontend);
      onFound(key, 1);
    }
  }, signal);
  for (const keys of foreign) map.delete({ keys, count: 1 });
  return found;
}
