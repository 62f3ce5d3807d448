/** The edge to what a person configures: flags, files, a kubeconfig. */

export interface ConfigProblem {
  /** What is wrong, as the person knows it: a flag, or a file and the field in it. Never a secret's value. */
  readonly key: string;
  readonly expected: string;
  readonly received: string;
  readonly remedy?: string;
  readonly cause?: unknown;
}

/** A setting that cannot be used. Text: `cannot use KEY: expected X, got Y; remedy`. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly key: string;
  readonly expected: string;
  readonly received: string;

  constructor({ key, expected, received, remedy, cause }: ConfigProblem) {
    const text = `cannot use ${key}: expected ${expected}, got ${received}`;
    super(remedy === undefined ? text : `${text}; ${remedy}`, { cause });
    this.key = key;
    this.expected = expected;
    this.received = received;
  }
}
