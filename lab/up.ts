/** The beginning of a lab: a supervisor in namespaces of its own, followed until it is ready. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, open } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { killCgroup } from './cgroup.ts';
import { type LabOptions, labControl, type Progress } from './control.ts';
import { hasLeftovers, type Report, removeLab } from './down.ts';
import { LabError } from './lab-error.ts';
import type { LabLayout } from './layout.ts';

const SUPERVISOR = fileURLToPath(new URL('supervisor.ts', import.meta.url));
/** The `tulle` of this checkout or package. */
export const TULLE = fileURLToPath(new URL('../tulle', import.meta.url));
const BOOT_DEADLINE_MS = 60_000;

export const DEFAULT_OPTIONS: LabOptions = {
  nodes: 3,
  families: ['ipv4', 'ipv6'],
  segments: 1,
  zones: 0,
  runtime: 'lab',
  agentCommand: [TULLE, 'agent'],
  agentArgs: [],
};

/** Whether a supervisor answers. */
export async function isUp(layout: LabLayout): Promise<boolean> {
  return labControl(layout)
    .status()
    .then(
      () => true,
      () => false,
    );
}

/**
 * Starts a lab and resolves when every agent is ready. What a crashed lab left is removed first. Throws LabError: a lab
 * is up already, or this one does not come up; its directory with the logs then stays until the next up or down.
 */
export async function startLabProcess(layout: LabLayout, options: LabOptions, report: Report): Promise<void> {
  if (await isUp(layout)) throw alreadyUp(layout);
  if (await hasLeftovers(layout)) await removeLab(layout, report);
  await mkdir(layout.dir, { mode: 0o700 });
  const child = await spawnSupervisor(layout, options);
  try {
    await follow(child, layout, report);
  } catch (error) {
    await killCgroup(layout.cgroup);
    throw error;
  } finally {
    child.unref();
  }
}

async function spawnSupervisor(layout: LabLayout, options: LabOptions): Promise<ChildProcess> {
  const log = await open(layout.logFile, 'a');
  const args = [
    '--net',
    '--mount',
    '--propagation',
    'private',
    '--',
    process.execPath,
    SUPERVISOR,
    layout.dir,
    JSON.stringify(options),
  ];
  const child = spawn('unshare', args, { cwd: '/', detached: true, stdio: ['ignore', log.fd, log.fd, 'pipe'] });
  await log.close();
  return child;
}

/** Reads progress until the supervisor says that it is ready. Throws LabError when it does not. */
async function follow(child: ChildProcess, layout: LabLayout, report: Report): Promise<void> {
  const pipe = child.stdio[3] as Readable;
  const deadline = AbortSignal.timeout(BOOT_DEADLINE_MS);
  for await (const line of createInterface({ input: pipe, signal: deadline })) {
    const progress = JSON.parse(line) as Progress;
    if ('ready' in progress) return;
    if ('failed' in progress) throw new LabFailed(progress.failed);
    report(progress.step, progress.durationMs);
  }
  throw new LabError({
    operation: 'start the lab',
    expected: 'a supervisor that reports when it is ready',
    received: deadline.aborted ? `nothing for ${BOOT_DEADLINE_MS} ms` : 'its early end',
    remedy: `see ${layout.logFile}`,
  });
}

/** Why a supervisor could not start its lab, in its own words. */
export class LabFailed extends Error {
  override readonly name = 'LabFailed';
}

const alreadyUp = ({ dir }: LabLayout): LabError =>
  new LabError({
    operation: 'start the lab',
    expected: 'no lab',
    received: `one that is up (${dir})`,
    remedy: 'go on with `tulle lab status`, end it with `tulle lab down`, or give --force to replace it',
  });
