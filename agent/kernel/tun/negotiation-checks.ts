/** What is found out by probes: whether a peer answers at all, and whether datagrams of full size reach it. */
import type { PaceOptions } from './negotiation-pace.ts';
import { TOKEN_BYTES } from './wire.ts';

/** How long a peer may say nothing before it is asked. */
const QUIET_MS = 15_000;
const ASK_AGAIN_MS = 1_000;
const MOST_ASKED = 5;

/** A probe that is on its way. */
interface Asked {
  readonly token: Uint8Array;
  readonly sentMs: number;
  readonly times: number;
}

const answers = (asked: Asked | undefined, token: Uint8Array): boolean =>
  asked !== undefined && Buffer.compare(asked.token, token) === 0;

/** Asks a peer that has agreed whether it is still there. */
export class AliveCheck {
  readonly #options: PaceOptions;
  #heardMs: number;
  #asked: Asked | undefined;
  #isDoubted = false;

  constructor(options: PaceOptions) {
    this.#options = options;
    this.#heardMs = options.clock();
  }

  /** When the peer last said something that it cannot have said before. */
  get heardMs(): number {
    return this.#heardMs;
  }

  heard(): void {
    this.#heardMs = this.#options.clock();
    this.#asked = undefined;
    this.#isDoubted = false;
  }

  /** Something speaks against it: ask now. */
  doubt(): void {
    this.#isDoubted = true;
  }

  /** The token of a probe that is due; `silent` once enough of them have had no answer. */
  tick(): Uint8Array | 'silent' | undefined {
    const now = this.#options.clock();
    const asked = this.#asked;
    if (asked ? now < asked.sentMs + ASK_AGAIN_MS : now < this.#heardMs + QUIET_MS && !this.#isDoubted)
      return undefined;
    if (asked && asked.times >= MOST_ASKED) {
      this.#asked = undefined;
      this.#isDoubted = false;
      return 'silent';
    }
    // The same token again: whichever answer comes is one.
    const token = asked?.token ?? this.#options.random(TOKEN_BYTES);
    this.#asked = { token, sentMs: now, times: (asked?.times ?? 0) + 1 };
    return token;
  }

  isAnsweredBy(token: Uint8Array): boolean {
    return answers(this.#asked, token);
  }
}

const SIZE_EVERY_MS = 10_000;
const SIZE_LOST_MS = 2_000;
const LEAST_PASSED = 3;
const MOST_LOST = 2;

/** Tries whether datagrams of full size reach the peer, fragments as they are. */
export class SizeCheck {
  readonly #options: PaceOptions;
  #asked: Asked | undefined;
  #nextMs = Number.NEGATIVE_INFINITY;
  #passed = 0;
  #lost = 0;
  #isPassing = false;

  constructor(options: PaceOptions) {
    this.#options = options;
  }

  /** Three in a row came through, and no two in a row were lost since. */
  get isPassing(): boolean {
    return this.#isPassing;
  }

  /** The token of a probe of full size that is due. */
  tick(): Uint8Array | undefined {
    const now = this.#options.clock();
    if (this.#asked && now >= this.#asked.sentMs + SIZE_LOST_MS) this.#loses(now);
    if (this.#asked || now < this.#nextMs) return undefined;
    const token = this.#options.random(TOKEN_BYTES);
    this.#asked = { token, sentMs: now, times: 1 };
    return token;
  }

  #loses(now: number): void {
    this.#asked = undefined;
    this.#passed = 0;
    this.#lost++;
    if (this.#lost >= MOST_LOST) this.#isPassing = false;
    this.#nextMs = this.#isPassing ? now : now + SIZE_EVERY_MS;
  }

  /** An answer that says that all of the probe arrived. */
  answered(token: Uint8Array): void {
    if (!answers(this.#asked, token)) return;
    this.#asked = undefined;
    this.#lost = 0;
    this.#passed++;
    if (this.#passed >= LEAST_PASSED) this.#isPassing = true;
    const now = this.#options.clock();
    this.#nextMs = this.#isPassing ? now + SIZE_EVERY_MS : now;
  }
}
