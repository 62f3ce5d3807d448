/**
 * The request socket. The kernel carries a netlink request out inside send(2), and its answer waits in the receive queue by
 * the time that returns: nothing here waits, and a request costs two system calls and no turn of the event loop.
 */
import { closeSync } from 'node:fs';
import { setImmediate as yieldToEvents } from 'node:timers/promises';
import { KernelError } from '../errors.ts';
import { openNetlinkFd, receiveDatagram, sendDatagram, sendDatagramInBackground, setsockoptInt } from '../libc.ts';
import {
  Answer,
  encodeAll,
  NETLINK_EXT_ACK,
  NETLINK_GET_STRICT_CHK,
  NETLINK_PROTOCOL,
  type NetlinkClient,
  type NetlinkMessage,
  type NetlinkRequest,
  nameOf,
  type Outcome,
  SOL_NETLINK,
  splitDatagram,
  unwrap,
  wholeDump,
} from './message.ts';

/** The kernel writes dumps in pieces of at most 32 KiB. One buffer for all: a datagram is copied out at once. */
const BUFFER = Buffer.alloc(128 << 10);
/** Requests in one datagram: should all be refused, what the kernel says of them must fit the receive buffer. */
const WINDOW = 64;
/** Pieces of a dump that are read in one turn of the event loop. */
const PIECES_PER_TURN = 8;
const LAST_SEQUENCE = 0xffff_0000;

export interface NetlinkOptions {
  /** Open the socket in this network namespace; the caller may close the fd. */
  readonly netnsFd?: number | undefined;
}

/** Nothing else than answers arrives on it: a dump on a socket with memberships breaks. */
export class NetlinkSocket implements NetlinkClient {
  readonly #fd: number;
  #sequence = 0;
  #closed = false;
  /** What takes turns of the event loop: a dump, a request in the background. What is asked meanwhile waits for its end. */
  #turn: Promise<unknown> = Promise.resolve();
  /** How many are under way or wait for their turn. */
  #busy = 0;

  /** Throws KernelError. */
  constructor(protocol: number, { netnsFd }: NetlinkOptions = {}) {
    this.#fd = openNetlinkFd(protocol, netnsFd);
    setsockoptInt(this.#fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    if (protocol === NETLINK_PROTOCOL.ROUTE) setsockoptInt(this.#fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
  }

  async request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    const exchange = () => this.#exchange([request]);
    return unwrap((this.#busy > 0 ? await this.#inTurn(async () => exchange()) : exchange())[0] as Outcome);
  }

  /** The same without blocking this thread while the kernel works, as it does for milliseconds when links are deleted. */
  requestInBackground(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return this.#inTurn(async () => {
      const { first, bytes } = this.#encode([request]);
      await sendDatagramInBackground(this.#fd, bytes, nameOf(request));
      return unwrap(this.#collect([request], first)[0] as Outcome);
    });
  }

  async batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]> {
    const exchange = () => this.#exchangeAll(requests);
    const outcomes = this.#busy > 0 ? await this.#inTurn(async () => exchange()) : exchange();
    return outcomes.map((outcome) => (outcome instanceof KernelError ? outcome : undefined));
  }

  dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return this.#inTurn(() => wholeDump(request, (asDump) => this.#dump(asDump)));
  }

  /** Not while a request is carried out in the background: its descriptor would be somebody else's. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#fd);
  }

  #inTurn<T>(action: () => Promise<T>): Promise<T> {
    this.#busy++;
    const result = this.#turn.then(action).finally(() => this.#busy--);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  #exchangeAll(requests: readonly NetlinkRequest[]): readonly Outcome[] {
    if (requests.length <= WINDOW) return requests.length === 0 ? [] : this.#exchange(requests);
    const outcomes: Outcome[] = [];
    for (let at = 0; at < requests.length; at += WINDOW) {
      outcomes.push(...this.#exchange(requests.slice(at, at + WINDOW)));
    }
    return outcomes;
  }

  #exchange(requests: readonly NetlinkRequest[]): readonly Outcome[] {
    try {
      return this.#collect(requests, this.#send(requests));
    } catch (error) {
      if (error instanceof KernelError) return requests.map(() => error);
      throw error;
    }
  }

  /** Only the last is acknowledged when it succeeds: what comes before that says which of the others were refused. */
  #collect(requests: readonly NetlinkRequest[], first: number): readonly Outcome[] {
    const outcomes: (Outcome | undefined)[] = requests.map(() => undefined);
    const answers = requests.map((request) => new Answer(request));
    while (outcomes.at(-1) === undefined) {
      for (const { sequence, message } of this.#receive(requests)) {
        const outcome = answers[sequence - first]?.take(message);
        if (outcome) outcomes[sequence - first] = outcome;
      }
    }
    return outcomes.map((outcome) => outcome ?? []);
  }

  async #dump(request: NetlinkRequest): Promise<Outcome> {
    const answer = new Answer(request);
    // Whoever dumps in a loop lets others work. Not between question and answer: what changes there spoils the dump.
    await yieldToEvents();
    try {
      const asked = this.#send([request]);
      for (let pieces = 1; ; pieces++) {
        for (const { sequence, message } of this.#receive([request])) {
          const outcome = sequence === asked ? answer.take(message) : undefined;
          if (outcome) return outcome;
        }
        if (pieces % PIECES_PER_TURN === 0) await yieldToEvents();
      }
    } catch (error) {
      if (error instanceof KernelError) return error;
      throw error;
    }
  }

  /** Returns the number of the first request; the others follow. */
  #send(requests: readonly NetlinkRequest[]): number {
    const { first, bytes } = this.#encode(requests);
    sendDatagram(this.#fd, bytes, requests[0] as NetlinkRequest);
    return first;
  }

  #encode(requests: readonly NetlinkRequest[]): { readonly first: number; readonly bytes: Buffer } {
    this.#requireOpen(requests);
    if (this.#sequence > LAST_SEQUENCE) this.#sequence = 0;
    const first = this.#sequence + 1;
    this.#sequence += requests.length;
    return { first, bytes: encodeAll(requests, first) };
  }

  /** The messages stay with whoever asked, the buffer does not. Those of an exchange that broke off have older numbers. */
  #receive(requests: readonly NetlinkRequest[]) {
    this.#requireOpen(requests);
    try {
      const length = receiveDatagram(this.#fd, BUFFER, requests[0] as NetlinkRequest);
      return splitDatagram(Buffer.from(BUFFER.subarray(0, length)));
    } catch (error) {
      this.#discard();
      throw error;
    }
  }

  /** After an overrun the queue is full of what nobody waits for any more, and the kernel drops the next answer, too. */
  #discard(): void {
    for (;;) {
      try {
        receiveDatagram(this.#fd, BUFFER, { operation: 'discard', object: 'answers' });
      } catch (error) {
        if (!(error instanceof KernelError && error.code === 'ENOBUFS')) return;
      }
    }
  }

  #requireOpen(requests: readonly NetlinkRequest[]): void {
    if (this.#closed) throw new KernelError({ code: 'ECANCELED', ...whatOf(requests) });
  }
}

const whatOf = ([first]: readonly NetlinkRequest[]) => nameOf(first as NetlinkRequest);
