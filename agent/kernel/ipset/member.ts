/**
 * Driver of the members of own ip sets, over netlink: adding one takes microseconds where a process takes milliseconds.
 *
 * The kernel's `hash:net` cannot hold a /0: it is written as its two halves and read back as one. Because somebody may
 * want both halves as such, the driver remembers which /0 and /1 it was asked for.
 *
 * An IPv4 `hash:ip` set takes a CIDR for all of its addresses, one element each: such sets must be given /32 only.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { type Cidr, FAMILIES, factsOf, prefixLengthOf } from '../../model/ip.ts';
import { type Key, keyOf, type Member } from '../../model/items.ts';
import type { Driver, Notice } from '../../reconcile/types.ts';
import { isNotFound } from '../errors.ts';
import type { NetlinkClient, NetlinkMessage, NetlinkRequest } from '../netlink/message.ts';
import { changeElement, type FoundElement, listElements, named, readElements } from './protocol.ts';
import { listOwnSets } from './set.ts';

/** A message holds up to 16 KiB of elements; after so many the event loop gets its turn. */
const MESSAGES_A_TURN = 8;

/** The two halves of each family's whole, by the whole. */
const HALVES: ReadonlyMap<Cidr, readonly [Cidr, Cidr]> = new Map([
  ['0.0.0.0/0' as Cidr, ['0.0.0.0/1' as Cidr, '128.0.0.0/1' as Cidr]],
  ['::/0' as Cidr, ['::/1' as Cidr, '8000::/1' as Cidr]],
]);
const wholeOf = (entry: Cidr): Cidr => (factsOf(entry) === FAMILIES.ipv4 ? '0.0.0.0/0' : '::/0') as Cidr;

export interface MemberDriver extends Driver<'member'> {
  /** For the driver of sets: the members of a set go with it, and nobody else says so, nor what a new set replaces. */
  setEmptied(name: string): void;
}

/** `client` is a socket of protocol NETFILTER. */
export function createMemberDriver({ client }: { client: NetlinkClient }): MemberDriver {
  const asked = new AskedWide();
  let heard: Notice<'member'> | undefined;
  /** Sets that had a member at the last list or were given one since. */
  const filled = new Set<string>();

  return {
    kind: 'member',
    lane: 'netfilter',
    merge: 'same',
    // A member has no other properties than its identity.
    equal: () => true,
    async list(signal) {
      const found = new Map<Key<'member'>, Member>();
      filled.clear();
      for (const { name } of await listOwnSets(client)) {
        const elements = await readWhole(await dumpSet(client, name), signal);
        const entries = new Set(elements.flatMap(({ entry, port }) => (port ? [] : entry)));
        const members: readonly Member[] = [
          ...[...asked.join(name, entries)].map((entry) => ({ set: name, entry })),
          ...elements.flatMap(({ entry, port }) => (port ? { set: name, entry, port } : [])),
        ];
        if (members.length > 0) filled.add(name);
        for (const member of members) found.set(keyOf('member', member), member);
      }
      return found;
    },
    async apply(batch) {
      const requests: NetlinkRequest[] = [];
      const keys: Key<'member'>[] = [];
      for (const change of batch) {
        const action = change.action === 'remove' ? 'remove' : 'add';
        const { set, entry, port } = change.action === 'remove' ? change.from : change.item.value;
        if (action === 'add') filled.add(set);
        for (const piece of asked.split(action, set, entry)) {
          requests.push(changeElement(action, set, piece, port));
          keys.push(change.key);
        }
      }
      const failures = new Map<Key<'member'>, Error>();
      for (const [i, error] of (await client.batch(requests)).entries()) {
        if (!error || (requests[i]?.operation === 'remove' && isNotFound(error))) continue;
        failures.set(keys[i] as Key<'member'>, named(error));
      }
      return failures;
    },
    watch(notice) {
      heard = notice;
    },
    setEmptied(name) {
      if (filled.has(name)) heard?.stale(`set ${name} was destroyed`);
    },
  };
}

/** Nothing when the set went away after its header was listed. */
async function dumpSet(client: NetlinkClient, set: string): Promise<readonly NetlinkMessage[]> {
  try {
    return await client.dump(listElements(set));
  } catch (error) {
    if (isNotFound(error)) return [];
    throw error;
  }
}

/** An element that somebody altered (nomatch) is left out: it is then missing, and adding it again mends it. */
async function readWhole(messages: readonly NetlinkMessage[], signal: AbortSignal): Promise<readonly FoundElement[]> {
  const elements: FoundElement[] = [];
  for (const [i, message] of messages.entries()) {
    if (i % MESSAGES_A_TURN === MESSAGES_A_TURN - 1) await nextTurn(undefined, { signal });
    for (const element of readElements(message)) if (!element.altered) elements.push(element);
  }
  return elements;
}

/** The members of length 0 and 1 that this process was asked to write, as `<set> <entry>`. */
class AskedWide {
  readonly #members = new Set<string>();

  /** The elements that must be written for this member, or removed without harm to another member. */
  split(action: 'add' | 'remove', set: string, entry: Cidr): readonly Cidr[] {
    if (prefixLengthOf(entry) > 1) return [entry];
    if (action === 'add') this.#members.add(`${set} ${entry}`);
    else this.#members.delete(`${set} ${entry}`);
    const pieces = HALVES.get(entry) ?? [entry];
    return action === 'add'
      ? pieces
      : pieces.filter((piece) => !this.#has(set, piece) && !this.#has(set, wholeOf(piece)));
  }

  /** What a set's elements mean: both halves are the whole, unless exactly they were asked for. */
  join(set: string, entries: Set<Cidr>): Set<Cidr> {
    for (const [whole, halves] of HALVES) {
      if (!halves.every((half) => entries.has(half))) continue;
      const exact = halves.every((half) => this.#has(set, half));
      if (!exact || this.#has(set, whole)) entries.add(whole);
      for (const half of halves) if (!this.#has(set, half)) entries.delete(half);
    }
    return entries;
  }

  #has = (set: string, entry: Cidr): boolean => this.#members.has(`${set} ${entry}`);
}
