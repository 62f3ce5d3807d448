/**
 * Sees to the connected datagram sockets of this node: destroys those that talk past their Service, in the network
 * namespaces of the host and of its pods. There are two sorts: what the programs connected to a backend that the Service has
 * no longer, and, when the programs come to a node that packets served until now, what is connected to the address of the
 * Service itself, which no rule will translate any more. Nothing else is disturbed.
 */
import type { Logger } from 'pino';
import type { Backend } from '../../model/services.ts';
import { fileIdentity, isHomeNetns, withFd } from '../libc.ts';
import { NETLINK_PROTOCOL } from '../netlink/message.ts';
import { NetlinkSocket } from '../netlink/socket.ts';
import { type ConnectedSocket, type DatagramSocket, destroySockets, listDatagramSockets } from './stale-sockets.ts';

/** Where sockets may be. */
interface Namespace {
  readonly path: string;
  /** Decimal text. */
  readonly inode: string;
}

export interface DatagramSocketsOptions {
  /** BpfLane.connectedSockets. */
  readonly connectedSockets: (signal: AbortSignal) => Promise<readonly ConnectedSocket[]>;
  /** Those of the pods. */
  readonly namespaces: () => readonly Namespace[];
  /** Whose sockets the programs translate. */
  readonly scope: 'all' | 'host';
  /** Where the programs lead datagrams now that are sent to this address; undefined: they leave them alone. */
  readonly backendsOf: (frontend: Backend) => readonly Backend[] | undefined;
  readonly log: Logger;
}

const DEADLINE_MS = 30_000;
const HOST = '/proc/self/ns/net';

export class DatagramSockets {
  readonly #options: DatagramSocketsOptions;
  #running: Promise<void> | undefined;
  #isOutdated = false;

  constructor(options: DatagramSocketsOptions) {
    this.#options = options;
  }

  /** After frontends changed. One look at a time; what is asked for meanwhile is one more. Never rejects. */
  follow(): Promise<void> {
    this.#isOutdated = true;
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  /** Once the programs serve what packets served before. Never rejects. */
  async takeOver(): Promise<void> {
    const { namespaces, backendsOf, scope } = this.#options;
    const isUnseen = ({ peer }: DatagramSocket): boolean => backendsOf(peer) !== undefined;
    const ofPods = scope === 'all' ? namespaces().map(({ path }) => path) : [];
    for (const place of [HOST, ...ofPods])
      await this.#destroy(place, async (client) => (await listDatagramSockets(client)).filter(isUnseen));
  }

  async #run(): Promise<void> {
    while (this.#isOutdated) {
      this.#isOutdated = false;
      await this.#destroyStale();
    }
  }

  async #destroyStale(): Promise<void> {
    const { connectedSockets, namespaces, log } = this.#options;
    const connected = await connectedSockets(AbortSignal.timeout(DEADLINE_MS)).catch((err: unknown) => {
      log.warn({ err }, 'datagram sockets may go on to former backends');
      return [];
    });
    const stale = Map.groupBy(
      connected.filter((socket) => this.#isStale(socket)),
      ({ netns }) => String(netns),
    );
    const places = new Map(namespaces().map(({ path, inode }) => [inode, path]));
    for (const [inode, sockets] of stale) {
      const path = inode === homeInode() ? HOST : places.get(inode);
      if (path !== undefined) await this.#destroy(path, async () => sockets, inode);
      else log.debug({ netns: inode, sockets: sockets.length }, 'stale sockets in a network namespace of nobody known');
    }
  }

  #isStale({ frontend, backend }: ConnectedSocket): boolean {
    const backends = this.#options.backendsOf(frontend) ?? [];
    return !backends.some(({ ip, port }) => ip === backend.ip && port === backend.port);
  }

  /** `inode`: the path may lead to another namespace by now. */
  async #destroy(
    path: string,
    choose: (client: NetlinkSocket) => Promise<readonly Pick<DatagramSocket, 'request'>[]>,
    inode?: string,
  ): Promise<void> {
    const { log } = this.#options;
    try {
      const client = withFd(path, (netnsFd) =>
        inode === undefined || fileIdentity(netnsFd).inode === inode
          ? new NetlinkSocket(NETLINK_PROTOCOL.SOCK_DIAG, isHomeNetns(netnsFd) ? {} : { netnsFd })
          : undefined,
      );
      try {
        const destroyed = client ? await destroySockets(client, await choose(client)) : 0;
        if (destroyed > 0) log.info({ sockets: destroyed, netns: path }, 'destroyed stale datagram sockets');
      } finally {
        client?.close();
      }
    } catch (err) {
      // The namespaces of pods come and go.
      if ((err as { code?: unknown }).code !== 'ENOENT')
        log.warn({ err, netns: path }, 'datagram sockets may go on to former backends');
    }
  }
}

const homeInode = (): string => withFd(HOST, (fd) => fileIdentity(fd).inode);
