import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import test from 'ava';

/** Prints how large the young generation is, in MiB: after work that makes it grow, given back, and after the same again. */
const PROGRAM = `
  import { getHeapSpaceStatistics } from 'node:v8';
  import { giveMemoryBack } from '${new URL('memory.ts', import.meta.url)}';
  const sizeMib = () => getHeapSpaceStatistics().find((each) => each.space_name === 'new_space').space_size / 2 ** 20;
  const work = () => {
    for (let round = 0; round < 20; round++) Array.from({ length: 50_000 }, (_, i) => ({ i, text: [i] }));
    return sizeMib();
  };
  console.log(JSON.stringify([work(), (giveMemoryBack(), sizeMib()), work()]));
`;

test('the young generation grows until memory is given back, and is small from then on', async (t) => {
  const args = ['--max-semi-space-size=16', '--expose-gc', '--input-type=module', '--eval', PROGRAM];
  const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 60_000 });
  const [grown, given, after] = JSON.parse(stdout) as [number, number, number];
  t.true(grown > 8, stdout);
  t.true(given < 3, stdout);
  t.true(after < 5, stdout);
});
