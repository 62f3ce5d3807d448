#!/usr/bin/env node
/**
 * Holds the direction of imports (ARCHITECTURE.md): main → commands → {cluster, plan, reconcile, kernel, pods,
 * telemetry} → model, and who may use the packages and globals that reach outside. Prints one line a problem.
 */
import { globSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';

/**
 * What a room may import besides itself: folders, or single files. The first row whose folder holds the file counts.
 * Tests are free: they may compare a room with any other.
 */
const ROOMS: readonly (readonly [room: string, mayImport: readonly string[]])[] = [
  ['agent/model/', []],
  ['agent/plan/', ['agent/model/']],
  ['agent/reconcile/', ['agent/model/', 'agent/turns.ts']],
  ['agent/cluster/', ['agent/model/']],
  ['agent/kernel/', ['agent/model/', 'agent/reconcile/types.ts', 'agent/turns.ts']],
  ['agent/pods/', ['agent/model/', 'agent/reconcile/', 'agent/kernel/', 'cni/']],
  ['agent/telemetry/', ['agent/model/', 'agent/reconcile/']],
  [
    'agent/doctor/',
    [
      'agent/model/',
      'agent/cluster/',
      'agent/plan/',
      'agent/kernel/',
      'agent/pods/',
      'agent/reconcile/',
      'agent/config.ts',
      'agent/former-underlay.ts',
      'cni/',
    ],
  ],
  ['agent/commands/', ['agent/']],
  ['agent/config.ts', ['agent/model/']],
  ['agent/', ['agent/', 'cni/']],
  ['cni/', ['agent/model/']],
  ['lab/', ['agent/', 'cni/']],
  ['bench/', ['']],
  ['scripts/', ['agent/']],
  ['test/', ['']],
];

/** Commands load the lab when it is asked for, so that an agent never has it in memory. */
const MAY_LOAD_LAB = 'agent/commands/';

/** Packages and globals that only these places may use. `lab/`, `bench/` and `scripts/` run programs as well. */
const RESERVED: readonly (readonly [what: string, allowed: readonly string[]])[] = [
  ['netlink', ['agent/kernel/netlink/']],
  ['koffi', ['agent/kernel/libc.ts']],
  ['prom-client', ['agent/telemetry/']],
  ['execa', ['agent/kernel/command.ts', 'lab/', 'bench/', 'scripts/', 'test/']],
  ['node:child_process', ['agent/kernel/command.ts', 'lab/', 'bench/', 'scripts/', 'test/']],
  ['process.exit', ['agent/main.ts', 'lab/supervisor.ts', 'bench/', 'scripts/']],
  ['process.env', ['agent/main.ts', 'agent/config.ts', 'lab/', 'bench/', 'scripts/', 'test/']],
  ['ava', ['test/']],
  ['fast-check', ['test/', 'bench/']],
  ['ipaddr.js', ['test/']],
];

export interface Import {
  readonly specifier: string;
  readonly line: number;
  readonly dynamic: boolean;
}

/** Import and re-export statements, type-only ones included, and dynamic imports of a literal. Lines count from 1. */
export function importsIn(source: string): readonly Import[] {
  const text = withoutComments(source);
  const statement = /(?:^|[\s;}])(?:from|import)\s*(?<call>\(\s*)?(?<quote>['"])(?<specifier>[^'"\n]+)\k<quote>/g;
  return Array.from(text.matchAll(statement), ({ index, groups = {} }) => {
    const { specifier = '', call } = groups;
    return { specifier, line: lineAt(text, index + 1), dynamic: call !== undefined };
  });
}

/** One sentence for each rule that the file at `path` (relative to the checkout) breaks. */
export function problemsIn(path: string, source: string): readonly string[] {
  if (isTest(path)) return [];
  const imports = importsIn(source);
  return [...imports.flatMap((found) => importProblem(path, found)), ...globalProblems(path, source)];
}

const isTest = (path: string): boolean => path.endsWith('.test.ts');

function importProblem(path: string, { specifier, line, dynamic }: Import): string[] {
  const at = `${path}:${line}`;
  if (!specifier.startsWith('.')) return reservedProblem(path, at, specifier);
  const target = posix.join(posix.dirname(path), specifier);
  if (dynamic && path.startsWith(MAY_LOAD_LAB) && target.startsWith('lab/')) return [];
  const [room, mayImport] = ROOMS.find(([folder]) => path.startsWith(folder)) ?? [path, []];
  if (isTest(target)) return [`${at} cannot import ${target}: expected code, got a test`];
  if ([room, ...mayImport].some((allowed) => target.startsWith(allowed))) return [];
  return [`${at} cannot import ${target}: expected ${[room, ...mayImport].join(' or ')}`];
}

function reservedProblem(path: string, at: string, what: string): string[] {
  const row = RESERVED.find(([name]) => what === name || what.startsWith(`${name}/`));
  if (!row || row[1].some((allowed) => path.startsWith(allowed))) return [];
  return [`${at} cannot use ${what}: expected only in ${row[1].join(' or ')}`];
}

function globalProblems(path: string, source: string): string[] {
  const text = withoutComments(source);
  return Array.from(text.matchAll(/\bprocess\.(?:exit|env)\b(?!Code)/g), ({ 0: what, index }) =>
    reservedProblem(path, `${path}:${lineAt(text, index)}`, what),
  ).flat();
}

/** Comments become blanks, so that lines keep their numbers; text in quotes stays. */
const withoutComments = (source: string): string =>
  source.replace(/'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|\/\*[\s\S]*?\*\/|(?<![\\:])\/\/[^\n]*/g, (token) =>
    token.startsWith('/') ? token.replace(/[^\n]/g, ' ') : token,
  );

const lineAt = (text: string, index: number): number => text.slice(0, index).split('\n').length;

/** Every problem below `root`, a checkout. */
export function checkImports(root: string): readonly string[] {
  const files = globSync('{agent,cni,lab,test,bench,scripts}/**/*.ts', { cwd: root }).sort();
  return files.flatMap((path) => problemsIn(path, readFileSync(join(root, path), 'utf8')));
}

if (import.meta.main) {
  const problems = checkImports(join(import.meta.dirname, '..'));
  for (const problem of problems) console.error(problem);
  if (problems.length > 0) process.exit(1);
}
