import test from 'ava';
import fc from 'fast-check';
import { CHAIN_PREFIX } from '../../model/kernel-names.ts';
import { ReadBack, tokens } from './read-back.ts';
import { linesOf } from './render.ts';

const RUNS = { numRuns: 2000 };
const OWN = linesOf({
  family: 'ipv4',
  table: 'filter',
  chain: 'TULLE-FORWARD',
  order: '10-a',
  rules: [
    { args: ['-s', '10.0.0.0/8', '-j', 'ACCEPT'], comment: 'why' },
    { args: ['-j', 'RETURN'], comment: '' },
  ],
});
const RIGHT = [
  '*filter',
  '*nat',
  ':FORWARD ACCEPT [0:0]',
  ':TULLE-FORWARD - [0:0]',
  '-A FORWARD -j TULLE-FORWARD',
  ...OWN,
  'COMMIT',
];

/** Lines of iptables-save, wrong ones, and right ones with something in the middle or their end missing. */
const words = [
  '-A',
  ' ',
  '"',
  '\\',
  '--comment',
  'tulle:0123456789abcdef 1',
  '-j',
  '-g',
  'FORWARD',
  ':',
  '*',
  'TULLE-',
];
const mutated = fc
  .tuple(fc.constantFrom(...RIGHT), fc.nat(90), fc.nat(20), fc.oneof(fc.constantFrom(...words), fc.string()))
  .map(([line, at, length, put]) => line.slice(0, at) + put + line.slice(at + length));
const cut = fc.tuple(fc.constantFrom(...RIGHT), fc.nat(90)).map(([line, at]) => line.slice(0, at));
const joined = fc.array(fc.constantFrom(...words, 'TULLE-FORWARD', 'KUBE-FORWARD')).map((parts) => parts.join(''));
const line = fc.oneof(fc.constantFrom(...RIGHT), mutated, cut, joined, fc.string({ unit: 'binary' }));

test('read back: of any lines, only own chains and what was in these lines', (t) => {
  fc.assert(
    fc.property(fc.array(line, { maxLength: 12 }), (lines) => {
      const reader = new ReadBack('ipv4');
      for (const each of lines) reader.line(each);
      for (const { chain, parts, jumps } of reader.chains()) {
        t.true(chain.startsWith(CHAIN_PREFIX), `${chain} is not Tulle's`);
        const builtin = chain.slice(CHAIN_PREFIX.length);
        for (const jump of jumps) {
          t.true(lines.includes(jump) && jump.startsWith(`-A ${builtin} `), jump);
          t.true(tokens(jump).includes(chain), jump);
        }
        for (const own of [...parts.values()].flatMap((part) => part.lines ?? [])) {
          t.true(lines.includes(own) && own.startsWith(`-A ${chain} `), own);
          t.regex(own, /--comment "?tulle:[0-9a-f]{16} /);
        }
      }
    }),
    RUNS,
  );
});
