/** That the benches run and find a figure for everything; what the figures are is no matter of a test. */
import { randomBytes } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { execa } from 'execa';
import type { Machine } from '../../bench/machine.ts';
import type { Table } from '../../bench/table.ts';

const MAIN = join(import.meta.dirname, '../../bench/main.ts');
/** Bound against hanging. */
const TIMEOUT_MS = 55_000;

interface Kept {
  readonly machine: Machine;
  readonly evidence: readonly string[];
  readonly tables: readonly Table[];
}

async function bench(t: ExecutionContext, name: string, only: string): Promise<Kept> {
  const json = join(tmpdir(), `tulle-bench-test-${randomBytes(4).toString('hex')}.json`);
  t.teardown(() => rm(json, { force: true }));
  await execa(process.execPath, [MAIN, name, '--quick', '--only', only, '--json', json], { timeout: TIMEOUT_MS });
  return JSON.parse(await readFile(json, 'utf8')) as Kept;
}

function isComplete(t: ExecutionContext, { machine, tables }: Kept, subjects: readonly string[]): void {
  t.regex(machine.kernel, /^\d+\.\d+/);
  t.true(tables.length > 0);
  for (const { title, columns, rows } of tables) {
    t.deepEqual(rows.map(({ subject }) => subject).sort(), [...subjects].sort(), title);
    for (const { subject, cells } of rows) {
      for (const { heading } of columns)
        t.true(Number.isFinite(cells[heading]?.value), `${title}: ${heading} of ${subject}`);
    }
  }
}

test.serial('bench cni finds figures for Tulle and for a reference plugin', async (t) => {
  const kept = await bench(t, 'cni', 'tulle routed ipv4,host-local on tmpfs');
  isComplete(t, kept, ['tulle routed ipv4', 'bridge + host-local on tmpfs']);
});

test.serial('bench path finds figures for Tulle and for the shape of flannel, and sees that both tunnel', async (t) => {
  const kept = await bench(t, 'path', 'flannel vxlan,tulle vxlan routed');
  isComplete(t, kept, ['flannel vxlan', 'tulle vxlan routed']);
  const across = kept.evidence.filter((line) => line.includes('cross node'));
  t.is(across.length, 2);
  for (const line of across)
    t.regex(line, /on the wire [1-9]\d* tunnel and 0 bare packets; .* count [1-9]\d* and [1-9]\d* packets/);
});
