import test from 'ava';
import { execa } from 'execa';

/** Calls one function so often, over turns of the event loop, and prints whether it is compiled by Maglev at the end. */
const program = (early: boolean) => `
import { setImmediate as turn } from 'node:timers/promises';
import { compileEarly } from ${JSON.stringify(new URL('tiering.ts', import.meta.url).href)};
${early ? 'compileEarly();' : ''}
const statusOf = new Function('f', 'return %GetOptimizationStatus(f)');
const parse = (text) => text.split(',').map((part) => part.trim().length).reduce((sum, length) => sum + length, 0);
for (let call = 0; call < 120; call++) {
  parse('a, bc, def');
  await turn();
}
console.log((statusOf(parse) & MAGLEVVED) !== 0);
`;
/** kMaglevved (V8, src/runtime/runtime.h, OptimizationStatus). */
const MAGLEVVED = 1 << 4;

const isCompiled = async (early: boolean): Promise<string> => {
  const args = ['--allow-natives-syntax', '--no-concurrent-recompilation', '--input-type=module', '--eval'];
  const text = program(early).replace('MAGLEVVED', String(MAGLEVVED));
  return (await execa(process.execPath, [...args, text], { timeout: 60_000 })).stdout;
};

test('compileEarly: what runs a hundred times is compiled then, and would not be otherwise', async (t) => {
  t.deepEqual(await Promise.all([isCompiled(true), isCompiled(false)]), ['true', 'false']);
});
