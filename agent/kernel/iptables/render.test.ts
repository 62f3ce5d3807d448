import test from 'ava';
import fc from 'fast-check';
import type { ChainPart, Rule } from '../../model/items.ts';
import { KernelError } from '../errors.ts';
import { ReadBack } from './read-back.ts';
import { builtinOf, hashOf, linesOf, renderTable } from './render.ts';

const part = (order: string, rules: readonly Rule[], chain = 'TULLE-FORWARD'): ChainPart => ({
  family: 'ipv4',
  table: 'filter',
  chain,
  order,
  rules,
});
const table = (parts: readonly ChainPart[]) =>
  renderTable({
    table: 'filter',
    chains: Map.groupBy(parts, ({ chain }) => chain),
    deletedJumps: [],
    insertedJumps: [...new Set(parts.map(({ chain }) => chain))].filter((chain) => builtinOf(chain)),
  });

/** What iptables-save would print after this restore on an empty table, as far as the read-back looks. */
const saved = (restore: string): string => restore.replace(/^-I (\S+) 1 /gm, '-A $1 ');

const readBack = (text: string) => {
  const reader = new ReadBack('ipv4');
  for (const line of text.split('\n')) reader.line(line);
  return reader.chains();
};

const token = fc.stringMatching(/^[A-Za-z0-9._:/!+]{1,12}$/);
const anyRule = fc.record({
  args: fc.array(token, { minLength: 1, maxLength: 6 }),
  comment: fc.string({ unit: 'binary' }),
});
const anyOrder = fc.stringMatching(/^[A-Za-z0-9./:_-]{1,48}$/);
const anyParts = fc.uniqueArray(
  fc.record({
    order: anyOrder,
    rules: fc.array(anyRule, { maxLength: 4 }),
    chain: fc.constantFrom('TULLE-FORWARD', 'TULLE-X'),
  }),
  { maxLength: 6, selector: ({ order, chain }) => `${chain} ${order}` },
);

test('render: a table reads as text', (t) => {
  const parts = [
    part('20-b', [{ args: ['-d', '10.0.0.0/8', '-j', 'DROP'], comment: 'two words' }]),
    part('10-a', []),
    part('10-a', [{ args: ['-j', 'RETURN'], comment: '' }], 'TULLE-X'),
  ];
  t.is(
    table(parts).replaceAll(/[0-9a-f]{16}/g, 'HASH'),
    `*filter
:TULLE-FORWARD - [0:0]
:TULLE-X - [0:0]
-I FORWARD 1 -j TULLE-FORWARD
-A TULLE-FORWARD -m comment --comment "tulle:HASH 10-a empty"
-A TULLE-FORWARD -d 10.0.0.0/8 -m comment --comment "tulle:HASH 20-b two_words" -j DROP
-A TULLE-X -m comment --comment "tulle:HASH 10-a" -j RETURN
COMMIT
`,
  );
});

test('render and read back: every part comes back with its hashes, in any order of parts', (t) => {
  fc.assert(
    fc.property(anyParts, (wanted) => {
      const parts = wanted.map(({ order, rules, chain }) => part(order, rules, chain));
      const found = readBack(saved(table(parts)));
      t.true(found.every(({ drift, isJumpRight }) => drift === undefined && isJumpRight));
      const hashes = (some: readonly ChainPart[]) =>
        some.map((one) => `${one.chain} ${one.order} ${linesOf(one).map(hashOf).join(' ')}`).sort();
      t.deepEqual(hashes(found.flatMap((chain) => [...chain.parts.values()])), hashes(parts));
    }),
  );
});

test('render: hostile comments never make another line, another rule or a longer comment', (t) => {
  const hostile = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 400 }),
    fc.constantFrom(
      '"\n-A FORWARD -j ACCEPT\n',
      '\\',
      '"',
      "' -j ACCEPT",
      '\r\nCOMMIT',
      '\0',
      'tulle:0123456789abcdef 99-z',
      'ä'.repeat(300),
    ),
  );
  fc.assert(
    fc.property(fc.array(hostile, { minLength: 1 }), anyOrder, (comments, order) => {
      const lines = linesOf(
        part(
          order,
          comments.map((comment) => ({ args: ['-j', 'ACCEPT'], comment })),
        ),
      );
      t.is(lines.length, comments.length);
      for (const line of lines) {
        t.regex(line, /^-A TULLE-FORWARD -m comment --comment "[A-Za-z0-9./:_ -]{1,127}" -j ACCEPT$/);
      }
      t.deepEqual(
        [...(readBack(`*filter\n:TULLE-FORWARD - [0:0]\n${lines.join('\n')}`)[0]?.parts.keys() ?? [])],
        [order],
      );
    }),
  );
});

test('render: hostile arguments are refused or stay one token of one rule', (t) => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: 'binary' }), { minLength: 1, maxLength: 4 }), (args) => {
      let lines: readonly string[];
      try {
        lines = linesOf(part('10-a', [{ args, comment: '' }]));
      } catch (error) {
        t.true(error instanceof KernelError && error.code === 'EINVAL');
        return;
      }
      t.is(lines.length, 1);
      t.is(lines[0]?.split(' ').length, 2 + args.length + 6 - 1);
    }),
  );
});

for (const [what, refused, received] of [
  ['a token with a blank', part('10-a', [{ args: ['-j', 'A B'], comment: '' }]), '"A B"'],
  ['a token that would be two lines', part('10-a', [{ args: ['-j', 'ACCEPT\n-A'], comment: '' }]), '"ACCEPT\\n-A"'],
  ['an empty token', part('10-a', [{ args: ['-j', ''], comment: '' }]), '""'],
  ['a rule without arguments', part('10-a', [{ args: [], comment: '' }]), '"none"'],
  [
    'a list of sources, which would be several rules',
    part('10-a', [{ args: ['-s', '10.0.0.1,10.0.0.2'], comment: '' }]),
    '10.0.0.2',
  ],
  [
    'a host name, which would be looked up',
    part('10-a', [{ args: ['-d', 'example.com'], comment: '' }]),
    'example.com',
  ],
  ['an order with a blank', part('10 a', []), '"10 a"'],
  ['an empty order', part('', []), '""'],
  ['an order too long to be read back', part('a'.repeat(49), []), 'aaa'],
  ['a foreign chain', part('10-a', [], 'FORWARD'), '"FORWARD"'],
  ['a chain name too long for the kernel', part('10-a', [], `TULLE-${'A'.repeat(23)}`), 'AAA'],
] as const) {
  test(`render: ${what} is refused by name`, (t) => {
    const error = t.throws(() => linesOf(refused), { instanceOf: KernelError, code: 'EINVAL' });
    t.true(error?.message.includes(`${refused.chain} part ${refused.order}`));
    t.true(error?.message.includes(received));
  });
}

test('render: every hash depends on its rule, those before it, and where the part stands', (t) => {
  const rules = [
    { args: ['-j', 'A'], comment: 'x' },
    { args: ['-j', 'B'], comment: 'x' },
  ];
  const hashes = (one: ChainPart) => linesOf(one).map(hashOf);
  const base = hashes(part('10-a', rules));
  const others = [
    part('10-b', rules),
    part('10-a', rules, 'TULLE-X'),
    { ...part('10-a', rules), table: 'mangle' as const },
    { ...part('10-a', rules), family: 'ipv6' as const },
    part('10-a', rules.toReversed()),
    part('10-a', [{ args: ['-j', 'A'], comment: 'y' }, ...rules.slice(1)]),
  ];
  for (const other of others)
    t.true(
      hashes(other).every((hash) => !base.includes(hash)),
      JSON.stringify(other),
    );
  t.deepEqual(hashes(part('10-a', rules.slice(0, 1))), base.slice(0, 1));
});

test('read back: rules of others cost nothing and mean nothing', (t) => {
  const text = `# comment
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "-j TULLE-PREROUTING" -j KUBE-SERVICES
-A KUBE-SERVICES -j TULLE-NOTHING
COMMIT
*filter
:FORWARD DROP [5:300]
-A FORWARD -j KUBE-FORWARD
COMMIT`;
  t.deepEqual(readBack(text), []);
});

test('read back: a chain of the same name in another table is another chain', (t) => {
  const lines = linesOf(part('10-a', [{ args: ['-j', 'ACCEPT'], comment: '' }])).join('\n');
  const text = `*raw\n:TULLE-FORWARD - [0:0]\n${lines}\nCOMMIT\n*filter\n:TULLE-FORWARD - [0:0]\nCOMMIT`;
  t.deepEqual(
    readBack(text).map(({ table, parts, drift }) => [table, parts.size, drift]),
    [
      ['raw', 1, 'no jump from FORWARD'],
      ['filter', 0, 'no jump from FORWARD'],
    ],
  );
});
