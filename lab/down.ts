/**
 * The end of a lab. Its processes are all in one cgroup, and everything else that it made in the kernel lives only as
 * long as they do; so stopping a running lab and removing what a crash left are the same.
 */
import { access, rm } from 'node:fs/promises';
import { killCgroup, removeCgroup } from './cgroup.ts';
import type { LabLayout } from './layout.ts';

/** Told what was removed, one sentence each. */
export type Report = (text: string, durationMs: number) => void;

/** True when anything of the lab, running or not, is on this machine. */
export async function hasLeftovers({ cgroup, dir }: LabLayout): Promise<boolean> {
  return (await exists(cgroup)) || (await exists(dir));
}

/** Idempotent. Throws LabError when a process survives SIGKILL for seconds. */
export async function removeLab({ cgroup, dir }: LabLayout, report: Report): Promise<void> {
  if (await exists(cgroup)) {
    await timed(`ended every process in ${cgroup}`, report, () => killCgroup(cgroup));
    await timed(`removed ${cgroup}`, report, () => removeCgroup(cgroup));
  }
  if (await exists(dir)) await timed(`removed ${dir}`, report, () => rm(dir, { recursive: true, force: true }));
}

async function timed(text: string, report: Report, work: () => Promise<void>): Promise<void> {
  const startMs = performance.now();
  await work();
  report(text, performance.now() - startMs);
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path);
    return true;
  } catch {
    return false;
  }
}
