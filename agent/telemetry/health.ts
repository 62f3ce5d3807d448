/** What /healthz and /readyz answer: 200, or 503 with the reasons, one sentence a line. */
import type { ReconcilerStatus } from '../reconcile/reconciler.ts';
import { type Page, plainPage } from './endpoint.ts';

/** Longer than the deadline of one list or batch: something hangs that another process might not. */
const STUCK_MS = 90_000;

export const healthPage = (reasons: readonly string[]): Page =>
  reasons.length === 0 ? plainPage(200, ['ok']) : plainPage(503, reasons);

/** Lanes that get nowhere. That the event loop turns is told by any answer at all. */
export const stuckLanes = (work: ReconcilerStatus['work']): readonly string[] =>
  Object.entries(work)
    .filter(([, { durationMs }]) => durationMs > STUCK_MS)
    .map(
      ([lane, { operation, durationMs }]) =>
        `the lane ${lane} is stuck: expected "${operation}" to end within ${STUCK_MS / 1000} s, got nothing for ${Math.round(durationMs / 1000)} s; end the agent, which changes nothing in the kernel, and another one goes on`,
    );
