/** What a check says: values only. The text of a finding answers, in this order: what, seen how, why, and what to do. */
import type { Facts } from './facts.ts';

/** `error`: something does not work. `warning`: it will not under load, after a restart, or for some traffic. */
export type Severity = 'error' | 'warning';

export interface Finding {
  readonly severity: Severity;
  /** What is wrong, in one sentence without a full stop. */
  readonly summary: string;
  /** What was read, verbatim, one line each. */
  readonly evidence: readonly string[];
  readonly cause: string;
  readonly remedy: string;
  readonly fix?: Fix;
}

/** What `--fix` does about a finding. Without a name it concerns Tulle's own objects only. */
export interface Fix {
  /** Whose objects are removed: only `--fix=<name>` does it. */
  readonly name?: string;
  /** One line a thing, in the order in which they are done. */
  readonly steps: readonly string[];
  /** Idempotent. Throws the errors of the edge that it goes to. */
  readonly apply: (signal: AbortSignal) => Promise<void>;
}

/** `seen` is what was found to be right, for the line of a healthy check. */
export type Verdict =
  | { readonly seen: string; readonly findings: readonly Finding[] }
  /** The check could not be made, and another check or the sentence says why. */
  | { readonly skipped: string };

export interface Check {
  readonly name: string;
  readonly run: (facts: Facts, signal: AbortSignal) => Promise<Verdict>;
}

/** A verdict with the findings that are there. */
export const verdict = (seen: string, findings: readonly (Finding | undefined)[]): Verdict => ({
  seen,
  findings: findings.filter((finding) => finding !== undefined),
});

/** A list for a sentence: the first few, and how many more there are. */
export function several(names: readonly string[], most = 5): string {
  const shown = names.slice(0, most).join(', ');
  return names.length > most ? `${shown} and ${names.length - most} more` : shown;
}
