#!/usr/bin/env node
/**
 * Runs the tests, all of them or the groups and files named as arguments, and says what it does. The last line is
 * `N passed, N failed`; the exit code is 0 only when something ran and nothing failed. With `--slow`, for emulated
 * machines, one test runs at a time, each is shown as it ends, and the bounds against hanging are wider.
 */
import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { execa } from 'execa';
import { missingCapabilities } from './capabilities.ts';
import { createOwnCgroup, isolated, sweepCgroups } from './isolation.ts';
import { sweepNamespaces } from './leftovers.ts';
import { differences, readRootState } from './root-state.ts';
import { readTap, type TestResult } from './tap.ts';

type Report = (result: TestResult) => void;
type Tally = Record<'passed' | 'failed', number>;

interface Group {
  readonly name: string;
  readonly about: string;
  readonly needsRoot: boolean;
  run(report: Report, pace: Pace): Promise<void>;
}

/** How ava runs tests, and the bound against hanging for all of a group. */
interface Pace {
  readonly flags: readonly string[];
  readonly groupTimeoutMs: number;
  readonly showsPassed: boolean;
}

const HOME = join(import.meta.dirname, '..');
/** Bound against hanging. */
const CHECK_TIMEOUT_MS = 120_000;
const NORMAL: Pace = { flags: [], groupTimeoutMs: 900_000, showsPassed: false };
const SLOW: Pace = {
  flags: ['--serial', '--concurrency=1', '--timeout=300s'],
  groupTimeoutMs: 3_600_000,
  showsPassed: true,
};

const CHECKS: readonly (readonly [title: string, command: string])[] = [
  ['biome: format, lint, import order', 'biome ci --colors=off --max-diagnostics=100'],
  ['tsc: types', 'tsc --noEmit --pretty false'],
  ['direction of imports', 'node scripts/check-imports.ts'],
];

const GROUPS: readonly Group[] = [
  { name: 'check', about: 'format, lint, types, imports', needsRoot: false, run: runChecks },
  {
    name: 'unit',
    about: 'unit and property tests',
    needsRoot: false,
    run: (report, pace) => runAva(['{agent,cni,deploy,lab,scripts,bench}/**/*.test.ts'], report, pace),
  },
  {
    name: 'kernel',
    about: 'drivers against the kernel',
    needsRoot: true,
    run: (report, pace) => runIsolated(['test/kernel/**/*.test.ts'], report, pace),
  },
  {
    name: 'e2e',
    about: 'agents, pods and packets in the lab',
    needsRoot: true,
    run: (report, pace) => runIsolated(['test/e2e/**/*.test.ts'], report, pace),
  },
];

async function main(args: readonly string[]): Promise<number> {
  const pace = args.includes('--slow') ? SLOW : NORMAL;
  const names = args.filter((arg) => arg !== '--slow');
  const files = names.filter(isTestFile);
  const unknown = names.find((name) => !files.includes(name) && !GROUPS.some((group) => group.name === name));
  if (unknown !== undefined) {
    const expected = `${GROUPS.map(({ name }) => name).join(', ')}, a file test/*/*.test.ts, or nothing for all`;
    console.error(`cannot run ${unknown}: expected ${expected}`);
    return 2;
  }
  const tally: Tally = { passed: 0, failed: 0 };
  const report: Report = (result) => {
    tally[result.outcome === 'passed' ? 'passed' : 'failed']++;
    print(result, pace);
  };
  const groups = GROUPS.filter(({ name }) => names.length === 0 || names.includes(name));
  try {
    await runGroups([...groups, ...(files.length > 0 ? [groupOfFiles(files)] : [])], { report, tally, pace });
  } catch (error) {
    report({ title: 'the run broke off', outcome: 'failed', details: (error as Error).stack ?? String(error) });
  }
  console.log(`${tally.passed} passed, ${tally.failed} failed`);
  return tally.failed === 0 && tally.passed > 0 ? 0 : 1;
}

const isTestFile = (name: string): boolean =>
  /^test\/[\w-]+\/[\w.-]+\.test\.ts$/.test(name) && existsSync(join(HOME, name));

const groupOfFiles = (files: readonly string[]): Group => ({
  name: files.length === 1 ? 'one file' : `${files.length} files`,
  about: files.map((file) => basename(file, '.test.ts')).join(', '),
  needsRoot: true,
  run: (report, pace) => runIsolated(files, report, pace),
});

interface Run {
  readonly report: Report;
  readonly tally: Tally;
  readonly pace: Pace;
}

async function runGroups(groups: readonly Group[], run: Run): Promise<void> {
  const { report } = run;
  for (const group of groups.filter(({ needsRoot }) => !needsRoot)) await timed(group, run);
  const rooted = groups.filter(({ needsRoot }) => needsRoot);
  if (rooted.length === 0 || !(await canRunAsRoot(report))) return;
  await leavingNoTrace(report, async () => {
    for (const group of rooted) await timed(group, run);
  });
}

async function timed(group: Group, { report, tally, pace }: Run): Promise<void> {
  const before = { ...tally };
  const start = performance.now();
  console.log(`▸ ${group.name}: ${group.about}`);
  await group.run(report, pace);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`  ${tally.passed - before.passed} passed, ${tally.failed - before.failed} failed, ${seconds} s`);
}

/** A test that is skipped counts as failed: nothing here may be left out without being seen. */
function print({ title, outcome, details }: TestResult, { showsPassed }: Pace): void {
  if (outcome === 'passed') {
    if (showsPassed) console.log(`  ✔ ${title}`);
    return;
  }
  console.log(`  ✘ ${title}${outcome === 'skipped' ? ' (skipped)' : ''}`);
  if (details !== '') console.log(details.replace(/^/gm, '    '));
}

async function runChecks(report: Report): Promise<void> {
  for (const [title, command] of CHECKS) {
    const [file = '', ...args] = command.split(' ');
    const options = { cwd: HOME, preferLocal: true, reject: false, all: true, timeout: CHECK_TIMEOUT_MS } as const;
    const { failed, all } = await execa(file, args, options);
    report({ title, outcome: failed ? 'failed' : 'passed', details: failed ? all : '' });
  }
}

const avaCommand = (files: readonly string[], { flags }: Pace): readonly [string, ...string[]] => [
  process.execPath,
  join(HOME, 'node_modules/ava/entrypoints/cli.js'),
  '--tap',
  ...flags,
  ...files,
];

const runAva = (files: readonly string[], report: Report, pace: Pace): Promise<void> =>
  reportTap(avaCommand(files, pace), report, pace);

async function runIsolated(files: readonly string[], report: Report, pace: Pace): Promise<void> {
  using cgroup = createOwnCgroup();
  const [file, args] = isolated(cgroup, avaCommand(files, pace));
  await reportTap([file, ...args], report, pace);
  const left = cgroup.leftovers();
  report({
    title: 'no cgroup is left behind',
    outcome: left.length === 0 ? 'passed' : 'failed',
    details: left.join('\n'),
  });
}

/** Reports each test as it ends, and a run that failed without a failed test, or without any, as one. */
async function reportTap(
  [file, ...args]: readonly [string, ...string[]],
  report: Report,
  { groupTimeoutMs }: Pace,
): Promise<void> {
  const subprocess = execa(file, args, {
    cwd: HOME,
    reject: false,
    buffer: false,
    stdin: 'ignore',
    stderr: 'inherit',
    timeout: groupTimeoutMs,
    killSignal: 'SIGKILL',
  });
  let failures = 0;
  for await (const result of readTap(subprocess.iterable())) {
    if (result.outcome === 'failed') failures++;
    report(result);
  }
  const { exitCode, timedOut } = await subprocess;
  if (exitCode === 0 || failures > 0) return;
  const why = timedOut
    ? `no end within ${groupTimeoutMs / 1000} s`
    : `exit code ${exitCode}, no test or none that failed`;
  report({ title: `ava ${args.at(-1)}`, outcome: 'failed', details: why });
}

async function canRunAsRoot(report: Report): Promise<boolean> {
  console.log('▸ capabilities of this machine');
  sweepCgroups();
  const missing = await missingCapabilities();
  for (const what of missing) report({ title: `missing capability: ${what}`, outcome: 'failed', details: '' });
  return missing.length === 0;
}

/** Compares the network of the root namespace, which no test may touch, before and after. */
async function leavingNoTrace(report: Report, run: () => Promise<void>): Promise<void> {
  await sweepNamespaces();
  const before = await readRootState();
  await run();
  const changed = differences(before, await readRootState());
  report({
    title: 'the root namespace is as before',
    outcome: changed.length === 0 ? 'passed' : 'failed',
    details: changed.join('\n'),
  });
}

if (import.meta.main) process.exit(await main(process.argv.slice(2)));
