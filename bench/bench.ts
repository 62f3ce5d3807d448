/** What a bench is: a file that makes places, measures them round by round, and reports tables. */
import type { Family } from '../agent/model/ip.ts';
import type { Table } from './table.ts';

export interface Options {
  /** Fewer and shorter rounds, to see that it works; its figures say little. */
  readonly quick: boolean;
  /** In place of the bench's own number of rounds. */
  readonly rounds?: number;
  /** Only subjects whose name holds one of these; all when empty. */
  readonly only: readonly string[];
  /** Of paths and of Services; ADD and DEL are measured with both. */
  readonly family: Family;
  /** Whether nodes with Tulle have kube-proxy's base chains, too. */
  readonly kubeProxy: boolean;
}

export interface Context {
  readonly options: Options;
  /** A directory of this run on the disk, also seen by nodes; removed after it. */
  readonly scratch: string;
  readonly signal: AbortSignal;
  /** Tells people what goes on. */
  progress(text: string): void;
}

export interface Report {
  readonly tables: readonly Table[];
  /** What was seen that proves the places to be what they are called. */
  readonly evidence: readonly string[];
  /** What was to be reached and what was, a line each. */
  readonly verdicts?: readonly string[];
}

/** Runs in namespaces of its own that end with the process; a failure of anything measured ends the bench. */
export interface Bench {
  readonly about: string;
  run(context: Context): Promise<Report>;
}

/** Those that were asked for. Throws when none is. */
export function chosen<T extends { readonly name: string }>(all: readonly T[], { only }: Options): readonly T[] {
  const found = only.length === 0 ? all : all.filter(({ name }) => only.some((part) => name.includes(part)));
  if (found.length > 0) return found;
  const names = all.map(({ name }) => name).join(', ');
  throw new Error(`cannot choose what to measure: expected part of one of ${names}, got ${only.join(', ')}`);
}

/** In every round another one comes first, so that nothing always follows the same. */
export const rotated = <T>(all: readonly T[], round: number): readonly T[] => [
  ...all.slice(round % all.length),
  ...all.slice(0, round % all.length),
];
