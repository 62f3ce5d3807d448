/** The edge between the lab and the machine that it runs on: processes, files, namespaces, the person who asked. */

export interface LabProblem {
  /** Verb and object: `start node node-1`. */
  readonly operation: string;
  readonly expected: string;
  readonly received: string;
  readonly remedy?: string;
  readonly cause?: unknown;
}

/** Something that the lab was asked for and cannot do. Text: `cannot OPERATION: expected X, got Y; remedy`. */
export class LabError extends Error {
  override readonly name = 'LabError';
  readonly operation: string;
  readonly expected: string;
  readonly received: string;

  constructor({ operation, expected, received, remedy, cause }: LabProblem) {
    const text = `cannot ${operation}: expected ${expected}, got ${received}`;
    super(remedy === undefined ? text : `${text}; ${remedy}`, cause === undefined ? {} : { cause });
    this.operation = operation;
    this.expected = expected;
    this.received = received;
  }
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
