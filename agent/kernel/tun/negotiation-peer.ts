/** What this node says to one peer, hears from it, and has agreed with it. */
import type { IpAddress } from '../../model/ip.ts';
import type { TunCarriage } from '../../model/items.ts';
import type { SessionKey } from './cipher.ts';
import { authenticate, isAuthentic, isCipher, isSameSecret, type Secret } from './keys.ts';
import type { NegotiationOptions } from './negotiation.ts';
import { AliveCheck, SizeCheck } from './negotiation-checks.ts';
import { Budget, chance, Greetings, Rumour, Showing } from './negotiation-pace.ts';
import { type AgreementStatus, type Mismatch, reportOf } from './negotiation-report.ts';
import { type Session, Sessions } from './negotiation-sessions.ts';
import {
  type Control,
  decodeControl,
  EPOCH_BYTES,
  encodeControl,
  type Hello,
  MAX_DATAGRAM_BYTES,
  NONCE_BYTES,
  PROBE_BYTES,
  type Probe,
} from './wire.ts';

/** How data go to a peer and come from it. */
export interface Agreement {
  readonly carriage: TunCarriage;
  /** With encryption, once a session stands. */
  readonly send?: SessionKey;
  /** Newest first: a session that is about to stand, the one that does, and some before. */
  readonly receive: readonly SessionKey[];
}

/** A session's life; whoever cannot offer another asks for one a little later. Under one key GCM is to see little (docs/tun.md). */
const SESSION_MS = { offer: 3_600_000, ask: 3_900_000 } as const;
/** How long the new secret may take to reach a peer before it is called late. */
const LATE_SECRET_MS = 120_000;
/** Refusals and mismatches are told with every greeting; without any more they are over. */
const RUMOUR_MS = 60_000;
/** What is shown may have been lost on the other side; sooner it is only slow. */
const SLOW_MS = 1_000;

const NO_NONCE = new Uint8Array(NONCE_BYTES);
const NO_EPOCH = new Uint8Array(EPOCH_BYTES);

export class NegotiationPeer {
  readonly end: IpAddress;
  readonly #node: string;
  readonly #options: NegotiationOptions;
  /** With encryption. */
  readonly #sessions: Sessions | undefined;
  readonly #greetings: Greetings;
  readonly #alive: AliveCheck;
  readonly #size: SizeCheck;
  readonly #budget: Budget;
  /** Peers are many, and are not all to have new sessions at once. */
  readonly #youngerMs: number;
  /** Without encryption, the greeting that an answer belongs to. */
  readonly #nonce: Uint8Array;
  #agreement: Agreement = { carriage: 'segments', receive: [] };
  /** Until onAgreed is done with the last one. */
  #installing: Promise<void> | undefined;
  #hasLeft = false;
  #agreedAtMs: number | undefined;
  readonly #refused: Rumour<true>;
  readonly #mismatch: Rumour<Mismatch>;
  /** Without encryption, what the peer takes. */
  #largestBytes = 0;
  /** Since when the session is not under the present secret. */
  #lateSinceMs: number | undefined;
  #showing: Showing | undefined;
  /** A new session is wanted although one stands: the peer seems not to have it. */
  #isAskedForSession = false;
  /** Which secret the peer asked for a session under, as it may not have another. */
  #askedSecret: Secret | undefined;

  constructor(options: NegotiationOptions, node: string, end: IpAddress) {
    const { self, encryption, random, clock } = options;
    this.#options = options;
    this.#node = node;
    this.end = end;
    this.#greetings = new Greetings(options);
    this.#alive = new AliveCheck(options);
    this.#size = new SizeCheck(options);
    this.#budget = new Budget(clock);
    this.#refused = new Rumour(clock, RUMOUR_MS);
    this.#mismatch = new Rumour(clock, RUMOUR_MS);
    this.#youngerMs = (SESSION_MS.offer / 20) * chance(options);
    this.#nonce = random(NONCE_BYTES);
    if (isCipher(encryption)) this.#sessions = new Sessions({ self, peer: node, cipher: encryption, random, clock });
  }

  /** Says nothing more. */
  leave(): void {
    this.#hasLeft = true;
  }

  tick(): void {
    if (this.#sessions) this.#tickSessions(this.#sessions);
    this.#greetIfDue();
    if (this.#agreedAtMs === undefined) return;
    const token = this.#alive.tick();
    if (token === 'silent') this.#falls();
    else if (token) this.#probe(token, PROBE_BYTES);
    if (this.#options.carriage === 'whole') this.#tickSize();
  }

  #tickSessions(sessions: Sessions): void {
    const { clock } = this.#options;
    if (sessions.expire(this.#secrets)) this.#agree();
    if (!sessions.current) this.#agreedAtMs = undefined;
    if (!sessions.proposed) this.#showing = undefined;
    this.#lateSinceMs = this.#isUnderFormerSecret ? (this.#lateSinceMs ?? clock()) : undefined;
    const what = this.#showing?.tick();
    if (what === 'show') this.#onceInstalled(() => this.#show());
    else if (what === 'give-up') this.#giveUp(sessions);
  }

  #tickSize(): void {
    const largestBytes = this.#sessions?.current?.peerLargestBytes ?? this.#largestBytes;
    const token = this.#size.tick();
    if (token) this.#probe(token, Math.max(PROBE_BYTES, Math.min(MAX_DATAGRAM_BYTES, largestBytes)));
    this.#agree();
  }

  /** The peer does not answer any more. What was agreed holds until it says otherwise. */
  #falls(): void {
    this.#agreedAtMs = undefined;
    this.#hurry();
  }

  // Greetings.

  #greetIfDue(): void {
    const secret = this.#secretToGreetBy;
    if (this.#sessions && !secret) return;
    if (this.#greetings.tick(this.#wantsToGreet)) this.#say(this.#hello(secret), secret?.helloKey);
  }

  get #wantsToGreet(): boolean {
    const sessions = this.#sessions;
    if (this.#agreedAtMs === undefined) return !sessions?.proposed;
    if (!sessions?.current || sessions.proposed) return false;
    const lifeMs = (this.#offers ? SESSION_MS.offer : SESSION_MS.ask) - this.#youngerMs;
    const isOld = this.#options.clock() >= sessions.current.madeMs + lifeMs;
    return isOld || this.#isAskedForSession || this.#isUnderFormerSecret;
  }

  /** With encryption one of both offers sessions, and a greeting of the other asks for one: so there is one order of them. */
  get #offers(): boolean {
    return this.#options.self < this.#node;
  }

  #hello(secret: Secret | undefined): Hello {
    const { carriage, encryption, random } = this.#options;
    const offered = secret && (this.#offers ? this.#sessions?.offer(secret) : random(NONCE_BYTES));
    return {
      kind: 'hello',
      encryption,
      carriage,
      largestBytes: MAX_DATAGRAM_BYTES,
      nonce: offered ?? this.#nonce,
      epoch: secret?.epoch ?? NO_EPOCH,
      echo: NO_NONCE,
    };
  }

  #hurry(): void {
    this.#greetings.hurry();
    this.#greetIfDue();
  }

  get #secrets(): readonly Secret[] {
    const { secret } = this.#options;
    return [secret?.current, secret?.former].filter((one) => one !== undefined);
  }

  get #secretToGreetBy(): Secret | undefined {
    const asked = this.#askedSecret;
    return this.#secrets.find((secret) => asked && isSameSecret(secret, asked)) ?? this.#options.secret?.current;
  }

  get #isUnderFormerSecret(): boolean {
    const [session, secret] = [this.#sessions?.current, this.#options.secret?.current];
    return session !== undefined && secret !== undefined && !isSameSecret(session.secret, secret);
  }

  // What comes in.

  received(bytes: Uint8Array): void {
    if (!this.#budget.take()) return;
    const message = decodeControl(bytes);
    if (message === undefined) return;
    if ('nonce' in message) this.#heardHello(message, bytes);
    else if (this.#sessions) this.#heardSealedProbe(this.#sessions, message, bytes);
    else if (message.session === 0) this.#heardProbe(message, undefined);
  }

  #heardHello(hello: Hello, bytes: Uint8Array): void {
    const { encryption } = this.#options;
    if (hello.encryption !== encryption) this.#mismatches({ kind: 'encryption', theirs: hello.encryption });
    else if (this.#sessions) this.#heardSealedHello(this.#sessions, hello, bytes);
    else if (hello.kind === 'hello') this.#answerPlain(hello);
    else this.#answeredPlain(hello);
  }

  #heardSealedHello(sessions: Sessions, hello: Hello, bytes: Uint8Array): void {
    const secret = this.#secrets.find(({ epoch }) => Buffer.compare(epoch, hello.epoch) === 0);
    if (!secret) this.#mismatches({ kind: 'secret', epoch: Buffer.from(hello.epoch).toString('hex') });
    else if (!isAuthentic(bytes, secret.helloKey, this.#node, this.#options.self)) return;
    else if (hello.kind === 'helloAck') this.#answered(sessions, hello, secret);
    else if (this.#offers) this.#askedForSession(sessions, secret);
    else this.#say(this.#answer(hello, sessions.answer(hello, secret), secret.epoch), secret.helloKey);
  }

  #answer(hello: Hello, nonce: Uint8Array, epoch: Uint8Array): Hello {
    return { ...this.#hello(undefined), kind: 'helloAck', nonce, epoch, echo: hello.nonce };
  }

  #answerPlain(hello: Hello): void {
    this.#largestBytes = hello.largestBytes;
    this.#say(this.#answer(hello, this.#nonce, NO_EPOCH), undefined);
    // The peer is there: it need not wait for the next greeting.
    if (this.#agreedAtMs === undefined) this.#hurry();
  }

  #answeredPlain(hello: Hello): void {
    if (Buffer.compare(hello.echo, this.#nonce) !== 0) return;
    this.#largestBytes = hello.largestBytes;
    this.#stands();
  }

  #answered(sessions: Sessions, hello: Hello, secret: Secret): void {
    if (!this.#offers || !sessions.propose(hello, secret)) return;
    this.#greetings.answered();
    this.#agree();
    this.#showing = new Showing(this.#options);
    this.tick();
  }

  /** The peer has no session, or knows better why another is needed. */
  #askedForSession(sessions: Sessions, secret: Secret): void {
    this.#askedSecret = secret;
    this.unknownSession();
    if (!sessions.proposed) this.#hurry();
  }

  /** Data came under a session that this node does not have: the peer must be told to use another. */
  unknownSession(): void {
    const sessions = this.#sessions;
    if (!sessions || (this.#showing && this.#showing.ageMs < SLOW_MS)) return;
    this.#giveUp(sessions);
    this.#isAskedForSession = true;
    this.#hurry();
  }

  #giveUp(sessions: Sessions): void {
    sessions.abandon();
    this.#showing = undefined;
    this.#agree();
  }

  #mismatches(what: Mismatch): void {
    if (!this.#mismatch.tell(what)) return;
    // The peer is to know as well, and whether it still holds what was agreed is to be seen.
    this.#alive.doubt();
    this.#hurry();
  }

  #heardSealedProbe(sessions: Sessions, probe: Probe, bytes: Uint8Array): void {
    const session = sessions.find(probe.session);
    if (!session) this.unknownSession();
    else if (isAuthentic(bytes, session.keys.receiveControl, this.#node, this.#options.self)) {
      // Whichever it is, the peer has made these keys.
      if (sessions.confirm(session)) this.#stands();
      this.#heardProbe(probe, session);
    }
  }

  #heardProbe({ kind, token, sizeBytes }: Probe, session: Session | undefined): void {
    if (kind === 'probe') {
      const answer = { kind: 'probeAck', sizeBytes, session: session?.keys.send.id ?? 0, token } as const;
      this.#onceInstalled(() => this.#say(answer, session?.keys.sendControl));
    } else if (this.#alive.isAnsweredBy(token)) this.#heard();
    else this.#size.answered(token);
    this.#agree();
  }

  /** The other side of the agreement has shown that it has it, too. */
  #stands(): void {
    this.#isAskedForSession = false;
    this.#askedSecret = undefined;
    this.#greetings.answered();
    this.#agreedAtMs ??= this.#options.clock();
    this.#heard();
    this.#agree();
  }

  #heard(): void {
    this.#alive.heard();
    this.#refused.deny();
    this.#mismatch.deny();
  }

  refused(): void {
    if (this.#refused.tell(true)) this.#alive.doubt();
  }

  // What goes out.

  #show(): void {
    const [session, token] = [this.#sessions?.proposed, this.#showing?.token];
    if (session && token) this.#sayProbe(token, PROBE_BYTES, session);
  }

  #probe(token: Uint8Array, sizeBytes: number): void {
    this.#sayProbe(token, sizeBytes, this.#sessions?.current);
  }

  #sayProbe(token: Uint8Array, sizeBytes: number, session: Session | undefined): void {
    const probe = { kind: 'probe', sizeBytes, session: session?.keys.send.id ?? 0, token } as const;
    this.#say(probe, session?.keys.sendControl);
  }

  #say(message: Control, key: Uint8Array | undefined): void {
    if (this.#hasLeft) return;
    const bytes = encodeControl(message);
    if (key) authenticate(bytes, key, this.#options.self, this.#node);
    this.#options.send(this.end, bytes);
  }

  /** Tells what holds, if that is something else than before. */
  #agree(): void {
    const send = this.#sessions?.current?.keys.send;
    const carriage = this.#size.isPassing ? 'whole' : 'segments';
    const agreement = { carriage, receive: this.#sessions?.receiving ?? [], ...(send && { send }) } as const;
    if (this.#hasLeft || isSameAgreement(agreement, this.#agreement)) return;
    this.#agreement = agreement;
    const installing = this.#options.onAgreed(this.#node, agreement) ?? undefined;
    this.#installing = installing;
    void installing?.finally(() => {
      if (this.#installing === installing) this.#installing = undefined;
    });
  }

  #onceInstalled(then: () => void): void {
    if (this.#installing === undefined) then();
    else void this.#installing.then(then);
  }

  status(): AgreementStatus {
    const { clock, encryption } = this.#options;
    const now = clock();
    return reportOf({
      node: this.#node,
      end: this.end,
      carriage: this.#agreement.carriage,
      encryption,
      agreedForMs: this.#agreedAtMs === undefined ? undefined : now - this.#agreedAtMs,
      refusedForMs: this.#refused.forMs,
      mismatchedForMs: this.#mismatch.forMs,
      mismatch: this.#mismatch.what,
      quietForMs: now - this.#alive.heardMs,
      hasSecret: !this.#sessions || this.#secrets.length > 0,
      isUnderFormerSecret: this.#lateSinceMs !== undefined && now >= this.#lateSinceMs + LATE_SECRET_MS,
    });
  }
}

/** Keys are the same as long as they are the same objects. */
const isSameAgreement = (a: Agreement, b: Agreement): boolean =>
  a.carriage === b.carriage &&
  a.send === b.send &&
  a.receive.length === b.receive.length &&
  a.receive.every((key, i) => key === b.receive[i]);
