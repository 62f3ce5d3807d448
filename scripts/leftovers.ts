/**
 * What a killed run of tests may have left: network namespaces of tests that were started without the runner, which
 * makes them in a private /run. Nothing else can be in the root namespace: no test writes there, so an agent's links,
 * rules and sets that are found there belong to a real agent and stay.
 */
import { globSync, statSync } from 'node:fs';
import { execa } from 'execa';

const FOLDER = '/run/netns';
/** Names begin with this and the process that made them, see test/support/netns.ts. */
const NAMES = 'tulle-test-*';
/** Those of another shape, or of a process number used again, are left alone while they may be in use. */
const MINIMUM_AGE_MS = 600_000;

/** Deletes the namespaces of tests that are over. */
export async function sweepNamespaces(): Promise<void> {
  for (const name of globSync(NAMES, { cwd: FOLDER })) {
    if (isOver(name)) await execa('ip', ['netns', 'delete', name]);
  }
}

function isOver(name: string): boolean {
  if (Date.now() - statSync(`${FOLDER}/${name}`).mtimeMs > MINIMUM_AGE_MS) return true;
  const maker = /^tulle-test-(\d+)-/.exec(name)?.[1];
  return maker !== undefined && globSync(`/proc/${maker}`).length === 0;
}
