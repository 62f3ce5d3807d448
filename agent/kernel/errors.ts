/** The one error of the kernel edge: an errno with what was being done to what. Callers branch on predicates, never on text. */
export class KernelError extends Error {
  override readonly name = 'KernelError';
  /** Errno name (`EEXIST`), or ETIMEDOUT when the answer did not come in time. */
  readonly code: string;
  /** Verb: `create`, `list`, `open`. */
  readonly operation: string;
  /** What it was done to, for people: `route 10.0.0.0/24`. */
  readonly object: string;
  /** What the kernel or the tool said about it (extended ack, stderr). */
  readonly detail: string | undefined;

  constructor(fields: {
    code: string;
    operation: string;
    object: string;
    detail?: string | undefined;
    cause?: unknown;
  }) {
    const { code, operation, object, detail, cause } = fields;
    super(
      `cannot ${operation} ${object}: ${code}${detail ? ` (${detail})` : ''}`,
      cause === undefined ? {} : { cause },
    );
    this.code = code;
    this.operation = operation;
    this.object = object;
    this.detail = detail;
  }
}

const hasCode = (error: unknown, codes: readonly string[]): boolean =>
  error instanceof KernelError && codes.includes(error.code);

/** The object, or the device that it belongs to, does not exist. */
export const isNotFound = (error: unknown): boolean => hasCode(error, ['ENOENT', 'ENODEV', 'ESRCH', 'EADDRNOTAVAIL']);
export const isExists = (error: unknown): boolean => hasCode(error, ['EEXIST']);
export const isPermission = (error: unknown): boolean => hasCode(error, ['EPERM', 'EACCES']);
export const isUnsupported = (error: unknown): boolean =>
  hasCode(error, ['EOPNOTSUPP', 'ENOTSUP', 'EAFNOSUPPORT', 'EPROTONOSUPPORT']);

/** For removals: what is gone already is removed. */
export function ignoreNotFound(error: unknown): void {
  if (!isNotFound(error)) throw error;
}
