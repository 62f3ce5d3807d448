/** What keeps connections to Services from their backends on this node, for those who would send them elsewhere. */
import type { Fragment, FragmentId } from './model/fragment.ts';
import { type Key, kindOf } from './model/items.ts';
import type { KernelState } from './reconcile/kernel-state.ts';
import { FAILING_AFTER } from './reconcile/list-schedule.ts';
import type { Reconciler } from './reconcile/reconciler.ts';
import { stuckLanes } from './telemetry/health.ts';

interface Books {
  readonly state: KernelState;
  readonly reconciler: Reconciler;
}

/**
 * Of what these fragments and all that they require want: what fails lastingly, and what has not got into the kernel yet.
 * A backend set that is on its way is no obstacle: until it is there, its frontends lead to the former one.
 */
export function serviceObstacles({ state, reconciler }: Books, ids: readonly FragmentId[]): readonly string[] {
  const stuck = stuckLanes(reconciler.work());
  if (stuck.length > 0) return stuck;
  const keys = wantedKeys(state, ids);
  const failures = reconciler.failures(keys, FAILING_AFTER).map(({ message }) => message);
  if (failures.length > 0) return failures;
  const missing = keys.find((key) => kindOf(key) !== 'backend-set' && reconciler.known(key) === undefined);
  return missing === undefined ? [] : [`${missing} is not in the kernel yet`];
}

/** Of the fragments that are there, and of all that they require. */
export function fragmentsWith(state: KernelState, ids: readonly FragmentId[]): ReadonlySet<Fragment> {
  const found = new Set<Fragment>();
  const visit = (id: FragmentId): void => {
    const fragment = state.fragment(id);
    if (!fragment || found.has(fragment)) return;
    found.add(fragment);
    for (const other of fragment.requires) visit(other);
  };
  for (const id of ids) visit(id);
  return found;
}

const wantedKeys = (state: KernelState, ids: readonly FragmentId[]): readonly Key[] =>
  [...fragmentsWith(state, ids)].flatMap(({ items }) =>
    items.map(({ key }) => key).filter((key) => state.wanted(key) !== undefined),
  );
