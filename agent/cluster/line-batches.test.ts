import test from 'ava';
import fc from 'fast-check';
import { lineBatches } from './line-batches.ts';

const limits = { maxBytes: 100, tooLong: () => new Error('too long'), cutOff: () => new Error('cut off') };

async function* chunksOf(...parts: readonly (string | Buffer)[]): AsyncGenerator<Buffer> {
  for (const part of parts) yield Buffer.from(part);
}

const batchesOf = (...parts: readonly (string | Buffer)[]) => Array.fromAsync(lineBatches(chunksOf(...parts), limits));

test('lines that arrive together are one batch, whatever the chunks cut apart', async (t) => {
  t.deepEqual(await batchesOf('a\nb\nc', 'd\n', '\n\n', 'e', 'f', '\n'), [['a', 'b'], ['cd'], [], ['ef']]);
  t.deepEqual(await batchesOf(), []);
});

test('any text cut at any byte comes out as its lines', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.string({ unit: 'binary', maxLength: 12 })),
      fc.array(fc.nat(20)),
      async (texts, sizes) => {
        const lines = texts.map((text) => text.replaceAll('\n', '').toWellFormed()).filter((text) => text !== '');
        let rest = Buffer.from(lines.map((line) => `${line}\n`).join(''));
        const parts: Buffer[] = [];
        for (const size of sizes) {
          parts.push(rest.subarray(0, size));
          rest = rest.subarray(size);
        }
        t.deepEqual((await batchesOf(...parts, rest)).flat(), lines);
      },
    ),
    { numRuns: 200 },
  );
});

test('a line over the limit is refused as soon as it is, finished or not', async (t) => {
  t.deepEqual(await batchesOf(`${'x'.repeat(100)}\n`), [['x'.repeat(100)]]);
  await t.throwsAsync(batchesOf(`${'x'.repeat(101)}\n`), { message: 'too long' });
  await t.throwsAsync(batchesOf('x'.repeat(60), 'x'.repeat(60)), { message: 'too long' });
  await t.throwsAsync(batchesOf('a\n', 'x'.repeat(60), `${'x'.repeat(60)}\nb\n`), { message: 'too long' });
});

test('an end inside a line is told, after the whole lines', async (t) => {
  const seen: string[] = [];
  const read = async () => {
    for await (const batch of lineBatches(chunksOf('a\nb'), limits)) seen.push(...batch);
  };
  await t.throwsAsync(read(), { message: 'cut off' });
  t.deepEqual(seen, ['a']);
});
