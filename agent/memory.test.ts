import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import test from 'ava';

/** Runs it with `work()`, which returns how large the young generation is after it, in MiB, and returns what it printed. */
async function run(program: string): Promise<string> {
  const prelude = `
    import { getHeapSpaceStatistics } from 'node:v8';
    import { giveMemoryBack } from '${new URL('memory.ts', import.meta.url)}';
    const { signal } = new AbortController();
    const sizeMib = () => getHeapSpaceStatistics().find((each) => each.space_name === 'new_space').space_size / 2 ** 20;
    const work = () => {
      for (let round = 0; round < 20; round++) Array.from({ length: 50_000 }, (_, i) => ({ i, text: [i] }));
      return sizeMib();
    };
    setInterval(() => {}, 60_000);
  `;
  const args = ['--max-semi-space-size=16', '--expose-gc', '--input-type=module', '--eval', prelude + program];
  const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 60_000 });
  return stdout;
}

test('the young generation grows until memory is given back, and is small from then on', async (t) => {
  const stdout = await run(`
    console.log(JSON.stringify([work(), (await giveMemoryBack(signal), sizeMib()), work()]));
    process.exit();
  `);
  const [grown, given, after] = JSON.parse(stdout) as [number, number, number];
  t.true(grown > 8, stdout);
  t.true(given < 3, stdout);
  t.true(after < 5, stdout);
});

test('nothing stops while there is work: memory is given back when there is none', async (t) => {
  const stdout = await run(`
    let collections = 0;
    const { gc } = globalThis;
    globalThis.gc = (options) => (collections++, gc(options));
    const given = giveMemoryBack(signal);
    for (let turn = 0; turn < 20; turn++) {
      const endMs = performance.now() + 100;
      while (performance.now() < endMs);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const before = collections;
    await given;
    console.log(JSON.stringify([before, collections]));
    process.exit();
  `);
  t.deepEqual(JSON.parse(stdout), [0, 1]);
});
