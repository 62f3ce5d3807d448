/** A reconciler over fake drivers, ended with its test. */

import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import pino from 'pino';
import type { Fragment } from '../../agent/model/fragment.ts';
import type { Kind } from '../../agent/model/items.ts';
import { KernelState } from '../../agent/reconcile/kernel-state.ts';
import { Reconciler, type ReconcilerOptions } from '../../agent/reconcile/reconciler.ts';
import type { Change } from '../../agent/reconcile/types.ts';
import { FakeDriver, type FakeDriverOptions } from './fake-driver.ts';
import { MERGE } from './fragments.ts';

export interface Rig {
  readonly state: KernelState;
  readonly reconciler: Reconciler;
  readonly routes: FakeDriver<'route'>;
  readonly sysctls: FakeDriver<'sysctl'>;
  readonly controller: AbortController;
  put(...fragments: readonly Fragment[]): void;
  drop(...ids: readonly string[]): void;
}

export interface RigOptions {
  readonly options?: ReconcilerOptions;
  readonly routes?: FakeDriverOptions<'route'>;
  readonly sysctls?: FakeDriverOptions<'sysctl'>;
  readonly fragments?: readonly Fragment[];
}

/** Not started yet. Backoffs are short enough to be waited for. */
export function makeRig({ options, routes: forRoutes, sysctls: forSysctls, fragments = [] }: RigOptions = {}): Rig {
  const state = new KernelState(MERGE);
  const routes = new FakeDriver('route', forRoutes);
  const sysctls = new FakeDriver('sysctl', forSysctls);
  const reconciler = new Reconciler({
    state,
    // In the wrong order on purpose.
    drivers: [routes, sysctls],
    log: pino({ enabled: false }),
    options: { backoff: { minMs: 1, maxMs: 4 }, ...options },
  });
  const put = (...made: readonly Fragment[]): void => {
    for (const one of made) state.replace(one.id, one);
  };
  const drop = (...ids: readonly string[]): void => {
    for (const id of ids) state.replace(id, undefined);
  };
  put(...fragments);
  return { state, reconciler, routes, sysctls, controller: new AbortController(), put, drop };
}

/** Started, and everything listed once. The teardown looks for breaches of the driver contract. */
export async function startRig(t: ExecutionContext, options?: RigOptions): Promise<Rig> {
  const rig = makeRig(options);
  rig.reconciler.start(rig.controller.signal);
  t.teardown(async () => {
    rig.controller.abort(new Error('the test is over'));
    await rig.reconciler.stopped;
    const violations = [...rig.routes.violations, ...rig.sysctls.violations];
    if (violations.length > 0) throw new Error(`breaches of the driver contract: ${violations.join(', ')}`);
  });
  await rig.reconciler.listed;
  return rig;
}

/** Until nothing but blocked keys is dirty and every kind is listed. The bound only ends a test that hangs. */
export async function quiet(reconciler: Reconciler): Promise<void> {
  const end = performance.now() + 20_000;
  for (;;) {
    const { kinds } = reconciler.status();
    if (Object.values(kinds).every(({ dirty, blocked, stale }) => dirty === blocked && stale === null)) return;
    if (performance.now() > end)
      throw new Error(`not quiet after 20 s: ${JSON.stringify(reconciler.status(), null, 1)}`);
    await sleep(1);
  }
}

export const printed = (changes: readonly Change[]): string[] => changes.map(({ action, key }) => `${action} ${key}`);

/** For what should be answered long before; only a test that hangs meets its end. */
export const bound = (): AbortSignal => AbortSignal.timeout(20_000);

/** Lists that were booked. */
export const listsOf = ({ reconciler }: Rig, kind: Kind): number => reconciler.status().kinds[kind]?.lists ?? 0;

/** Until no lane has begun a cycle for so many turns that all must be waiting. */
export async function asleep({ reconciler }: Rig): Promise<void> {
  for (let before = -1, turns = 0; turns < 20; turns++) {
    const now = Object.values(reconciler.status().cycles).reduce((sum, cycles) => sum + cycles, 0);
    if (now !== before) turns = 0;
    before = now;
    await nextTurn();
  }
}
