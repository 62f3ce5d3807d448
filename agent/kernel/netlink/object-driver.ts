/** What drivers of objects that are one request each have in common: addresses, neighbours, fdb entries, routes. */
import { type Key, type Kind, keyOf, type Objects } from '../../model/items.ts';
import type { Change, Driver, Notice } from '../../reconcile/types.ts';
import { isNotFound, KernelError } from '../errors.ts';
import type { Links } from './links.ts';
import type { NetlinkClient, NetlinkMessage, NetlinkRequest } from './message.ts';
import type { NetlinkMonitor } from './monitor.ts';
import { type LinkFacts, RTM, readLinkFacts } from './rtnetlink.ts';

/**
 * Set on a found value that differs from anything that Tulle writes in a way that the value cannot show: it never equals
 * what is wanted, so it is written again or removed.
 */
export interface Altered {
  readonly altered?: string;
}
export type Found<K extends Kind> = Objects[K] & Altered;

/** Index of a link by name. Throws KernelError ENODEV for one that does not exist. */
export type IfindexOf = (link: string) => number;

export interface ObjectKind<K extends Kind> {
  readonly kind: K;
  /** Whether every field is the same. What was altered is never equal, see Altered. */
  same(wanted: Objects[K], found: Objects[K]): boolean;
  /** Names of the links that a value speaks of. */
  linksOf(value: Objects[K]): readonly string[];
  render(change: Change<K>, ifindexOf: IfindexOf): NetlinkRequest;
  /** The dumps that show every object of this kind on these links. */
  dumps(links: readonly LinkFacts[]): readonly NetlinkRequest[];
  /** The object of a message, creations and deletions alike; undefined for what is not Tulle's own. */
  readBack(message: NetlinkMessage, links: Links): Found<K> | undefined;
  /** Whether a message says that the object is gone. */
  isGone(message: NetlinkMessage): boolean;
}

export interface ObjectDriverOptions {
  readonly client: NetlinkClient;
  readonly links: Links;
  readonly monitor?: NetlinkMonitor | undefined;
}

export const isAltered = (value: object): boolean => 'altered' in value;

/** A driver over one kind's pure halves. */
export function objectDriver<K extends Kind>(
  kind: ObjectKind<K>,
  { client, links, monitor }: ObjectDriverOptions,
): Driver<K> {
  return {
    kind: kind.kind,
    lane: 'netlink',
    merge: 'one',
    equal: (wanted, found) => !isAltered(wanted) && !isAltered(found) && kind.same(wanted, found),
    list: () => listObjects(kind, client, links),
    apply: (batch, signal) => applyObjects(kind, { client, links }, batch, signal),
    ...(monitor && {
      watch: (notice: Notice<K>, signal: AbortSignal) => watchObjects(kind, monitor, links, notice, signal),
    }),
  };
}

async function listObjects<K extends Kind>(
  kind: ObjectKind<K>,
  client: NetlinkClient,
  links: Links,
): Promise<ReadonlyMap<Key<K>, Found<K>>> {
  const found = new Map<Key<K>, Found<K>>();
  for (const dump of kind.dumps(await links.refresh())) {
    for (const message of await dumpOrNone(client, dump)) {
      const value = kind.readBack(message, links);
      if (!value || kind.isGone(message)) continue;
      const key = keyOf<K>(kind.kind, value);
      found.set(key, found.has(key) ? { ...value, altered: 'is there more than once' } : value);
    }
  }
  return found;
}

/** Before the first route of IPv4 ever, its main table does not exist. */
async function dumpOrNone(client: NetlinkClient, request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
  try {
    return await client.dump(request);
  } catch (error) {
    if (error instanceof KernelError && error.code === 'ENOENT') return [];
    throw error;
  }
}

function watchObjects<K extends Kind>(
  kind: ObjectKind<K>,
  monitor: NetlinkMonitor,
  links: Links,
  notice: Notice<K>,
  signal: AbortSignal,
): void {
  const listener = {
    message(message: NetlinkMessage, before: LinkFacts | undefined) {
      const value = kind.readBack(message, links);
      if (value) notice.found(keyOf<K>(kind.kind, value), kind.isGone(message) ? undefined : value);
      const link = usableLink(message, before, links);
      if (link !== undefined) notice.freed((wanted) => kind.linksOf(wanted).includes(link));
    },
    lost: (reason: string) => notice.stale(reason),
  };
  monitor.subscribe(listener, signal);
}

/** The link of which a message says that it has come up, or got an address: what was refused before may be taken now. */
function usableLink(message: NetlinkMessage, before: LinkFacts | undefined, links: Links): string | undefined {
  const { type, payload } = message;
  if (type === RTM.NEWADDR && payload.length >= 8) return links.byIndex(payload.readUInt32LE(4))?.name;
  const facts = type === RTM.NEWLINK && !before?.up ? readLinkFacts(message) : undefined;
  return facts?.up ? facts.name : undefined;
}

/**
 * Sends a batch in few datagrams. What fails because an index was out of date (ENODEV) is tried once more with fresh ones.
 * A removal whose object or link is gone has succeeded.
 */
async function applyObjects<K extends Kind>(
  kind: ObjectKind<K>,
  { client, links }: { client: NetlinkClient; links: Links },
  batch: readonly Change<K>[],
  signal: AbortSignal,
): Promise<ReadonlyMap<Key<K>, Error>> {
  signal.throwIfAborted();
  await links.ensure(batch.flatMap((change) => kind.linksOf(subjectOf(change))));
  const failures = await attempt(kind, client, links, batch);
  const outdated = batch.filter(
    ({ key }) => (failures.get(key as Key<K>) as KernelError | undefined)?.code === 'ENODEV',
  );
  if (outdated.length > 0) {
    await links.refresh();
    for (const { key } of outdated) failures.delete(key as Key<K>);
    for (const [key, error] of await attempt(kind, client, links, outdated)) failures.set(key, error);
  }
  for (const change of batch) {
    if (change.action === 'remove' && isNotFound(failures.get(change.key as Key<K>)))
      failures.delete(change.key as Key<K>);
  }
  return failures;
}

async function attempt<K extends Kind>(
  kind: ObjectKind<K>,
  client: NetlinkClient,
  links: Links,
  batch: readonly Change<K>[],
): Promise<Map<Key<K>, KernelError>> {
  const failures = new Map<Key<K>, KernelError>();
  const sent: { key: Key<K>; request: NetlinkRequest }[] = [];
  for (const change of batch) {
    const ifindexOf = (link: string): number => {
      const facts = links.byName(link);
      if (facts) return facts.ifindex;
      throw new KernelError({
        code: 'ENODEV',
        operation: change.action,
        object: change.key,
        detail: `link ${link} does not exist`,
      });
    };
    try {
      sent.push({ key: change.key as Key<K>, request: kind.render(change, ifindexOf) });
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      failures.set(change.key as Key<K>, error);
    }
  }
  const errors = await client.batch(sent.map(({ request }) => request));
  for (const [i, error] of errors.entries()) if (error) failures.set((sent[i] as { key: Key<K> }).key, error);
  return failures;
}

const subjectOf = <K extends Kind>(change: Change<K>): Objects[K] =>
  (change.action === 'remove' ? change.from : change.item.value) as Objects[K];
