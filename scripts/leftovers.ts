/**
 * What a killed run of tests may have left: network namespaces of tests that were started without the runner, which
 * makes them in a private /run. Nothing else can be in the root namespace: no test writes there, so an agent's links,
 * rules and sets that are found there belong to a real agent and stay.
 */
import { existsSync, globSync } from 'node:fs';
import { execa } from 'execa';

const FOLDER = '/run/netns';
/** Names begin with this and the process that made them, see test/support/netns.ts. */
const NAMES = 'tulle-test-*';
const SHAPE = /^tulle-test-(?<maker>\d+)-[0-9a-f]{6}(-|$)/;

/** Deletes the namespaces whose maker is gone. Names of another shape are somebody else's, however old. */
export async function sweepNamespaces(): Promise<void> {
  for (const name of globSync(NAMES, { cwd: FOLDER })) {
    const maker = SHAPE.exec(name)?.groups?.['maker'];
    if (maker !== undefined && !existsSync(`/proc/${maker}`)) await execa('ip', ['netns', 'delete', name]);
  }
}
