/** What a call ends with when it fails: an error object on standard output (CNI SPEC, section 5, "Error"). */
import { type CniVersion, LATEST_VERSION } from './versions.ts';

/** The spec's codes, one of ours, and the one that the reference library uses for what no code describes. */
export const CNI_CODES = {
  incompatibleVersion: 1,
  unsupportedField: 2,
  unknownContainer: 3,
  invalidEnvironment: 4,
  ioFailure: 5,
  decodingFailure: 6,
  invalidConfig: 7,
  tryAgainLater: 11,
  notAvailable: 50,
  limitedConnectivity: 51,
  /** The first that the spec leaves to plugins: CHECK found something missing or altered. */
  checkFailed: 100,
  internal: 999,
} as const;

export type CniCode = (typeof CNI_CODES)[keyof typeof CNI_CODES];

export interface CniErrorOptions extends ErrorOptions {
  /** A longer text than the message: what to do about it. */
  readonly details?: string | undefined;
  readonly version?: CniVersion | undefined;
}

/** A failed call. Runtimes show people `msg; details`. */
export class CniError extends Error {
  override readonly name = 'CniError';
  readonly code: CniCode;
  readonly details: string | undefined;
  /** The version to answer in, where the request got as far as naming one. */
  readonly version: CniVersion | undefined;

  constructor(code: CniCode, message: string, { details, version, ...options }: CniErrorOptions = {}) {
    super(message, options);
    this.code = code;
    this.details = details;
    this.version = version;
  }
}

/** `FIELD: expected X, got Y` as a CniError. */
export const invalid = (code: CniCode, field: string, expected: string, got: unknown): CniError =>
  new CniError(code, `${field}: expected ${expected}, got ${shown(got)}`);

/** A value as a message shows it: JSON, cut to a length that fits a log line. */
export function shown(value: unknown): string {
  if (value === undefined) return 'nothing';
  const text = JSON.stringify(value) ?? String(value);
  return text.length <= 120 ? text : `${text.slice(0, 117)}...`;
}

/** The error object for any error, in the version that a CniError names or else in this one. */
export function renderError(version: CniVersion | undefined, error: unknown): object {
  const known = error instanceof CniError ? error : undefined;
  const message = error instanceof Error ? error.message : String(error);
  return {
    cniVersion: known?.version ?? version ?? LATEST_VERSION,
    code: known?.code ?? CNI_CODES.internal,
    msg: message,
    ...(known?.details !== undefined && { details: known.details }),
  };
}
