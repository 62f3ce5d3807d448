/** Why this node cannot take pods: one source for ADD, the CNI's STATUS, `tulle status`, /readyz and metrics. */
import type { ClusterStatus } from './cluster/cluster.ts';
import type { Underlay } from './plan/underlay.ts';

export interface ReadinessView {
  /** Asked only before the first plan. */
  readonly cluster: () => ClusterStatus;
  /** Absent before the first plan. */
  readonly underlay: Underlay | undefined;
  /** Why the runtime has not been told that pods can start. */
  readonly notInstalled: string | undefined;
  /** What of the node's own network cannot be in the kernel. */
  readonly failures: readonly Error[];
}

/** Of what fails in the kernel; all of it stands in `tulle status`. */
const MOST_FAILURES = 10;

/** One sentence each, the weightiest first; none: the node is ready. Pure. */
export function obstaclesOf({ cluster, underlay, notInstalled, failures }: ReadinessView): readonly string[] {
  if (!underlay) return whyNotPlanned(cluster());
  const away = underlay.suspended || underlay.podNetworks.length === 0 ? underlay.problems : [];
  const failing = failures.slice(0, MOST_FAILURES).map(({ message }) => message);
  // What keeps the installation from its end is most often among the failures.
  return [...new Set([...away, ...(notInstalled === undefined ? [] : [notInstalled]), ...failing])];
}

function whyNotPlanned({ resources }: ClusterStatus): readonly string[] {
  const missing = resources.filter(({ synced }) => !synced);
  if (missing.length === 0) return ['the agent is starting'];
  const errors = missing.flatMap(({ resource, error }) =>
    error === undefined ? [] : [`the cluster API cannot be read (${resource}): ${error}`],
  );
  return errors.length > 0
    ? errors
    : [`the cluster API has not answered yet (${missing.map(({ resource }) => resource).join(', ')})`];
}
