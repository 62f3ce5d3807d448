/**
 * Drivers of what this process carries between a TUN device and a socket. It ends with the process and is resumed by the
 * next one, so these drivers are asked and told as those of the kernel are.
 */
import { isDeepStrictEqual } from 'node:util';
import { type Key, keyOf, type TunPathItem, type TunPeerItem } from '../../model/items.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import { KernelError } from '../errors.ts';

type TunKind = 'tun-path' | 'tun-peer';

/** What the drivers ask of the path; see path.ts. */
export interface Carrier {
  /** The path that is open, resumed from an earlier process or not. */
  current(): TunPathItem | undefined;
  /** Peers by name of their Node. They outlive the path that is open: another one carries on with them. */
  peers(): ReadonlyMap<string, TunPeerItem>;
  /** Opens the path, in the place of the one that is open. Rejects with KernelError. */
  open(item: TunPathItem): Promise<void>;
  close(): Promise<void>;
  /** Throws KernelError. */
  setPeer(item: TunPeerItem): void | Promise<void>;
  removePeer(node: string): void | Promise<void>;
  /** Told when the path that was open is not any more: the device went, a thread ended. */
  onBroken(listener: (path: TunPathItem) => void): void;
}

export function createTunDrivers(carrier: Carrier): { readonly [K in TunKind]: Driver<K> } {
  return { 'tun-path': pathDriver(carrier), 'tun-peer': peerDriver(carrier) };
}

const pathDriver = (carrier: Carrier): Driver<'tun-path'> => ({
  kind: 'tun-path',
  lane: 'netlink',
  merge: 'one',
  equal: isDeepStrictEqual,
  async list() {
    const path = carrier.current();
    return new Map(path && [[keyOf('tun-path', path), path]]);
  },
  apply: (batch, signal) =>
    oneByOne(batch, signal, (change) =>
      change.action !== 'remove'
        ? carrier.open(change.item.value)
        : carrier.current()?.link === change.from.link
          ? carrier.close()
          : undefined,
    ),
  watch(notice, signal) {
    carrier.onBroken((path) => {
      if (!signal.aborted) notice.found(keyOf('tun-path', path), undefined);
    });
  },
});

const peerDriver = (carrier: Carrier): Driver<'tun-peer'> => ({
  kind: 'tun-peer',
  lane: 'netlink',
  merge: 'one',
  equal: isDeepStrictEqual,
  list: async () => new Map([...carrier.peers().values()].map((peer) => [keyOf('tun-peer', peer), peer])),
  apply: (batch, signal) =>
    oneByOne(batch, signal, (change) =>
      change.action === 'remove' ? carrier.removePeer(change.from.node) : carrier.setPeer(change.item.value),
    ),
});

async function oneByOne<K extends TunKind>(
  batch: readonly Change<K>[],
  signal: AbortSignal,
  apply: (change: Change<K>) => void | Promise<void> | undefined,
): Promise<ReadonlyMap<Key<K>, Error>> {
  const failures = new Map<Key<K>, Error>();
  for (const change of batch) {
    signal.throwIfAborted();
    try {
      await apply(change);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      failures.set(change.key as Key<K>, error);
    }
  }
  return failures;
}
