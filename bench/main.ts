#!/usr/bin/env node
/**
 * `npm run bench -- cni`: measures Tulle beside what users run today, on this machine, round by round. Everything
 * happens in namespaces and a cgroup of the bench's own that end with it, see inside.ts.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import type { Family } from '../agent/model/ip.ts';
import { killCgroup } from '../lab/cgroup.ts';
import { createOwnCgroup, isolated, sweepCgroups } from '../scripts/isolation.ts';
import { BENCHES } from './benches.ts';
import type { Request } from './inside.ts';

const INSIDE = join(import.meta.dirname, 'inside.ts');

interface Flags {
  readonly quick?: boolean;
  readonly rounds?: number;
  readonly only: readonly string[];
  readonly json?: string;
  readonly family: Family;
  readonly kubeProxy?: boolean;
}

const atLeastOne = (text: string): number => {
  if (/^[1-9]\d{0,4}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('expected a whole number from 1 to 99999.');
};

async function main(argv: readonly string[]): Promise<void> {
  const program = new Command('bench').description('Tulle beside what users run today, on this machine');
  for (const [name, { about }] of Object.entries(BENCHES)) {
    program
      .command(name)
      .description(about)
      .option('--quick', 'a short run, to see that it works')
      .option('--rounds <n>', 'how often each subject is visited', atLeastOne)
      .option(
        '--only <parts>',
        'subjects whose names hold one of these, comma-separated',
        (text) => text.split(','),
        [],
      )
      .addOption(new Option('--family <family>', 'of paths and of Services').choices(['ipv4', 'ipv6']).default('ipv4'))
      .option('--kube-proxy', "paths of Tulle with kube-proxy's base chains")
      .option('--json <file>', 'write the figures there, too')
      .action(async (flags: Flags) => {
        process.exitCode = await runIsolated(name, flags);
      });
  }
  await program.parseAsync(argv);
}

async function runIsolated(
  bench: string,
  { quick = false, rounds, only, json, family, kubeProxy = false }: Flags,
): Promise<number> {
  sweepCgroups();
  using cgroup = createOwnCgroup();
  using scratch = createScratch();
  const request: Request = {
    bench,
    options: { quick, only, family, kubeProxy, ...(rounds !== undefined && { rounds }) },
    scratch: scratch.path,
    ...(json !== undefined && { json: resolve(json) }),
  };
  const [file, args] = isolated(cgroup, [process.execPath, INSIDE, JSON.stringify(request)]);
  const child = spawn(file, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const stop = () => child.kill('SIGKILL');
  process.once('SIGINT', stop).once('SIGTERM', stop);
  const [code] = (await once(child, 'exit')) as [number | null];
  // What was stopped from outside may still be ending.
  await killCgroup(cgroup.path);
  return code ?? 1;
}

function createScratch(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), 'tulle-bench-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

if (import.meta.main) await main(process.argv);
