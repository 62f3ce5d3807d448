import test from 'ava';
import { checkImports, importsIn, problemsIn } from './check-imports.ts';

test('importsIn finds every form of import with its line', (t) => {
  const source = `import a, { b } from './a.ts';
import type { C } from "./c.ts";
import './d.ts';
export { e } from './e.ts';
import {
  f,
} from './f.ts';
const g = await import('./g.ts');
const h = await import( /* why */ './h.ts' );
`;
  t.deepEqual(
    importsIn(source).map(({ specifier, line, dynamic }) => `${line} ${specifier}${dynamic ? ' dynamic' : ''}`),
    ['1 ./a.ts', '2 ./c.ts', '3 ./d.ts', '4 ./e.ts', '7 ./f.ts', '8 ./g.ts dynamic', '9 ./h.ts dynamic'],
  );
});

test('importsIn ignores comments and text', (t) => {
  const source = `// import './a.ts';
/* import './b.ts';
*/
const url = 'https://example.org'; import './c.ts';
const text = "see: import of './d.ts'";
`;
  t.deepEqual(
    importsIn(source).map(({ specifier, line }) => [specifier, line]),
    [['./c.ts', 4]],
  );
});

const rejected: readonly (readonly [path: string, source: string, problem: string])[] = [
  [
    'agent/plan/vxlan.ts',
    `import { run } from '../kernel/command.ts';`,
    'agent/plan/vxlan.ts:1 cannot import agent/kernel/command.ts: expected agent/plan/ or agent/model/',
  ],
  [
    'agent/kernel/route.ts',
    `import type { X } from '../reconcile/lanes.ts';`,
    'agent/kernel/route.ts:1 cannot import agent/reconcile/lanes.ts: expected agent/kernel/ or agent/model/ or agent/reconcile/types.ts or agent/turns.ts',
  ],
  [
    'agent/model/ip.ts',
    `import { x } from '../config.ts';`,
    'agent/model/ip.ts:1 cannot import agent/config.ts: expected agent/model/',
  ],
  [
    'agent/commands/lab.ts',
    `import { up } from '../../lab/up.ts';`,
    'agent/commands/lab.ts:1 cannot import lab/up.ts: expected agent/commands/ or agent/',
  ],
  [
    'agent/pods/x.ts',
    `\nconst lab = await import('../../lab/up.ts');`,
    'agent/pods/x.ts:2 cannot import lab/up.ts: expected agent/pods/ or agent/model/ or agent/reconcile/ or agent/kernel/ or cni/',
  ],
  [
    'agent/kernel/route.ts',
    `import 'netlink/dist/raw.js';`,
    'agent/kernel/route.ts:1 cannot use netlink/dist/raw.js: expected only in agent/kernel/netlink/',
  ],
  [
    'agent/kernel/netns.ts',
    `import koffi from 'koffi';`,
    'agent/kernel/netns.ts:1 cannot use koffi: expected only in agent/kernel/libc.ts',
  ],
  [
    'agent/pods/a.ts',
    'if (x)\n  process.exit(1);',
    'agent/pods/a.ts:2 cannot use process.exit: expected only in agent/main.ts or lab/supervisor.ts or bench/ or scripts/',
  ],
  [
    'agent/pods/a.ts',
    `import { b } from './b.test.ts';`,
    'agent/pods/a.ts:1 cannot import agent/pods/b.test.ts: expected code, got a test',
  ],
];
for (const [path, source, problem] of rejected) {
  test(`problemsIn rejects: ${problem}`, (t) => {
    t.deepEqual(problemsIn(path, source), [problem]);
  });
}

const accepted: readonly (readonly [path: string, source: string])[] = [
  ['agent/plan/vxlan.ts', `import { hash } from '../model/kernel-names.ts';\nimport { a } from './a.ts';`],
  ['agent/kernel/route.ts', `import type { Driver } from '../reconcile/types.ts';`],
  ['agent/kernel/netlink/socket.ts', `import { RawNetlinkSocket } from 'netlink/dist/raw.js';`],
  ['agent/commands/lab.ts', `const lab = await import('../../lab/up.ts');`],
  ['agent/main.ts', 'process.exit(Number(process.env.X));'],
  ['agent/pods/a.ts', 'process.exitCode = 1; // never process.exit()'],
  ['agent/plan/vxlan.test.ts', `import { start } from '../../lab/api-server/server.ts';`],
];
for (const [path, source] of accepted) {
  test(`problemsIn accepts ${path}: ${source.split('\n')[0]}`, (t) => {
    t.deepEqual(problemsIn(path, source), []);
  });
}

test('this checkout keeps the direction of imports', (t) => {
  t.deepEqual(checkImports(`${import.meta.dirname}/..`), []);
});
