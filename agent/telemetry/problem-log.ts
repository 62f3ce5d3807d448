/** Tells the log of problems as they come and go, each once: `tulle status` has only those of the moment it is asked. */
import type { Logger } from 'pino';

export interface ToldProblem {
  /** What was watched or planned: `services`, `service default/web`. */
  readonly cause: string;
  /** One sentence, with the name of the object. */
  readonly problem: string;
}

/** Lines at a time; thousands of bad objects are told one part after the other. */
const LINES_MAX = 50;
const INTERVAL_MS = 5_000;

export class ProblemLog {
  readonly #log: Logger;
  #told: ReadonlyMap<string, ToldProblem> = new Map();

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Reads all that there are now and then, until the signal aborts. */
  follow(read: () => readonly ToldProblem[], signal: AbortSignal): void {
    const timer = setInterval(() => this.note(read()), INTERVAL_MS).unref();
    signal.addEventListener('abort', () => clearInterval(timer));
  }

  /** `now`: all that there are. What finds no room any more is new the next time. */
  note(now: readonly ToldProblem[]): void {
    const told = new Map<string, ToldProblem>();
    let lines = 0;
    for (const { cause, problem } of now) {
      const key = `${cause} ${problem}`;
      if (told.has(key)) continue;
      if (!this.#told.has(key)) {
        if (lines === LINES_MAX) continue;
        lines++;
        this.#log.warn({ cause, problem }, 'something cannot be as it is asked for');
      }
      told.set(key, { cause, problem });
    }
    for (const [key, each] of this.#told) if (!told.has(key)) this.#log.info({ ...each }, 'a problem is over');
    this.#told = told;
  }
}
