/** The index name ↔ ifindex that the drivers share. The kernel's messages speak of indexes, values of names. */
import { ALIAS_PREFIX, POD_LINK_NAME } from '../../model/kernel-names.ts';
import { isUnsupported, KernelError } from '../errors.ts';
import { text, u32 } from './attributes.ts';
import type { NetlinkClient, NetlinkMessage, NetlinkRequest } from './message.ts';
import { IFLA, type LinkFacts, linkHeader, RTEXT_FILTER_SKIP_STATS, RTM, readLinkFacts } from './rtnetlink.ts';

/** IFLA_IFALIAS of every host side of a pod link starts with this. */
export const POD_ALIAS_PREFIX = `${ALIAS_PREFIX}pod:`;
/** Names of the node's own devices: `tulle.84` and `tulle-tun`, of backends, and `tulle0`, the bridge. */
const NODE_LINK_NAME = /^tulle(\.\d+|-tun|0)$/;

/** Whether a link carries both marks of a device of the node's own: the name's shape and the alias. */
export const isNodeLink = ({ name, alias }: LinkFacts): boolean =>
  NODE_LINK_NAME.test(name) && alias.startsWith(ALIAS_PREFIX) && !alias.startsWith(POD_ALIAS_PREFIX);

/** Whether a link carries both marks of the host side of a pod link. */
export const isPodLink = ({ name, alias }: LinkFacts): boolean =>
  POD_LINK_NAME.test(name) && alias.startsWith(POD_ALIAS_PREFIX);

/** Whether a link may be the host side of a pod link that has been made a moment ago and gets its alias next. */
export const isUnmarkedPodLink = ({ name, alias, kind }: LinkFacts): boolean =>
  kind === 'veth' && alias === '' && POD_LINK_NAME.test(name);

export const isOwnLink = (facts: LinkFacts): boolean => isNodeLink(facts) || isPodLink(facts);

const dumpRequest: NetlinkRequest = {
  type: RTM.GETLINK,
  payload: Buffer.concat([linkHeader(), u32(IFLA.EXT_MASK, RTEXT_FILTER_SKIP_STATS)]),
  operation: 'list',
  object: 'links',
};

/** Every link of the namespace. Throws KernelError. */
export async function dumpLinks(client: NetlinkClient): Promise<readonly LinkFacts[]> {
  const messages = await client.dump(dumpRequest);
  return messages.flatMap((message) => readLinkFacts(message) ?? []);
}

/** The facts of one link by name, read from the kernel; undefined when there is none. Throws other KernelErrors. */
export async function readLink(client: NetlinkClient, name: string): Promise<LinkFacts | undefined> {
  const payload = Buffer.concat([linkHeader(), text(IFLA.IFNAME, name), u32(IFLA.EXT_MASK, RTEXT_FILTER_SKIP_STATS)]);
  try {
    const [message] = await client.request({ type: RTM.GETLINK, payload, operation: 'read', object: `link ${name}` });
    return message && readLinkFacts(message);
  } catch (error) {
    if (error instanceof KernelError && error.code === 'ENODEV') return undefined;
    throw error;
  }
}

/** The kernel loads the module of a type that it is asked for by itself, so a type that it refuses is not installed either. */
export function explainMissingType(error: unknown, kind: string, advice: string): unknown {
  if (!(error instanceof KernelError) || !isUnsupported(error)) return error;
  const { code, operation, object, detail } = error;
  const said = `this kernel has no links of the type ${kind}${detail ? `: ${detail}` : ''}; ${advice}`;
  return new KernelError({ code, operation, object, detail: said, cause: error });
}

/** Follows the links of one namespace: read whole on a miss and at every list, kept by the monitor in between. */
export class Links {
  readonly #client: NetlinkClient;
  readonly #byName = new Map<string, LinkFacts>();
  readonly #byIndex = new Map<number, LinkFacts>();
  /** Links that a dump has not any more and of whose end the monitor is about to tell: what it says before is about them. */
  readonly #ending = new Map<number, LinkFacts>();
  /** What the monitor said since the oldest of the running dumps began, by index; undefined for a link that went. */
  readonly #seen = new Map<number, LinkFacts | undefined>();
  #dumps = 0;

  constructor(client: NetlinkClient) {
    this.#client = client;
  }

  /**
   * Reads every link again. What the monitor says meanwhile stays: if the dump is older, nobody says it again; if it is
   * newer, the monitor is about to say what it shows.
   */
  async refresh(): Promise<readonly LinkFacts[]> {
    this.#dumps++;
    try {
      const dumped = await dumpLinks(this.#client);
      for (const [ifindex, facts] of this.#byIndex) this.#ending.set(ifindex, facts);
      this.#byName.clear();
      this.#byIndex.clear();
      for (const facts of dumped) if (!this.#seen.has(facts.ifindex)) this.#store(facts);
      for (const facts of this.#seen.values()) if (facts && !this.#byName.has(facts.name)) this.#store(facts);
      for (const ifindex of this.#seen.keys()) this.#ending.delete(ifindex);
      return dumped;
    } finally {
      this.#dumps--;
      if (this.#dumps === 0) this.#seen.clear();
    }
  }

  /** Takes a link message of the monitor up; returns the link as it was known under its index before. */
  see(message: NetlinkMessage): LinkFacts | undefined {
    const facts = readLinkFacts(message);
    if (!facts) return undefined;
    const before = this.byIndex(facts.ifindex);
    this.#forget(facts.ifindex);
    const isThere = message.type === RTM.NEWLINK;
    if (isThere) this.#store(facts);
    if (this.#dumps > 0) this.#seen.set(facts.ifindex, isThere ? facts : undefined);
    return before;
  }

  /** Takes up what was read of one link that is there now. */
  learn(facts: LinkFacts): void {
    this.#forget(facts.ifindex);
    this.#store(facts);
  }

  /** Also of a link that has gone a moment ago. */
  byIndex(ifindex: number): LinkFacts | undefined {
    return this.#byIndex.get(ifindex) ?? this.#ending.get(ifindex);
  }

  byName(name: string): LinkFacts | undefined {
    return this.#byName.get(name);
  }

  all(): Iterable<LinkFacts> {
    return this.#byIndex.values();
  }

  /** Looks that every one of these names is known; otherwise reads the links once. Some may still be missing after. */
  async ensure(names: Iterable<string>): Promise<void> {
    for (const name of names) {
      if (!this.#byName.has(name)) {
        await this.refresh();
        return;
      }
    }
  }

  #store(facts: LinkFacts): void {
    this.#ending.delete(facts.ifindex);
    this.#byIndex.set(facts.ifindex, facts);
    this.#byName.set(facts.name, facts);
  }

  #forget(ifindex: number): void {
    this.#ending.delete(ifindex);
    const before = this.#byIndex.get(ifindex);
    if (!before) return;
    this.#byIndex.delete(ifindex);
    if (this.#byName.get(before.name) === before) this.#byName.delete(before.name);
  }
}
