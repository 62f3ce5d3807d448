/**
 * A bench in its own namespaces, started by main.ts with a Request as JSON: runs it, prints its tables, keeps its
 * figures. This process's network namespace is the bench's to use.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Options } from './bench.ts';
import { BENCHES } from './benches.ts';
import { describeMachine, renderMachine } from './machine.ts';
import { renderTable } from './table.ts';

export interface Request {
  readonly bench: string;
  readonly options: Options;
  readonly scratch: string;
  /** Where the figures go, beside standard output. */
  readonly json?: string;
}

async function main({ bench, options, scratch, json }: Request): Promise<void> {
  const found = BENCHES[bench];
  if (!found) throw new Error(`cannot run bench ${bench}: expected one of ${Object.keys(BENCHES).join(', ')}`);
  const start = performance.now();
  const progress = (text: string) =>
    console.error(`${((performance.now() - start) / 1000).toFixed(1).padStart(7)} s  ${text}`);
  const machine = await describeMachine(scratch);
  const report = await found.run({ options, scratch, signal: new AbortController().signal, progress });
  const lines = [...renderMachine(machine), ...report.evidence.map((text) => `seen: ${text}`)];
  for (const table of report.tables) lines.push('', ...renderTable(table));
  if (report.verdicts) lines.push('', ...report.verdicts);
  console.log(lines.join('\n'));
  if (json === undefined) return;
  await mkdir(dirname(json), { recursive: true });
  await writeFile(json, `${JSON.stringify({ bench, options, machine, ...report }, undefined, 1)}\n`);
}

await main(JSON.parse(process.argv[2] ?? '{}') as Request);
// Labs and nodes of this bench hold the event loop; they die with this process's namespaces.
process.exit(0);
