/**
 * Nodes whose agents negotiate over a channel that loses, delays, doubles and records, in a time of its own. Data are sealed
 * and opened by what the threads of the tunnel use.
 */
import { randomBytes } from 'node:crypto';
import { Opener, Sealer } from '../../agent/kernel/tun/cipher.ts';
import { type Secret, secretOf } from '../../agent/kernel/tun/keys.ts';
import { type Agreement, Negotiation } from '../../agent/kernel/tun/negotiation.ts';
import type { AgreementStatus } from '../../agent/kernel/tun/negotiation-report.ts';
import { readKind } from '../../agent/kernel/tun/wire.ts';
import type { IpAddress } from '../../agent/model/ip.ts';
import type { TunCarriage, TunEncryption } from '../../agent/model/items.ts';
import { ip } from './cluster-values.ts';

export interface Datagram {
  readonly from: string;
  readonly to: string;
  readonly bytes: Buffer;
}

/** When a datagram comes, in milliseconds from now, once for each number; none of them: it is lost. */
export type Channel = (datagram: Datagram) => readonly number[];

export interface NegotiatorOptions {
  readonly encryption?: TunEncryption;
  readonly carriage?: TunCarriage;
  readonly secret?: string;
  /** How long the threads take to hear of new keys; at once without it. */
  readonly installMs?: number;
}

const TICK_MS = 200;
const FORMER_MS = 300_000;
const HEADER = Buffer.alloc(12);
const endOf = (name: string): IpAddress => ip(`192.0.2.${name.charCodeAt(0)}`);
const bytesOf = (secret: string): Buffer => Buffer.from(secret.padEnd(32, '.'));

/** Nodes that all know each other, and the time. */
export class Negotiators {
  nowMs = 1_000;
  channel: Channel = () => [1];
  /** Everything that was ever sent. */
  readonly recorded: Datagram[] = [];
  readonly #nodes: ReadonlyMap<string, Negotiator>;
  #timers: { readonly atMs: number; readonly run: () => void }[] = [];
  #sent = 0;

  constructor(nodes: Readonly<Record<string, NegotiatorOptions>>) {
    const names = Object.keys(nodes);
    this.#nodes = new Map(
      Object.entries(nodes).map(([name, options]) => {
        const peers = names.filter((other) => other !== name);
        return [name, new Negotiator(this, name, peers, options)];
      }),
    );
    for (const node of this.#nodes.values()) node.start();
  }

  node(name: string): Negotiator {
    const node = this.#nodes.get(name);
    if (!node) throw new RangeError(`no node ${name}`);
    return node;
  }

  get all(): readonly Negotiator[] {
    return [...this.#nodes.values()];
  }

  send(datagram: Datagram): void {
    this.recorded.push(datagram);
    for (const delayMs of this.channel(datagram)) this.inject(datagram, delayMs);
  }

  /** Lets a datagram come, wherever it is from. */
  inject(datagram: Datagram, delayMs = 0): void {
    this.after(delayMs, () => this.#nodes.get(datagram.to)?.hear(datagram));
  }

  after(delayMs: number, run: () => void): void {
    this.#timers.push({ atMs: this.nowMs + delayMs, run });
  }

  /** Time goes on; with `data` each node sends each other a datagram a step. */
  async run(durationMs: number, { data = false, stepMs = 20 } = {}): Promise<void> {
    for (const endMs = this.nowMs + durationMs; this.nowMs < endMs; ) {
      const tick = Math.floor(this.nowMs / TICK_MS);
      this.nowMs += stepMs;
      this.#runTimers();
      await null;
      if (Math.floor(this.nowMs / TICK_MS) !== tick) for (const node of this.all) node.negotiation.tick();
      if (data) for (const node of this.all) node.sendData(() => `${this.#sent++}`);
      await null;
    }
  }

  #runTimers(): void {
    const due = this.#timers.filter(({ atMs }) => atMs <= this.nowMs).sort((a, b) => a.atMs - b.atMs);
    this.#timers = this.#timers.filter(({ atMs }) => atMs > this.nowMs);
    for (const { run } of due) run();
  }
}

/** One node: its negotiation, and what its threads would do. */
class Negotiator {
  readonly name: string;
  negotiation: Negotiation;
  /** Of each peer, the last. */
  agreements = new Map<string, Agreement>();
  /** Texts that came, as `from: text`. */
  readonly received: string[] = [];
  /** Data that were not taken, by reason. */
  readonly dropped: string[] = [];
  /** Data that could not be sent for want of a session. */
  unsent = 0;
  dataSent = 0;
  controlSent = 0;
  /** Keys in the order in which they were sent under, over all restarts. */
  readonly keysSentUnder: string[] = [];
  readonly #world: Negotiators;
  readonly #peers: readonly string[];
  #options: NegotiatorOptions;
  #secret: Secret | undefined;
  #former: { readonly secret: Secret; readonly untilMs: number } | undefined;
  #sealers = new Map<string, Sealer>();
  #openers = new Map<string, Opener>();

  constructor(world: Negotiators, name: string, peers: readonly string[], options: NegotiatorOptions) {
    this.#world = world;
    this.name = name;
    this.#peers = peers;
    this.#options = options;
    this.#secret = options.secret === undefined ? undefined : secretOf(bytesOf(options.secret));
    this.negotiation = this.#begin();
  }

  #begin(): Negotiation {
    const [node, world] = [this, this.#world];
    const { carriage = 'segments', encryption = 'none' } = this.#options;
    return new Negotiation({
      self: this.name,
      carriage,
      encryption,
      secret: {
        get current() {
          return node.#secret;
        },
        get former() {
          return node.#former && world.nowMs < node.#former.untilMs ? node.#former.secret : undefined;
        },
      },
      clock: () => world.nowMs,
      random: randomBytes,
      send: (end, bytes) => {
        this.controlSent++;
        const to = this.#peers.find((peer) => endOf(peer) === end) ?? '';
        world.send({ from: this.name, to, bytes: Buffer.from(bytes) });
      },
      onAgreed: (peer, agreement) => this.#agreed(peer, agreement),
    });
  }

  start(): void {
    for (const peer of this.#peers) this.negotiation.setPeer(peer, endOf(peer));
  }

  /** The agent ends and starts again, perhaps with other settings. */
  restart(options: NegotiatorOptions = this.#options): void {
    for (const peer of this.#peers) this.negotiation.removePeer(peer);
    this.agreements = new Map();
    this.#sealers = new Map();
    this.#openers = new Map();
    this.#former = undefined;
    if (options !== this.#options)
      this.#secret = options.secret === undefined ? undefined : secretOf(bytesOf(options.secret));
    this.#options = options;
    this.negotiation = this.#begin();
    this.start();
  }

  /** A peer is removed and comes again, as when its Node is made anew. */
  forget(peer: string): void {
    this.agreements.delete(peer);
    this.#sealers.delete(peer);
    this.#openers.delete(peer);
    this.negotiation.removePeer(peer);
    this.negotiation.setPeer(peer, endOf(peer));
  }

  /** The file has another secret now. */
  setSecret(secret: string): void {
    if (this.#secret) this.#former = { secret: this.#secret, untilMs: this.#world.nowMs + FORMER_MS };
    this.#secret = secretOf(bytesOf(secret));
  }

  #agreed(peer: string, agreement: Agreement): Promise<void> | undefined {
    this.agreements.set(peer, agreement);
    this.#useKey(peer, agreement);
    // What was on its way to a thread that has ended, or about a peer that is gone, is for nobody.
    const openers = this.#openers;
    const opener = openers.get(peer) ?? new Opener([]);
    openers.set(peer, opener);
    const install = (): void => {
      if (openers.get(peer) === opener) opener.use(agreement.receive);
    };
    const { installMs } = this.#options;
    if (installMs === undefined) return void install();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#world.after(installMs, () => {
      install();
      resolve();
    });
    return promise;
  }

  #useKey(peer: string, { send }: Agreement): void {
    const sealer = this.#sealers.get(peer);
    if (!send) this.#sealers.delete(peer);
    else if (sealer) sealer.use(send);
    else this.#sealers.set(peer, new Sealer(send));
    const key = send && `${peer} ${Buffer.from(send.key).toString('hex')}`;
    if (key !== undefined && this.keysSentUnder.findLast((one) => one.startsWith(`${peer} `)) !== key)
      this.keysSentUnder.push(key);
  }

  /** One datagram to each peer. */
  sendData(text: () => string): void {
    for (const to of this.#peers) {
      const sealer = this.#sealers.get(to);
      if (!sealer) {
        this.unsent++;
        continue;
      }
      const bytes = Buffer.alloc(100);
      const length = sealer.seal(HEADER, [Buffer.from(text())], bytes, 0);
      this.dataSent++;
      this.#world.send({ from: this.name, to, bytes: bytes.subarray(0, length) });
    }
  }

  hear({ from, bytes }: Datagram): void {
    if (readKind(bytes[0] ?? 0) !== 'sealed') {
      const memory = Buffer.from(bytes);
      this.negotiation.received(from, memory);
      memory.fill(0); // It is used again at once.
      return;
    }
    const opened = this.#openers.get(from)?.open(Buffer.from(bytes)) ?? 'unknown-session';
    if (opened === 'unknown-session') this.negotiation.unknownSession(from);
    if (typeof opened === 'string') this.dropped.push(opened);
    else this.received.push(`${from}: ${opened}`);
  }

  status(peer: string): AgreementStatus {
    return this.negotiation.status(peer);
  }
}
