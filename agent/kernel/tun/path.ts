/**
 * The tunnel in user space: two threads carry packets, this thread says to whom and agrees with the peers' agents on how. What it
 * carries is saved, so that the next process carries on before the cluster has answered.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Logger } from 'pino';
import { bytesOf, type IpAddress, networkOf, prefixLengthOf } from '../../model/ip.ts';
import type { TunPathItem, TunPeerItem } from '../../model/items.ts';
import { KernelError } from '../errors.ts';
import { getsockopt, trySendDatagramTo } from '../libc.ts';
import { socketAddress } from '../socket-address.ts';
import { ROWS } from './counters.ts';
import type { Carrier } from './drivers.ts';
import { type Agreement, Negotiation } from './negotiation.ts';
import { forgetSavedPath, readSavedPath, savePath } from './saved-path.ts';
import { openSecret, type SecretFile } from './secret.ts';
import type { TunDrops, TunPeerStatus, TunStatus } from './status.ts';
import { Threads, type ThreadsOptions } from './threads.ts';

const TICK_MS = 200;
/** A path that became wider is found by trying (RFC 1191 section 6.3). */
const PATH_MTU_MS = 10 * 60_000;
/** A burst of changes is saved once. */
const SAVE_MS = 500;

export interface TunPathOptions {
  readonly nodeName: string;
  /** Where the path is saved. */
  readonly file: string;
  readonly log: Logger;
}

/** What there is while a path is open. */
interface Open {
  readonly item: TunPathItem;
  readonly threads: Threads;
  readonly negotiation: Negotiation;
  readonly secret: SecretFile | undefined;
  /** Aborted when the path is closed. */
  readonly ended: AbortController;
}

interface KnownPeer {
  readonly item: TunPeerItem;
  readonly slot: number;
  readonly agreement?: Agreement;
}

export class TunPath implements Carrier {
  readonly #options: TunPathOptions;
  readonly #peers = new Map<string, KnownPeer>();
  readonly #nodes = new Map<number, string>();
  readonly #freeSlots: number[] = [];
  readonly #listeners: ((path: TunPathItem) => void)[] = [];
  #open: Open | undefined;
  #saving: NodeJS.Timeout | undefined;

  constructor(options: TunPathOptions) {
    this.#options = options;
  }

  /**
   * Carries on with what an earlier process carried, if `isStillMeant`. What cannot be resumed is left to the plan; nothing is
   * written before the cluster has said so.
   */
  async resume(isStillMeant: (path: TunPathItem) => boolean): Promise<void> {
    const saved = readSavedPath(this.#options.file);
    if (!saved || !isStillMeant(saved.path)) return;
    try {
      for (const peer of saved.peers) this.#enter(peer);
      await this.open(saved.path);
      this.#options.log.info({ ...saved.path, peers: saved.peers.length }, 'the tunnel carries on');
    } catch (err) {
      this.#options.log.info({ err }, 'the tunnel of an earlier agent cannot be resumed yet');
    }
  }

  current(): TunPathItem | undefined {
    return this.#open?.item;
  }

  peers(): ReadonlyMap<string, TunPeerItem> {
    return new Map([...this.#peers].map(([node, { item }]) => [node, item]));
  }

  onBroken(listener: (path: TunPathItem) => void): void {
    this.#listeners.push(listener);
  }

  async open(item: TunPathItem): Promise<void> {
    await this.#end();
    const { nodeName, log } = this.#options;
    const ended = new AbortController();
    const secret = item.secretFile === undefined ? undefined : openSecret(item.secretFile);
    ended.signal.addEventListener('abort', () => secret?.close());
    if (secret && !secret.current) throw withoutSecret(item, secret.problem, ended);
    const threads = startThreads(item, ended, (message) => this.#hear(message));
    // Nonces are drawn anew: these threads count their datagrams from the beginning.
    const negotiation = new Negotiation({
      self: nodeName,
      carriage: item.carriage,
      encryption: item.encryption,
      ...(secret && { secret }),
      clock: () => performance.now(),
      random: randomBytes,
      send: (end, bytes) => this.#send(threads, end, item.port, bytes),
      onAgreed: (node, agreement) => this.#agreed(node, agreement),
    });
    const tick = setInterval(() => negotiation.tick(), TICK_MS).unref();
    const widen = setInterval(() => threads.pathMtus.fill(0), PATH_MTU_MS).unref();
    ended.signal.addEventListener('abort', () => [tick, widen].forEach(clearInterval));
    this.#open = { item, threads, negotiation, secret, ended };
    for (const [node, peer] of this.#peers) {
      this.#peers.set(node, { item: peer.item, slot: peer.slot });
      void this.#tellThreads(node);
      negotiation.setPeer(node, peer.item.end);
    }
    this.#save();
    log.debug({ ...item }, 'tunnel opened');
  }

  async close(): Promise<void> {
    await this.#end();
    clearTimeout(this.#saving);
    forgetSavedPath(this.#options.file);
  }

  /** The process ends; what was carried stays saved. */
  async suspend(): Promise<void> {
    this.#saveNow();
    await this.#end();
  }

  async #end(): Promise<void> {
    const open = this.#open;
    this.#open = undefined;
    if (!open) return;
    open.ended.abort();
    await open.threads.stop();
  }

  setPeer(item: TunPeerItem): void {
    const before = this.#peers.get(item.node);
    this.#enter(item);
    void this.#tellThreads(item.node);
    if (before?.item.end !== item.end) this.#open?.negotiation.setPeer(item.node, item.end);
    this.#save();
  }

  /** A peer at another end begins anew: what was agreed with the former one says nothing about it. */
  #enter(item: TunPeerItem): void {
    const before = this.#peers.get(item.node);
    if (before?.item.end === item.end) {
      this.#peers.set(item.node, { ...before, item });
      return;
    }
    if (before) this.#leave(before);
    const slot = this.#freeSlots.pop() ?? this.#nodes.size + 1;
    if (slot >= ROWS) {
      throw new KernelError({
        code: 'ENOSPC',
        operation: 'enter',
        object: `tunnel end of Node ${item.node}`,
        detail: `there are ${ROWS - 1} peers already`,
      });
    }
    this.#nodes.set(slot, item.node);
    this.#peers.set(item.node, { item, slot });
    this.#open?.threads.outbound.clear(slot);
    this.#open?.threads.inbound.clear(slot);
  }

  #leave({ slot }: KnownPeer): void {
    this.#nodes.delete(slot);
    this.#freeSlots.push(slot);
    this.#open?.threads.remove(slot);
    if (this.#open) this.#open.threads.pathMtus[slot] = 0;
  }

  removePeer(node: string): void {
    const peer = this.#peers.get(node);
    if (!peer) return;
    this.#peers.delete(node);
    this.#leave(peer);
    this.#open?.negotiation.removePeer(node);
    this.#save();
  }

  async #agreed(node: string, agreement: Agreement): Promise<void> {
    const peer = this.#peers.get(node);
    if (!peer) return;
    this.#peers.set(node, { ...peer, agreement });
    await this.#tellThreads(node);
  }

  async #tellThreads(node: string): Promise<void> {
    const peer = this.#peers.get(node);
    if (!peer || !this.#open) return;
    const { item, slot, agreement } = peer;
    await this.#open.threads.enter({
      slot,
      socketAddress: Uint8Array.from(socketAddress(item.end, this.#open.item.port)),
      prefixes: item.podCidrs.map((cidr) => ({ bytes: bytesOf(networkOf(cidr)), length: prefixLengthOf(cidr) })),
      carriage: agreement?.carriage ?? 'segments',
      send: agreement?.send,
      receive: agreement?.receive ?? [],
    });
  }

  #hear(message: Parameters<ThreadsOptions['onMessage']>[0]): void {
    const open = this.#open;
    if (!open) return;
    if (message.kind === 'broken') {
      void this.#broken(open, message.reason);
      return;
    }
    const node = this.#nodes.get(message.slot);
    if (node === undefined) return;
    if (message.kind === 'control') open.negotiation.received(node, message.bytes);
    else if (message.kind === 'refused') open.negotiation.refused(node);
    else open.negotiation.unknownSession(node);
  }

  async #broken({ item }: Open, reason: string): Promise<void> {
    this.#options.log.warn({ reason }, 'the tunnel is interrupted');
    await this.#end();
    for (const listener of this.#listeners) listener(item);
  }

  /** What finds no room is lost, as on any way. */
  #send({ socketFd }: Threads, end: IpAddress, port: number, bytes: Uint8Array): void {
    trySendDatagramTo(socketFd, bytes, socketAddress(end, port));
  }

  #save(): void {
    this.#saving ??= setTimeout(() => this.#saveNow(), SAVE_MS).unref();
  }

  #saveNow(): void {
    clearTimeout(this.#saving);
    this.#saving = undefined;
    if (!this.#open) return;
    try {
      savePath(this.#options.file, { path: this.#open.item, peers: [...this.peers().values()] });
    } catch (err) {
      this.#options.log.warn(
        { err },
        'what the tunnel carries cannot be saved: the next agent will wait for the cluster',
      );
    }
  }

  status(): TunStatus {
    const open = this.#open;
    if (!open) return { problems: [], peers: [], dropped: {} };
    const { item, threads, negotiation, secret } = open;
    return {
      path: item,
      problems: [secret?.problem ?? []].flat(),
      peers: [...this.#peers].map(
        ([
          node,
          {
            item: { end },
            slot,
          },
        ]) => ({
          node,
          end,
          ...negotiation.status(node),
          ...trafficOf(threads, slot),
        }),
      ),
      dropped: { ...dropsOf(threads, 0), ...queueDrops(item.link, threads.socketFd) },
    };
  }
}

/** Nothing would pass: the node must not be given pods. */
function withoutSecret({ link }: TunPathItem, problem: string | undefined, ended: AbortController): KernelError {
  ended.abort();
  return new KernelError({ code: 'ENOKEY', operation: 'open', object: `the tunnel of ${link}`, detail: problem });
}

function startThreads(item: TunPathItem, ended: AbortController, onMessage: ThreadsOptions['onMessage']): Threads {
  try {
    return new Threads({ item, onMessage });
  } catch (error) {
    ended.abort();
    throw error;
  }
}

function trafficOf({ outbound, inbound }: Threads, slot: number): Pick<TunPeerStatus, 'sent' | 'received' | 'dropped'> {
  const [sent, received] = [outbound.read(slot), inbound.read(slot)];
  return {
    sent: { packets: sent.packets, bytes: sent.bytes },
    received: { packets: received.packets, bytes: received.bytes },
    dropped: dropsOf({ outbound, inbound }, slot),
  };
}

const TRAFFIC = new Set(['packets', 'bytes', 'datagrams']);

function dropsOf({ outbound, inbound }: Pick<Threads, 'outbound' | 'inbound'>, slot: number): TunDrops {
  const drops: Record<string, number> = {};
  for (const counted of [outbound.read(slot), inbound.read(slot)]) {
    for (const [name, value] of Object.entries<number>(counted)) {
      if (!TRAFFIC.has(name) && value > 0) drops[name] = (drops[name] ?? 0) + value;
    }
  }
  return drops;
}

/** SO_MEMINFO and SK_MEMINFO_DROPS (linux/sock_diag.h). */
const SOL_SOCKET = 1;
const SO_MEMINFO = 55;
const SK_MEMINFO_DROPS = 8;

/** What the kernel dropped because the threads were busy: packets of the device, datagrams of the socket. */
function queueDrops(link: string, socketFd: number): TunDrops {
  const memory = Buffer.alloc(36);
  getsockopt(socketFd, SOL_SOCKET, SO_MEMINFO, memory);
  const received = memory.readUInt32LE(4 * SK_MEMINFO_DROPS);
  let sent = 0;
  try {
    sent = Number(readFileSync(`/sys/class/net/${link}/statistics/tx_dropped`, 'utf8'));
  } catch {
    // Without the device there is no queue.
  }
  return { ...(sent > 0 && { deviceQueueFull: sent }), ...(received > 0 && { socketQueueFull: received }) };
}
