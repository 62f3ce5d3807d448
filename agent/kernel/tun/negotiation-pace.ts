/** How often a peer is spoken to, and how much of what it says is looked at. */
import { isDeepStrictEqual } from 'node:util';
import { TOKEN_BYTES } from './wire.ts';

export interface PaceOptions {
  /** Milliseconds that only go forward. */
  readonly clock: () => number;
  /** So many bytes of chance that nobody can guess. */
  readonly random: (bytes: number) => Uint8Array;
}

/** From 0 to 1. */
export const chance = ({ random }: PaceOptions): number => Buffer.from(random(4)).readUInt32BE() / 2 ** 32;

/** Greetings without an answer: this long apart, doubling, of which chance takes up to a half away. */
const GREET_MS = { least: 200, most: 15_000 } as const;
/** Whatever makes a greeting urgent, they are this far apart. */
const URGENT_APART_MS = 1_000;

/** When to greet. */
export class Greetings {
  readonly #options: PaceOptions;
  #dueMs: number | undefined;
  #lastMs = Number.NEGATIVE_INFINITY;
  #unanswered = 0;

  constructor(options: PaceOptions) {
    this.#options = options;
  }

  /** True when one is to be sent now. `isWanted`: as long as this is so, greetings are repeated. */
  tick(isWanted: boolean): boolean {
    const now = this.#options.clock();
    if (isWanted) this.#dueMs ??= now;
    if (this.#dueMs === undefined || now < this.#dueMs) return false;
    this.#lastMs = now;
    this.#dueMs = isWanted ? now + this.#pauseMs() : undefined;
    return true;
  }

  #pauseMs(): number {
    const { least, most } = GREET_MS;
    const doubled = least * 2 ** Math.min(this.#unanswered++, 20);
    return Math.min(most, doubled) * (1 - chance(this.#options) / 2);
  }

  /** The next one is due as soon as may be. */
  hurry(): void {
    const soonestMs = Math.max(this.#options.clock(), this.#lastMs + URGENT_APART_MS);
    this.#dueMs = Math.min(this.#dueMs ?? soonestMs, soonestMs);
  }

  /** What was wanted is there. */
  answered(): void {
    this.#dueMs = undefined;
    this.#unanswered = 0;
  }
}

const SHOW_AGAIN_MS = 300;
const SHOW_AT_ALL_MS = 6_000;

/** When to show the peer a session that it answered, until it confirms. */
export class Showing {
  readonly token: Uint8Array;
  readonly #clock: () => number;
  readonly #sinceMs: number;
  #dueMs: number;
  #times = 0;

  constructor({ clock, random }: PaceOptions) {
    this.#clock = clock;
    this.token = random(TOKEN_BYTES);
    this.#sinceMs = clock();
    this.#dueMs = this.#sinceMs;
  }

  get ageMs(): number {
    return this.#clock() - this.#sinceMs;
  }

  /** Whether to show it now, or to give it up. */
  tick(): 'show' | 'give-up' | undefined {
    const now = this.#clock();
    if (this.ageMs >= SHOW_AT_ALL_MS) return 'give-up';
    if (now < this.#dueMs) return undefined;
    this.#dueMs = now + SHOW_AGAIN_MS * 2 ** this.#times++;
    return 'show';
  }
}

/** Control messages of one peer that are looked at: this many at once, and this many a second. */
const AT_ONCE = 32;
const A_SECOND = 8;

/** A bucket of tokens: a flood costs no more than what this gives. */
export class Budget {
  readonly #clock: () => number;
  #left = AT_ONCE;
  #atMs: number;

  constructor(clock: () => number) {
    this.#clock = clock;
    this.#atMs = clock();
  }

  /** False when there is nothing left for now. */
  take(): boolean {
    const now = this.#clock();
    this.#left = Math.min(AT_ONCE, this.#left + ((now - this.#atMs) / 1000) * A_SECOND);
    this.#atMs = now;
    if (this.#left < 1) return false;
    this.#left--;
    return true;
  }
}

/** Something that is told again and again as long as it is so. */
export class Rumour<T> {
  readonly #clock: () => number;
  readonly #lastsMs: number;
  #told: { readonly what: T; readonly sinceMs: number; readonly atMs: number } | undefined;

  /** Over when it was not told for `lastsMs`. */
  constructor(clock: () => number, lastsMs: number) {
    this.#clock = clock;
    this.#lastsMs = lastsMs;
  }

  /** True when it is news. */
  tell(what: T): boolean {
    const now = this.#clock();
    const isNews = !isDeepStrictEqual(this.what, what);
    this.#told = { what, sinceMs: isNews || !this.#told ? now : this.#told.sinceMs, atMs: now };
    return isNews;
  }

  deny(): void {
    this.#told = undefined;
  }

  get what(): T | undefined {
    return this.#told && this.#clock() < this.#told.atMs + this.#lastsMs ? this.#told.what : undefined;
  }

  get forMs(): number | undefined {
    return this.what === undefined || !this.#told ? undefined : this.#clock() - this.#told.sinceMs;
  }
}
