/**
 * The sessions with one peer. The node whose name is less offers, by a nonce of its own; the other answers with one of its own,
 * and both have the keys. Each nonce is drawn for one session, so nothing that was recorded can make a session again. A
 * session is sent under only once the peer has shown that it holds it, by a message under its keys; the one before is
 * received under for a while, for what is still on its way.
 */
import type { SessionKey } from './cipher.ts';
import { type Cipher, type End, isSameSecret, type Secret, type SessionKeys, sessionKeys } from './keys.ts';
import { type Hello, NONCE_BYTES } from './wire.ts';

export interface Session {
  readonly keys: SessionKeys;
  readonly secret: Secret;
  /** As the peer said when the session was made. */
  readonly peerLargestBytes: number;
  readonly madeMs: number;
}

export interface SessionsOptions {
  readonly self: string;
  readonly peer: string;
  readonly cipher: Cipher;
  readonly random: (bytes: number) => Uint8Array;
  readonly clock: () => number;
}

/** How long a session is received under after another has taken its place. */
const FORMER_MS = 15_000;
/** How long an answer waits for the proof that the peer got it. */
const ANSWERED_MS = 30_000;
/** Bounds of what a peer, or who replays its messages, can make this node keep. */
const MOST_FORMER = 4;
const MOST_ANSWERED = 4;

interface Answer {
  readonly offer: Uint8Array;
  readonly nonce: Uint8Array;
  readonly session: Session;
}

export class Sessions {
  readonly #options: SessionsOptions;
  #current: Session | undefined;
  #former: readonly { readonly session: Session; readonly untilMs: number }[] = [];
  /** Offered by this node and not answered yet. */
  #offer: { readonly nonce: Uint8Array; readonly secret: Secret } | undefined;
  /** Offered by this node and answered; the peer has not shown yet that it holds it. */
  #proposed: Session | undefined;
  /** Offered by the peer, which has not shown yet that it got the answer; oldest first. */
  #answers: readonly Answer[] = [];

  constructor(options: SessionsOptions) {
    this.#options = options;
  }

  /** What is sent under. */
  get current(): Session | undefined {
    return this.#current;
  }

  get proposed(): Session | undefined {
    return this.#proposed;
  }

  /** What is received under, newest first. Answers are not yet: the peer sends nothing under them before it was confirmed. */
  get receiving(): readonly SessionKey[] {
    const former = this.#former.map(({ session }) => session);
    return [this.#proposed, this.#current, ...former].flatMap((session) => session?.keys.receive ?? []);
  }

  /** The nonce to offer; the same until it is answered, so that a repeated offer is not another one. */
  offer(secret: Secret): Uint8Array {
    if (!this.#offer || !isSameSecret(this.#offer.secret, secret)) this.#offer = { nonce: this.#draw(), secret };
    return this.#offer.nonce;
  }

  /** Takes an authentic answer to the offer that stands. False for any other. */
  propose(answer: Hello, secret: Secret): boolean {
    const offer = this.#offer;
    if (!offer || !isSameSecret(offer.secret, secret) || Buffer.compare(offer.nonce, answer.echo) !== 0) return false;
    this.#offer = undefined;
    this.#proposed = this.#make(secret, offer.nonce, answer);
    return true;
  }

  /** The nonce that answers an authentic offer; the same for an offer that was answered already. */
  answer(offer: Hello, secret: Secret): Uint8Array {
    const known = this.#answers.find((answer) => Buffer.compare(answer.offer, offer.nonce) === 0);
    if (known) return known.nonce;
    const nonce = this.#draw();
    const answer = { offer: offer.nonce, nonce, session: this.#make(secret, nonce, offer) };
    this.#answers = [...this.#answers, answer].slice(-MOST_ANSWERED);
    return nonce;
  }

  #make(secret: Secret, ownNonce: Uint8Array, { nonce, largestBytes }: Hello): Session {
    const { self, peer, cipher, clock } = this.#options;
    const [own, other]: [End, End] = [
      { node: self, nonce: ownNonce },
      { node: peer, nonce },
    ];
    return { keys: sessionKeys(secret, cipher, own, other), secret, peerLargestBytes: largestBytes, madeMs: clock() };
  }

  #draw(): Uint8Array {
    return this.#options.random(NONCE_BYTES);
  }

  /** Whose messages carry this id, of those that the peer may know of. */
  find(id: number): Session | undefined {
    const others = [...this.#former.map(({ session }) => session), ...this.#answers.map(({ session }) => session)];
    return [this.#current, this.#proposed, ...others].find((session) => session?.keys.receive.id === id);
  }

  /** The peer has shown that it holds this session. False when that changes nothing. */
  confirm(session: Session): boolean {
    const place = this.#answers.findIndex((answer) => answer.session === session);
    if (place < 0 && session !== this.#proposed) return false;
    // Answers before this one are to offers that the peer has given up.
    this.#answers = this.#answers.slice(place + 1);
    if (session === this.#proposed) this.#proposed = undefined;
    if (this.#current) this.#retire(this.#current);
    this.#current = session;
    return true;
  }

  /** Gives up the offer that was answered; what the peer may send under it meanwhile is received. */
  abandon(): void {
    if (this.#proposed) this.#retire(this.#proposed);
    this.#proposed = undefined;
  }

  #retire(session: Session): void {
    const untilMs = this.#options.clock() + FORMER_MS;
    this.#former = [{ session, untilMs }, ...this.#former].slice(0, MOST_FORMER);
  }

  /** Forgets what is too old, and everything of a secret that is none of these. True when that changed what is in use. */
  expire(secrets: readonly Secret[]): boolean {
    const now = this.#options.clock();
    const isGood = (of: { readonly secret: Secret }): boolean =>
      secrets.some((secret) => isSameSecret(secret, of.secret));
    const kept = [this.#current, this.#proposed, this.#offer].every((one) => !one || isGood(one));
    if (kept && this.#former.length === 0 && this.#answers.length === 0) return false;
    const before = [...this.receiving, this.#current?.keys.send];
    if (this.#current && !isGood(this.#current)) this.#current = undefined;
    if (this.#proposed && !isGood(this.#proposed)) this.#proposed = undefined;
    if (this.#offer && !isGood(this.#offer)) this.#offer = undefined;
    this.#former = this.#former.filter(({ session, untilMs }) => now < untilMs && isGood(session));
    this.#answers = this.#answers.filter(({ session }) => now < session.madeMs + ANSWERED_MS && isGood(session));
    const after = [...this.receiving, this.#current?.keys.send];
    return before.length !== after.length || before.some((key, i) => key !== after[i]);
  }
}
