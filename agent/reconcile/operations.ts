import { DeadlineError, Deadlines } from './deadline.ts';

/** What a lane is at. */
export interface LaneWork {
  /** For people: `apply 3 changes of route`. */
  readonly operation: string;
  /** On the clock of the reconciler. An operation that its deadline ended goes on counting until another one ends. */
  readonly sinceMs: number;
}

/** What is done one after the other, and shown while it is under way. What hangs again and again is one long operation. */
export class Operations {
  readonly #now: () => number;
  readonly #deadlines: Deadlines;
  #current: LaneWork | undefined;

  constructor(now: () => number, signal: AbortSignal) {
    this.#now = now;
    this.#deadlines = new Deadlines(signal);
  }

  get current(): LaneWork | undefined {
    return this.#current;
  }

  async timed<T>(operation: string, work: () => Promise<T>): Promise<T> {
    this.#current = { operation, sinceMs: this.#current?.sinceMs ?? this.#now() };
    let hangs = false;
    try {
      return await work();
    } catch (error) {
      hangs = error instanceof DeadlineError;
      throw error;
    } finally {
      if (!hangs) this.#current = undefined;
    }
  }

  /** The same for what a driver does; see Deadlines.run. */
  bounded<T>(deadlineMs: number, operation: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    return this.timed(operation, () => this.#deadlines.run(deadlineMs, operation, work));
  }
}
