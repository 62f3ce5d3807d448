/**
 * Driver of the members of own ip sets, over netlink: adding one takes microseconds where a process takes milliseconds.
 *
 * The kernel's `hash:net` cannot hold a /0: it is written as its two halves and read back as one. Because somebody may
 * want both halves as such, the driver remembers which /0 and /1 it was asked for.
 *
 * An IPv4 `hash:ip` set takes a CIDR for all of its addresses, one element each: such sets must be given /32 only.
 */
import { type Cidr, FAMILIES, factsOf, prefixLengthOf } from '../../model/ip.ts';
import { type Key, keyOf, type Member } from '../../model/items.ts';
import type { Driver, Notice } from '../../reconcile/types.ts';
import { ASIDE_MS, inTurns } from '../../turns.ts';
import { isNotFound } from '../errors.ts';
import type { NetlinkClient, NetlinkMessage, NetlinkRequest } from '../netlink/message.ts';
import { changeElement, listElements, named, readElements } from './protocol.ts';
import { listOwnSets } from './set.ts';

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
        const messages = await dumpSet(client, name);
        const before = found.size;
        await inTurns(membersOf(name, messages, asked, found), signal, ASIDE_MS);
        if (found.size > before) filled.add(name);
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

/** Enters them. An element that somebody altered (nomatch) is left out: it is then missing, and adding it again mends it. */
function* membersOf(
  set: string,
  messages: readonly NetlinkMessage[],
  asked: AskedWide,
  into: Map<Key<'member'>, Member>,
): Generator<void, void> {
  const enter = (member: Member): unknown => into.set(keyOf('member', member), member);
  const entries = new Set<Cidr>();
  for (const message of messages) {
    for (const { altered, entry, port } of readElements(message)) {
      if (!altered && port) enter({ set, entry, port });
      else if (!altered) entries.add(entry);
      yield;
    }
  }
  for (const entry of asked.join(set, entries)) {
    enter({ set, entry });
    yield;
  }
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
