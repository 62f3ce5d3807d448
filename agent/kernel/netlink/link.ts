/** Devices of the node's own: what every type has in common. A type is one entry in LINK_TYPES. */
import type { Key, Link } from '../../model/items.ts';
import { keyOf } from '../../model/items.ts';
import { macBytes } from '../../model/mac.ts';
import type { Change, Driver, Notice } from '../../reconcile/types.ts';
import { isExists, KernelError } from '../errors.ts';
import { attribute, nested, plainText, text, u8, u32 } from './attributes.ts';
import { bridgeType } from './bridge.ts';
import { ipv4ConfAlteration, netconfAlteration, renderIpv4Conf } from './link-conf.ts';
import type { LinkFiles, LinkType } from './link-type.ts';
import { dumpLinks, explainMissingType, isNodeLink, type Links, readLink } from './links.ts';
import { type NetlinkClient, type NetlinkMessage, type NetlinkRequest, NLM } from './message.ts';
import type { NetlinkMonitor } from './monitor.ts';
import { type Netconf, readNetconf } from './netconf.ts';
import { type Altered, isAltered } from './object-driver.ts';
import type { LinkReaper } from './reaper.ts';
import { ADDR_GEN_MODE_NONE, AF, IFF_UP, IFLA, type LinkFacts, linkHeader, RTM, readLinkFacts } from './rtnetlink.ts';
import { tunType } from './tun.ts';
import { vxlanType } from './vxlan.ts';

const LINK_TYPES: { readonly [T in Link['type']]: LinkType<Extract<Link, { type: T }>> } = {
  vxlan: vxlanType,
  bridge: bridgeType,
  tun: tunType,
};
/** A type is only ever given links of its own. */
const typeOf = ({ type }: Pick<Link, 'type'>): LinkType<Link> => LINK_TYPES[type] as LinkType<Link>;

export interface LinkDriverOptions extends LinkFiles {
  readonly client: NetlinkClient;
  readonly links: Links;
  readonly reaper: LinkReaper;
  readonly monitor?: NetlinkMonitor | undefined;
}

export function linkDriver(options: LinkDriverOptions): Driver<'link'> {
  const { links, monitor } = options;
  return {
    kind: 'link',
    lane: 'netlink',
    merge: 'one',
    equal: (wanted, found) => !isAltered(wanted) && !isAltered(found) && sameLink(wanted, found),
    async list() {
      const own = (await links.refresh()).flatMap((facts) => foundLink(facts, options) ?? []);
      return new Map(own.map((link) => [keyOf('link', link), link]));
    },
    apply: (batch, signal) => applyLinks(batch, options, signal),
    ...(monitor && {
      watch: (notice: Notice<'link'>, signal: AbortSignal) => monitor.subscribe(listener(notice, options), signal),
    }),
  };
}

const sameLink = (a: Link, b: Link): boolean =>
  a.type === b.type &&
  a.name === b.name &&
  a.alias === b.alias &&
  a.mac === b.mac &&
  a.mtuBytes === b.mtuBytes &&
  typeOf(a).same(a, b);

/** An own link as it is, altered also when it is down or has other settings: what is cured in place, whatever the type. */
function foundLink(facts: LinkFacts, files: LinkFiles): (Link & Altered) | undefined {
  const link = readBackLink(facts, files);
  if (!link || isAltered(link)) return link;
  const altered = facts.up ? ipv4ConfAlteration(facts, typeOf(link).ipv4) : 'is down';
  return altered ? { ...link, altered } : link;
}

const readBackLink = (facts: LinkFacts, files: LinkFiles): (Link & Altered) | undefined =>
  isNodeLink(facts) && isLinkType(facts.kind) ? typeOf({ type: facts.kind }).readBack(facts, files) : undefined;

const isLinkType = (kind: string): kind is Link['type'] => Object.hasOwn(LINK_TYPES, kind);

function listener(notice: Notice<'link'>, options: LinkDriverOptions) {
  return {
    message(message: NetlinkMessage, before: LinkFacts | undefined) {
      const conf = readNetconf(message);
      if (conf) tellOfConf(conf, notice, options);
      const facts = readLinkFacts(message);
      if (!facts) return;
      const link = message.type === RTM.NEWLINK ? foundLink(facts, options) : undefined;
      // Gone, renamed, or no longer marked as Tulle's.
      if (before && isNodeLink(before) && before.name !== link?.name) notice.found(`link ${before.name}`, undefined);
      if (link) notice.found(keyOf('link', link), link);
    },
    lost: (reason: string) => notice.stale(reason),
  };
}

/** The settings of a family do not show in the message that tells of their change. */
function tellOfConf(conf: Netconf, notice: Notice<'link'>, options: LinkDriverOptions): void {
  const facts = options.links.byIndex(conf.ifindex);
  const link = facts && foundLink(facts, options);
  const altered = link && conf.family === 'ipv4' ? netconfAlteration(conf, typeOf(link).ipv4) : undefined;
  if (!link || !altered) return;
  const found: Link & Altered = { ...link, altered };
  notice.found(keyOf('link', link), found);
}

async function applyLinks(
  batch: readonly Change<'link'>[],
  options: LinkDriverOptions,
  signal: AbortSignal,
): Promise<ReadonlyMap<Key<'link'>, Error>> {
  const failures = new Map<Key<'link'>, Error>();
  for (const change of batch) {
    signal.throwIfAborted();
    try {
      if (change.action === 'remove') await removeLink(change.from, options);
      else await ensureLink(change.item.value, options);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      failures.set(change.key, error);
    }
  }
  return failures;
}

async function removeLink({ name }: Link, { client, reaper }: LinkDriverOptions): Promise<void> {
  const facts = await readLink(client, name);
  if (facts && isNodeLink(facts)) await reaper.destroy([facts]);
}

/** Makes the device what is wanted, in place where the kernel can. */
async function ensureLink(wanted: Link, options: LinkDriverOptions): Promise<void> {
  const { client, reaper } = options;
  const facts = await readLink(client, wanted.name);
  if (facts && !isNodeLink(facts) && !isHalfMade(wanted, facts)) throw foreignLink(wanted, facts);
  const found = facts && readBackLink(facts, options);
  const data = facts && found?.type === wanted.type ? typeOf(wanted).change(wanted, found, facts) : undefined;
  if (facts && data) return configure(wanted, facts, data, options);
  if (facts) await reaper.destroy([facts]);
  await createLink(wanted, options);
}

/** A device that an earlier process made and could not mark any more: nobody else gives it this name and address. */
function isHalfMade(wanted: Link, facts: LinkFacts): boolean {
  if (facts.alias !== '' || facts.kind !== wanted.type) return false;
  return wanted.mac === undefined ? typeOf(wanted).isOwnMake?.(facts) === true : facts.mac === wanted.mac;
}

const foreignLink = ({ name, type }: Link, { alias }: LinkFacts): KernelError =>
  new KernelError({
    code: 'EEXIST',
    operation: 'create',
    object: `link ${name}`,
    detail: `a link ${name} exists and is not Tulle's (${alias ? `its alias is ${alias}` : 'it has no alias tulle:'}): ${typeOf({ type }).nameAdvice}`,
  });

async function createLink(wanted: Link, options: LinkDriverOptions): Promise<void> {
  const { client, reaper } = options;
  const kind = typeOf(wanted);
  try {
    if (kind.create) kind.create(wanted, options);
    else await client.request(renderCreation(wanted));
  } catch (error) {
    if (isExists(error)) throw await explainRival(wanted, error as KernelError, client);
    throw explainMissingType(error, wanted.type, kind.missingAdvice);
  }
  const facts = await readLink(client, wanted.name);
  if (!facts)
    throw new KernelError({
      code: 'ENODEV',
      operation: 'create',
      object: `link ${wanted.name}`,
      detail: 'it vanished at once',
    });
  try {
    await configure(wanted, facts, [], options);
  } catch (error) {
    await reaper.destroy([facts]);
    throw error;
  }
}

const macOf = ({ mac }: Link): readonly Buffer[] => (mac === undefined ? [] : [attribute(IFLA.ADDRESS, macBytes(mac))]);

/** Without the MTU: a bridge keeps one that is set later, and lets its ports change one that it was made with. */
function renderCreation(wanted: Link): NetlinkRequest {
  const { type, data } = typeOf(wanted);
  const payload = Buffer.concat([
    linkHeader(),
    text(IFLA.IFNAME, wanted.name),
    ...macOf(wanted),
    nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, type), nested(IFLA.INFO_DATA, ...data(wanted))),
  ]);
  return {
    type: RTM.NEWLINK,
    flags: NLM.CREATE | NLM.EXCL,
    payload,
    operation: 'create',
    object: `link ${wanted.name}`,
  };
}

async function explainRival(wanted: Link, error: KernelError, client: NetlinkClient): Promise<KernelError> {
  for (const other of await dumpLinks(client)) {
    const detail = typeOf(wanted).rivalAdvice(wanted, other);
    if (detail === undefined) continue;
    const { code, operation, object } = error;
    return new KernelError({ code, operation, object, detail, cause: error });
  }
  return error;
}

/** Everything that can be set on an existing device; the mark and the missing link-local address before it comes up. */
async function configure(
  wanted: Link,
  facts: LinkFacts,
  data: readonly Buffer[],
  options: LinkDriverOptions,
): Promise<void> {
  const { client } = options;
  const { ifindex } = facts;
  const object = `link ${wanted.name}`;
  const kind = typeOf(wanted);
  const request = (type: number, header: Buffer, ...attributes: readonly Buffer[]): NetlinkRequest => ({
    type,
    payload: Buffer.concat([header, ...attributes]),
    operation: 'configure',
    object,
  });
  // Setting an address flushes the neighbours of the link, even when it is what it was.
  const mac = facts.mac === wanted.mac ? [] : macOf(wanted);
  const ipv4 = nested(IFLA.AF_SPEC, renderIpv4Conf(kind.ipv4));
  const marks = [plainText(IFLA.IFALIAS, wanted.alias), u32(IFLA.MTU, wanted.mtuBytes), ...mac, ipv4];
  await client.request(request(RTM.SETLINK, linkHeader({ ifindex }), ...marks));
  if (data.length > 0) {
    const info = nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, kind.type), nested(IFLA.INFO_DATA, ...data));
    await client.request(request(RTM.NEWLINK, linkHeader({ ifindex }), info));
  }
  kind.configure(wanted, options);
  await setAddrGenModeNone(client, ifindex, object);
  await client.request(request(RTM.SETLINK, linkHeader({ ifindex, flags: IFF_UP, change: IFF_UP })));
}

/** No link-local address of the kernel's making. A kernel without IPv6 does not know the attribute's family. */
export async function setAddrGenModeNone(client: NetlinkClient, ifindex: number, object: string): Promise<void> {
  const spec = nested(IFLA.AF_SPEC, nested(AF.INET6, u8(IFLA.INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE)));
  try {
    await client.request({
      type: RTM.SETLINK,
      payload: Buffer.concat([linkHeader({ ifindex }), spec]),
      operation: 'configure',
      object,
    });
  } catch (error) {
    if (!(error instanceof KernelError) || !['EAFNOSUPPORT', 'EINVAL', 'EOPNOTSUPP', 'ENOTSUP'].includes(error.code))
      throw error;
  }
}
