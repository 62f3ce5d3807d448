/** What the agent's own process costs, read when somebody asks. */
import { readdirSync } from 'node:fs';

export interface ProcessFigures {
  readonly residentBytes: number;
  /** User and system time since the start. */
  readonly cpuSeconds: number;
  /** Unix time. */
  readonly startSeconds: number;
  readonly openFiles: number;
  /** Time in which the event loop was not waiting, since the start. */
  readonly activeSeconds: number;
  /** The longest time since the last reading in which it did not turn. */
  readonly stallSeconds: number;
  /** `v26.10.0` */
  readonly runtime: string;
}

export function readProcess(stallMs: number): ProcessFigures {
  const { user, system } = process.cpuUsage();
  return {
    residentBytes: process.memoryUsage.rss(),
    cpuSeconds: (user + system) / 1e6,
    startSeconds: performance.timeOrigin / 1000,
    openFiles: countOpenFiles(),
    activeSeconds: performance.eventLoopUtilization().active / 1000,
    stallSeconds: stallMs / 1000,
    runtime: process.version,
  };
}

/** Without the one that counting takes. */
const countOpenFiles = (): number => readdirSync('/proc/self/fd').length - 1;
