/**
 * Driver of ip set headers. Own sets are those named `tulle-*`. Creation goes through `ipset restore`, which agrees
 * with the kernel on the revision of the type; everything else is netlink.
 *
 * A set cannot change in place. Another size is reached by swapping with a new set that got the old one's members, so
 * that rules never see less. Type and family are part of what a name stands for: to change them the old set must go,
 * which the kernel refuses (EBUSY) while a rule uses it.
 */
import { FAMILIES } from '../../model/ip.ts';
import { type IpSet, type Key, keyOf } from '../../model/items.ts';
import { hash, SET_PREFIX } from '../../model/kernel-names.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import type { Run } from '../command.ts';
import { isNotFound, KernelError } from '../errors.ts';
import type { NetlinkClient } from '../netlink/message.ts';
import { destroySet, elementText, listElements, listHeaders, named, readElements, readHeader } from './protocol.ts';

const TIMEOUT_MS = 10_000;

export interface SetDriverOptions {
  readonly run: Run;
  /** A socket of protocol NETFILTER in the namespace in which `run` runs. */
  readonly client: NetlinkClient;
  /** Told of a set that went or is new, whatever members one of its name had before. */
  readonly onEmptied?: (name: string) => void;
}

export function createSetDriver({ run, client, onEmptied }: SetDriverOptions): Driver<'set'> {
  const restore = (lines: readonly string[], signal: AbortSignal) =>
    run({ file: 'ipset', args: ['restore'], stdin: `${lines.join('\n')}\n`, timeoutMs: TIMEOUT_MS, signal });

  async function write(changes: readonly Written[], signal: AbortSignal): Promise<ReadonlyMap<Key<'set'>, Error>> {
    const failures = new Map<Key<'set'>, Error>();
    try {
      // The usual case in one process; when a line fails the rest was not read, so each is then tried alone.
      const texts = await Promise.all(changes.map((change) => render(change, client)));
      await restore(texts.flat(), signal);
    } catch (batchError) {
      for (const change of changes) {
        const error =
          changes.length === 1
            ? batchError
            : await failureOf(async () => restore(await render(change, client), signal));
        if (error !== undefined) failures.set(change.key, explain(change.item.value, error));
      }
    }
    return failures;
  }

  return {
    kind: 'set',
    lane: 'netfilter',
    merge: 'same',
    equal: (wanted, found) =>
      wanted.type === found.type && wanted.family === found.family && wanted.maxElements === found.maxElements,
    list: async () => new Map((await listOwnSets(client)).map((set) => [keyOf('set', set), set])),
    async apply(batch, signal) {
      const written = batch.filter((change) => change.action !== 'remove');
      const removed = batch.filter((change) => change.action === 'remove');
      const failures = new Map(written.length > 0 ? await write(written, signal) : []);
      const outcomes = await client.batch(removed.map(({ from }) => destroySet(from.name)));
      for (const [i, { key, from }] of removed.entries()) {
        const error = outcomes[i];
        if (error && !isNotFound(error)) failures.set(key, named(error));
        else onEmptied?.(from.name);
      }
      for (const change of written)
        if (isEmpty(change) && !failures.has(change.key)) onEmptied?.(change.item.value.name);
      return failures;
    },
  };
}

type Written = Exclude<Change<'set'>, { action: 'remove' }>;

/** Another type or family: destroyed and created, empty. */
const isRemade = (change: Written): change is Extract<Written, { action: 'update' }> =>
  change.action === 'update' &&
  (change.from.type !== change.item.value.type || change.from.family !== change.item.value.family);

/** What remains to be filled. One that is missing was destroyed by somebody, or never there. */
const isEmpty = (change: Written): boolean => change.action === 'create' || isRemade(change);

/** Headers of all sets that are Tulle's by name. */
export async function listOwnSets(client: NetlinkClient): Promise<readonly IpSet[]> {
  const messages = await client.dump(listHeaders());
  return messages.map(readHeader).filter((set) => set?.name.startsWith(SET_PREFIX)) as IpSet[];
}

/** Names of all sets, whoever's they are. */
export const listAllSets = async (client: NetlinkClient): Promise<readonly string[]> =>
  (await client.dump(listHeaders())).flatMap((message) => readHeader(message)?.name ?? []);

/** Lines for `ipset restore`. */
async function render(change: Written, client: NetlinkClient): Promise<readonly string[]> {
  const { value } = change.item;
  if (change.action === 'create') return [renderCreate(value, '-exist')];
  if (isRemade(change)) return [`destroy ${value.name}`, renderCreate(value)];
  const elements = (await client.dump(listElements(value.name))).flatMap((message) => [...readElements(message)]);
  const next = { ...value, name: `${SET_PREFIX}next-${hash(value.name, 12)}` };
  return [
    renderCreate(next, '-exist'),
    `flush ${next.name}`,
    ...elements.map((element) => `add ${next.name} ${elementText(element)}`),
    `swap ${next.name} ${value.name}`,
    `destroy ${next.name}`,
  ];
}

const renderCreate = ({ name, type, family, maxElements }: IpSet, ...flags: readonly string[]): string =>
  ['create', name, type, 'family', FAMILIES[family].setFamily, 'maxelem', maxElements, ...flags].join(' ');

async function failureOf(action: () => Promise<unknown>): Promise<unknown> {
  try {
    await action();
    return undefined;
  } catch (error) {
    return error;
  }
}

function explain({ name, type, family }: IpSet, error: unknown): Error {
  if (!(error instanceof KernelError)) return error as Error;
  const { code, detail } = error;
  return new KernelError({
    code,
    operation: 'create',
    object: `ip set ${name} ${type} ${family}`,
    detail,
    cause: error,
  });
}
