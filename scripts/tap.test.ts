import test from 'ava';
import { readTap } from './tap.ts';

async function* linesOf(text: string): AsyncGenerator<string> {
  yield* text.split('\n');
}

test('readTap tells passed, failed and skipped tests apart and keeps what a failure says', async (t) => {
  const output = `TAP version 13
ok 1 - zz › c # SKIP
ok 2 - zz › later # TODO
not ok 3 - zz › a fails
#   logged
  ---
    message: |-
      not ok at all
  ...
ok 4 - zz › d logs #1
#   passing log
not ok 5 - zz.test.ts exited with a non-zero exit code: 1

1..5
# tests 5
# fail 2
`;
  t.deepEqual(await Array.fromAsync(readTap(linesOf(output))), [
    { title: 'zz › c', outcome: 'skipped', details: '' },
    { title: 'zz › later', outcome: 'skipped', details: '' },
    {
      title: 'zz › a fails',
      outcome: 'failed',
      details: '#   logged\n  ---\n    message: |-\n      not ok at all\n  ...',
    },
    { title: 'zz › d logs #1', outcome: 'passed', details: '' },
    { title: 'zz.test.ts exited with a non-zero exit code: 1', outcome: 'failed', details: '' },
  ]);
});

test('readTap yields a failure that the output breaks off after', async (t) => {
  const results = await Array.fromAsync(readTap(linesOf('not ok 1 - a\n  ---')));
  t.deepEqual(results, [{ title: 'a', outcome: 'failed', details: '  ---' }]);
});
