/**
 * Filters at the ingress of own bridges (tc-bpf(8), linux/pkt_sched.h, linux/pkt_cls.h): each runs one program, for all that
 * the ports send to the host. A filter goes with its link, and is replaced by another one without a gap.
 */
import { closeSync } from 'node:fs';
import { type Filter, type Key, keyOf } from '../../model/items.ts';
import { BPF_PREFIX } from '../../model/kernel-names.ts';
import type { Change, Driver, Notice } from '../../reconcile/types.ts';
import type { GuardProgram } from '../bpf/pod-sources.ts';
import { ignoreNotFound, isExists, KernelError } from '../errors.ts';
import { nested, parseAttributes, text, textOf, u32, u32Of } from './attributes.ts';
import { isNodeLink, type Links } from './links.ts';
import { type NetlinkClient, type NetlinkMessage, type NetlinkRequest, NLM } from './message.ts';
import type { NetlinkMonitor } from './monitor.ts';
import { type Altered, isAltered } from './object-driver.ts';
import { type LinkFacts, RTM } from './rtnetlink.ts';

/** Parents of clsact and of a filter at ingress (linux/pkt_sched.h). */
const CLSACT = { handle: 0xffff0000, parent: 0xfffffff1 } as const;
const INGRESS = 0xfffffff2;
/** The first filter that runs, for all protocols: priority 1, and ETH_P_ALL in network order. */
const FIRST = { handle: 1, info: (1 << 16) | 0x0300 } as const;
const TCA = { KIND: 1, OPTIONS: 2 } as const;
const TCA_BPF = { FD: 6, NAME: 7, FLAGS: 8, ID: 11 } as const;
/** The program says what becomes of a packet. */
const TCA_BPF_FLAG_ACT_DIRECT = 1;

const NAME_PREFIX = `${BPF_PREFIX}source:`;

export interface FilterDriverOptions {
  readonly client: NetlinkClient;
  readonly links: Links;
  readonly program: GuardProgram;
  readonly monitor?: NetlinkMonitor | undefined;
}

export interface FilterDriver extends Driver<'filter'> {
  /** Goes on with what an earlier agent's filter asks. */
  adopt(): Promise<void>;
}

export function filterDriver(options: FilterDriverOptions): FilterDriver {
  const { monitor } = options;
  return {
    kind: 'filter',
    lane: 'netlink',
    merge: 'one',
    equal: (wanted, found) => !isAltered(wanted) && !isAltered(found) && wanted.program === found.program,
    list: () => listFilters(options),
    async adopt() {
      await listFilters(options);
    },
    async apply(batch, signal) {
      const failures = new Map<Key<'filter'>, Error>();
      for (const change of batch) {
        signal.throwIfAborted();
        try {
          if (change.action === 'remove') await remove(change.from, options);
          else await attachTo(await ifindexOf(change, options), options);
        } catch (error) {
          if (!(error instanceof KernelError)) throw error;
          failures.set(change.key, error);
        }
      }
      return failures;
    },
    ...(monitor && {
      watch: (notice: Notice<'filter'>, signal: AbortSignal) => monitor.subscribe(listener(notice, options), signal),
    }),
  };
}

async function ifindexOf(
  { key, item }: Exclude<Change<'filter'>, { action: 'remove' }>,
  { links }: FilterDriverOptions,
) {
  const { link } = item.value;
  await links.ensure([link]);
  const facts = links.byName(link);
  if (facts && isNodeLink(facts)) return facts.ifindex;
  const detail = `expected Tulle's link ${link}, got ${facts ? 'one of somebody else' : 'none'}`;
  throw new KernelError({ code: 'ENODEV', operation: 'create', object: key, detail });
}

/** Attaches the program to a link, in the place of an earlier one. Throws KernelError. */
export async function attachTo(
  ifindex: number,
  { client, program }: Pick<FilterDriverOptions, 'client' | 'program'>,
): Promise<void> {
  const what = { operation: 'create', object: `filter at ingress of link ${ifindex}` };
  const fd = program.load();
  try {
    const qdisc = Buffer.concat([tcHeader({ ifindex, ...CLSACT }), text(TCA.KIND, 'clsact')]);
    await client
      .request({ type: RTM.NEWQDISC, flags: NLM.CREATE | NLM.EXCL, payload: qdisc, ...what })
      .catch((error) => {
        if (!isExists(error)) throw error;
      });
    const payload = Buffer.concat([
      tcHeader({ ifindex, parent: INGRESS, ...FIRST }),
      text(TCA.KIND, 'bpf'),
      nested(
        TCA.OPTIONS,
        u32(TCA_BPF.FD, fd),
        text(TCA_BPF.NAME, `${NAME_PREFIX}${program.build}`),
        u32(TCA_BPF.FLAGS, TCA_BPF_FLAG_ACT_DIRECT),
      ),
    ]);
    await client.request({ type: RTM.NEWTFILTER, flags: NLM.CREATE | NLM.REPLACE, payload, ...what });
  } finally {
    closeSync(fd);
  }
}

async function remove({ link }: Filter, { client, links }: FilterDriverOptions): Promise<void> {
  await links.ensure([link]);
  const facts = links.byName(link);
  if (!facts || !isNodeLink(facts)) return;
  const { ifindex } = facts;
  const payload = Buffer.concat([tcHeader({ ifindex, parent: INGRESS, ...FIRST }), text(TCA.KIND, 'bpf')]);
  const request = { type: RTM.DELTFILTER, payload, operation: 'remove', object: `filter at ingress of ${link}` };
  await client.request(request).catch((error) => {
    // There is no clsact any more.
    if (!(error instanceof KernelError && error.code === 'EINVAL')) ignoreNotFound(error);
  });
}

type Found = Filter & Altered;

async function listFilters({ client, links, program }: FilterDriverOptions): Promise<Map<Key<'filter'>, Found>> {
  const found = new Map<Key<'filter'>, Found>();
  for (const facts of (await links.refresh()).filter(isBridge)) {
    for (const message of await client.dump(dumpOf(facts))) {
      const filter = readFilter(message, links, program);
      if (filter) found.set(keyOf('filter', filter), filter);
    }
  }
  return found;
}

const isBridge = (facts: LinkFacts): boolean => isNodeLink(facts) && facts.kind === 'bridge';

const dumpOf = ({ ifindex, name }: LinkFacts): NetlinkRequest => ({
  type: RTM.GETTFILTER,
  payload: tcHeader({ ifindex, parent: INGRESS }),
  operation: 'list',
  object: `filters of ${name}`,
});

function readFilter({ payload }: NetlinkMessage, links: Links, program: GuardProgram): Found | undefined {
  const link = linkOf(payload, links);
  const options = link && parseAttributes(payload, TC_BYTES).get(TCA.OPTIONS);
  const attributes = options && parseAttributes(options);
  const name = textOf(attributes?.get(TCA_BPF.NAME));
  if (!link || !attributes || !name?.startsWith(NAME_PREFIX)) return undefined;
  const id = u32Of(attributes.get(TCA_BPF.ID)) ?? 0;
  program.adopt(id);
  const isFirst = payload.readUInt32LE(8) === FIRST.handle && payload.readUInt32LE(16) === FIRST.info;
  const altered = !isFirst ? 'is not the first' : program.isAsking(id) ? undefined : 'asks another map';
  return { link: link.name, program: name.slice(NAME_PREFIX.length), ...(altered && { altered }) };
}

/** The own bridge of which a message speaks. */
function linkOf(payload: Buffer, links: Links): LinkFacts | undefined {
  const link = payload.length < TC_BYTES ? undefined : links.byIndex(payload.readInt32LE(4));
  return link && isBridge(link) ? link : undefined;
}

function listener(notice: Notice<'filter'>, { links, program }: FilterDriverOptions) {
  return {
    message(message: NetlinkMessage, before: LinkFacts | undefined) {
      const { type, payload } = message;
      // Without a word about its filters.
      if (type === RTM.DELLINK && before && isBridge(before)) notice.found(`filter ${before.name}`, undefined);
      if (type !== RTM.NEWTFILTER && type !== RTM.DELTFILTER && type !== RTM.DELQDISC) return;
      const link = linkOf(payload, links);
      const filter = type === RTM.NEWTFILTER ? readFilter(message, links, program) : undefined;
      if (filter) notice.found(keyOf('filter', filter), filter);
      else if (link) notice.stale(`filters of ${link.name} have changed`);
    },
    lost: (reason: string) => notice.stale(reason),
  };
}

/** struct tcmsg (linux/rtnetlink.h). */
const TC_BYTES = 20;

function tcHeader({
  ifindex,
  handle = 0,
  parent,
  info = 0,
}: {
  ifindex: number;
  handle?: number;
  parent: number;
  info?: number;
}): Buffer {
  const header = Buffer.alloc(TC_BYTES);
  header.writeInt32LE(ifindex, 4);
  header.writeUInt32LE(handle, 8);
  header.writeUInt32LE(parent, 12);
  header.writeUInt32LE(info, 16);
  return header;
}
