/**
 * The process that a lab lives and dies with. Its network namespace is the fabric. Started by `tulle lab up` with the
 * layout's directory and the options as JSON; descriptor 3 takes its progress. Nothing but this file ends it.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { flushCompileCache } from 'node:module';
import { Socket } from 'node:net';
import { pino } from 'pino';
import type { LabOptions, Progress } from './control.ts';
import { listenForControl } from './control-server.ts';
import { type Step, startLab } from './lab.ts';
import { messageOf } from './lab-error.ts';
import { labLayout } from './layout.ts';

const PROGRESS_FD = 3;

async function main(dir: string, options: LabOptions): Promise<void> {
  const layout = labLayout(dir);
  const log = pino();
  const progress = new Socket({ fd: PROGRESS_FD });
  const abandoned = () => process.exit(1);
  progress.on('error', abandoned).on('close', abandoned).resume();
  const tell = (line: Progress) => progress.write(`${JSON.stringify(line)}\n`);
  const step: Step = async (text, work) => {
    const startMs = performance.now();
    const value = await work();
    tell({ step: text, durationMs: performance.now() - startMs });
    return value;
  };
  // Never aborted: the lab ends with the process.
  const { signal } = new AbortController();
  try {
    await mkdir(layout.cgroup, { recursive: true });
    await writeFile(`${layout.cgroup}/cgroup.procs`, '0');
    const lab = await startLab({ layout, options, log, step, signal });
    await listenForControl(layout.controlSocket, lab, log, signal);
    log.info({ nodes: options.nodes, families: options.families }, 'lab is up');
    progress.off('close', abandoned);
    // For the next one: this process ends by a signal that leaves no time for it.
    flushCompileCache();
    tell({ ready: true });
    progress.end();
  } catch (error) {
    log.error({ err: error }, 'lab cannot start');
    tell({ failed: messageOf(error) });
    progress.end(() => process.exit(1));
  }
}

const [dir = '', options = '{}'] = process.argv.slice(2);
await main(dir, JSON.parse(options) as LabOptions);
