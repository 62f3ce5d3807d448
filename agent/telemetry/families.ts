/** The metrics that are read from the status at each scrape: one table. */
import type { KindStatus, ReconcilerStatus } from '../reconcile/reconciler.ts';
import type { ProcessFigures } from './process-figures.ts';

/** What of the agent's status the metrics show. */
export interface MetricsView {
  readonly version: string;
  readonly host: { readonly kernel: string; readonly iptables: string };
  /** Why the node is not ready; none: it is. */
  readonly obstacles: readonly string[];
  readonly attachments: readonly unknown[];
  /** Those that pods can have. */
  readonly addresses: readonly {
    readonly family: string;
    readonly used: number;
    readonly resting: number;
    readonly free: number;
  }[];
  readonly problems: readonly unknown[];
  readonly cluster: { readonly resources: readonly WatchView[] };
  readonly kernel: ReconcilerStatus;
  /** Absent where another proxy serves them. */
  readonly services?: { readonly mode: string; readonly sockets?: SocketsView };
  /** Absent where the agent carries no tunnel. */
  readonly tunnel?: TunnelView;
  readonly process: ProcessFigures;
}

interface TunnelView {
  readonly problems: readonly unknown[];
  readonly peers: readonly {
    readonly node: string;
    readonly state: string;
    readonly problem?: string;
    readonly sent: TrafficView;
    readonly received: TrafficView;
    readonly dropped: Readonly<Record<string, number>>;
  }[];
  readonly dropped: Readonly<Record<string, number>>;
}

interface TrafficView {
  readonly packets: number;
  readonly bytes: number;
}

/** Services at the sockets of this node. */
interface SocketsView {
  readonly usage: Readonly<Record<string, { readonly used: number; readonly max: number }>>;
  readonly counters: Readonly<Record<string, number>>;
}

interface WatchView {
  readonly resource: string;
  readonly objects: number;
  readonly synced: boolean;
  readonly connected: boolean;
  readonly lastEventMs: number | undefined;
  readonly relists: number;
  readonly expired: number;
  readonly problemCount: number;
  readonly troubled: readonly (readonly [object: string, problems: number])[];
}

/** A value and the texts of the labels, in their order. */
type Sample = readonly [value: number, ...labels: readonly string[]];

export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: 'gauge' | 'counter';
  readonly labels: readonly string[];
  readonly read: (view: MetricsView) => readonly Sample[];
}

const one = (
  type: Family['type'],
  name: string,
  help: string,
  value: (view: MetricsView) => number | undefined,
): Family => ({
  name,
  help,
  type,
  labels: [],
  read: (view) => {
    const seen = value(view);
    return seen === undefined ? [] : [[seen]];
  },
});

/** Among thousands of bad objects the first show what is wrong; `tulle_problems` counts all. */
const OBJECTS_MAX = 100;

/** Whom the problems are about, and how many they are. */
function troubledObjects({ cluster, kernel }: MetricsView): readonly Sample[] {
  const watched = cluster.resources.flatMap(({ resource, troubled }) =>
    troubled.map(([object, problems]) => [problems, 'cluster', ...objectOf(resource.slice(0, -1), object)] as const),
  );
  const planned = [...Map.groupBy(kernel.problems, ({ cause }) => cause)].flatMap(([cause, { length }]) => {
    const [kind = '', object] = cause.split(' ');
    return object === undefined || !KINDS.has(kind) ? [] : [[length, 'plan', ...objectOf(kind, object)] as const];
  });
  return [...watched, ...planned].slice(0, OBJECTS_MAX);
}

/** Of the API, as a fragment's cause names them; what else asks for something is no object of somebody. */
const KINDS: ReadonlySet<string> = new Set(['node', 'pod', 'service', 'endpointslice']);

function objectOf(kind: string, object: string): readonly [kind: string, namespace: string, name: string] {
  const slash = object.indexOf('/');
  return [kind, object.slice(0, Math.max(0, slash)), object.slice(slash + 1)];
}

/** A value for each driver; null for one that has none yet. */
const perKind = (
  type: Family['type'],
  name: string,
  help: string,
  value: (status: KindStatus) => number | null,
): Family => ({
  name: `tulle_reconcile_${name}`,
  help,
  type,
  labels: ['lane', 'kind'],
  read: ({ kernel }) =>
    Object.entries(kernel.kinds).flatMap(([kind, status]) => {
      const seen = value(status);
      return seen === null ? [] : [[seen, status.lane, kind] as const];
    }),
});

const perWatch = (
  type: Family['type'],
  name: string,
  help: string,
  value: (watch: WatchView) => number | undefined,
): Family => ({
  name: `tulle_watch_${name}`,
  help,
  type,
  labels: ['resource'],
  read: ({ cluster }) =>
    cluster.resources.flatMap((watch) => {
      const seen = value(watch);
      return seen === undefined ? [] : [[seen, watch.resource] as const];
    }),
});

const troubledPeers = ({ peers }: TunnelView): number => peers.filter(({ problem }) => problem !== undefined).length;

const NODE: readonly Family[] = [
  {
    name: 'tulle_build_info',
    help: 'Always 1; the labels say what runs, and on what.',
    type: 'gauge',
    labels: ['version', 'runtime', 'kernel', 'iptables'],
    read: ({ version, process, host }) => [[1, version, process.runtime, host.kernel, host.iptables]],
  },
  one('gauge', 'tulle_ready', 'Whether /readyz says so.', ({ obstacles }) => Number(obstacles.length === 0)),
  one('gauge', 'tulle_attachments', 'Interfaces of pods that Tulle holds.', ({ attachments }) => attachments.length),
  {
    name: 'tulle_addresses',
    help: "Addresses of the node's podCIDR that pods can have; resting ones were released lately and are taken last.",
    type: 'gauge',
    labels: ['family', 'state'],
    read: ({ addresses }) =>
      addresses.flatMap(({ family, used, resting, free }) => [
        [used, family, 'used'] as const,
        [resting, family, 'resting'] as const,
        [free, family, 'free'] as const,
      ]),
  },
  {
    name: 'tulle_problems',
    help: 'Sentences that `tulle status` has, by what they are about.',
    type: 'gauge',
    labels: ['about'],
    read: ({ problems, cluster, kernel, tunnel }) => [
      [problems.length, 'attachments'],
      [cluster.resources.reduce((sum, { problemCount }) => sum + problemCount, 0), 'cluster'],
      [kernel.problems.length, 'plan'],
      ...(tunnel ? [[tunnel.problems.length + troubledPeers(tunnel), 'tunnel'] as const] : []),
    ],
  },
];

const OBJECTS: Family = {
  name: 'tulle_object_problems',
  help: `Problems of one object of the API, by what they are about; of at most ${OBJECTS_MAX} objects.`,
  type: 'gauge',
  labels: ['about', 'kind', 'namespace', 'name'],
  read: troubledObjects,
};

const RECONCILE: readonly Family[] = [
  perKind('gauge', 'wanted_items', 'Items that the kernel should hold.', ({ wanted }) => wanted),
  perKind('gauge', 'held_items', 'Own items that the kernel holds.', ({ known }) => known),
  perKind('gauge', 'dirty_items', 'Items not known to be right: failing and blocked ones, too.', ({ dirty }) => dirty),
  perKind('gauge', 'failing_items', 'Items whose last write failed.', ({ failing }) => failing),
  perKind('gauge', 'blocked_items', 'Items that wait for another one.', ({ blocked }) => blocked),
  perKind('gauge', 'stale', '1 while nothing is written, as the last list cannot be trusted.', ({ stale }) =>
    Number(stale !== null),
  ),
  {
    name: 'tulle_reconcile_changes_total',
    help: 'Changes of the kernel that succeeded.',
    type: 'counter',
    labels: ['lane', 'kind', 'op'],
    read: ({ kernel }) =>
      Object.entries(kernel.kinds).flatMap(([kind, { lane, actions }]) =>
        Object.entries(actions).map(([op, count]) => [count, lane, kind, op] as const),
      ),
  },
  perKind('counter', 'failures_total', 'Changes of the kernel that failed.', ({ failures }) => failures),
  perKind('counter', 'repairs_total', 'Changes that put back what somebody else had changed.', ({ drift }) => drift),
  perKind('counter', 'list_failures_total', 'Lists of the kernel that failed.', ({ listFailures }) => listFailures),
  perKind('gauge', 'last_success_timestamp_seconds', 'When a batch was last applied without a failure.', (status) =>
    status.lastSuccess === null ? null : status.lastSuccess / 1000,
  ),
  {
    name: 'tulle_lane_cycles_total',
    help: 'How often a lane woke up to look for work.',
    type: 'counter',
    labels: ['lane'],
    read: ({ kernel }) => Object.entries(kernel.cycles).map(([lane, count]) => [count, lane] as const),
  },
  {
    name: 'tulle_lane_busy_seconds',
    help: 'How long what a lane does now has taken; 0: it waits for work. See /healthz.',
    type: 'gauge',
    labels: ['lane'],
    read: ({ kernel }) =>
      Object.keys(kernel.cycles).map(
        (lane) => [(kernel.work[lane as keyof typeof kernel.work]?.durationMs ?? 0) / 1000, lane] as const,
      ),
  },
  one(
    'gauge',
    'tulle_api_to_kernel_behind_seconds',
    'Age of the oldest event of the cluster API that the kernel does not hold yet; 0: it holds all.',
    ({ kernel }) => kernel.behindMs / 1000,
  ),
];

const perMap = (name: string, help: string, field: 'used' | 'max'): Family => ({
  name: `tulle_services_map_${name}`,
  help,
  type: 'gauge',
  labels: ['map'],
  read: ({ services }) =>
    Object.entries(services?.sockets?.usage ?? {}).map(([map, usage]) => [usage[field], map] as const),
});

const SERVICES: readonly Family[] = [
  {
    name: 'tulle_services_mode',
    help: 'Always 1; the label says how this node serves Services.',
    type: 'gauge',
    labels: ['mode'],
    read: ({ services }) => [[1, services?.mode ?? 'off']],
  },
  perMap('entries', 'Entries of a map that the agent writes.', 'used'),
  perMap('max_entries', 'How many it can hold; what does not fit is not served at sockets.', 'max'),
  {
    name: 'tulle_services_sockets_total',
    help: 'Calls of sockets by what the programs made of them, since the maps were made.',
    type: 'counter',
    labels: ['outcome'],
    read: ({ services }) =>
      Object.entries(services?.sockets?.counters ?? {}).map(([outcome, count]) => [count, outcome] as const),
  },
];

const perPeer = (name: keyof TrafficView, help: string): Family => ({
  name: `tulle_tunnel_peer_${name}_total`,
  help,
  type: 'counter',
  labels: ['node', 'direction'],
  read: ({ tunnel }) =>
    (tunnel?.peers ?? []).flatMap(({ node, sent, received }) => [
      [sent[name], node, 'sent'] as const,
      [received[name], node, 'received'] as const,
    ]),
});

const PEER_STATES = ['agreed', 'silent', 'refused', 'mismatch'] as const;

/** Of a tunnel that the agent carries itself. */
const TUNNEL: readonly Family[] = [
  {
    name: 'tulle_tunnel_peers',
    help: 'Other nodes, by whether this one and they have agreed on how packets travel; nothing is certain to reach the rest.',
    type: 'gauge',
    labels: ['state'],
    read: ({ tunnel }) =>
      tunnel ? PEER_STATES.map((state) => [tunnel.peers.filter((peer) => peer.state === state).length, state]) : [],
  },
  {
    name: 'tulle_tunnel_peer_agreed',
    help: 'Whether this node and a peer have agreed; if not, `tulle status` says why.',
    type: 'gauge',
    labels: ['node'],
    read: ({ tunnel }) => (tunnel?.peers ?? []).map(({ node, state }) => [Number(state === 'agreed'), node]),
  },
  perPeer('packets', 'Packets of pods to and from a peer.'),
  perPeer('bytes', 'Bytes of these packets, with their own headers.'),
  {
    name: 'tulle_tunnel_peer_dropped_total',
    help: 'Packets and datagrams of a peer that were dropped.',
    type: 'counter',
    labels: ['node', 'reason'],
    read: ({ tunnel }) =>
      (tunnel?.peers ?? []).flatMap(({ node, dropped }) =>
        Object.entries(dropped).flatMap(([reason, count]) => (count > 0 ? [[count, node, reason] as const] : [])),
      ),
  },
  {
    name: 'tulle_tunnel_dropped_total',
    help: 'Packets and datagrams that belong to no peer, and were dropped.',
    type: 'counter',
    labels: ['reason'],
    read: ({ tunnel }) => Object.entries(tunnel?.dropped ?? {}).map(([reason, count]) => [count, reason] as const),
  },
];

const WATCH: readonly Family[] = [
  perWatch('gauge', 'synced', 'Whether a list was complete once.', ({ synced }) => Number(synced)),
  perWatch('gauge', 'connected', 'Whether a watch is open.', ({ connected }) => Number(connected)),
  perWatch('gauge', 'objects', 'Objects that are known.', ({ objects }) => objects),
  perWatch('gauge', 'last_event_timestamp_seconds', 'When the server last said something.', ({ lastEventMs }) =>
    lastEventMs === undefined ? undefined : lastEventMs / 1000,
  ),
  perWatch('counter', 'relists_total', 'Complete lists after the first.', ({ relists }) => relists),
  perWatch(
    'counter',
    'expired_total',
    'Times that the server no longer knew our version (410).',
    (watch) => watch.expired,
  ),
];

/** The first four have the names that Prometheus gives them everywhere. */
const PROCESS: readonly Family[] = [
  one('gauge', 'process_resident_memory_bytes', 'Resident memory.', ({ process }) => process.residentBytes),
  one('counter', 'process_cpu_seconds_total', 'User and system time.', ({ process }) => process.cpuSeconds),
  one('gauge', 'process_start_time_seconds', 'When the agent started.', ({ process }) => process.startSeconds),
  one('gauge', 'process_open_fds', 'Open files and sockets.', ({ process }) => process.openFiles),
  one(
    'counter',
    'tulle_event_loop_active_seconds_total',
    'Time in which the event loop did not wait.',
    ({ process }) => process.activeSeconds,
  ),
  one(
    'gauge',
    'tulle_event_loop_stall_seconds',
    'The longest time since the last scrape in which the event loop did not turn.',
    ({ process }) => process.stallSeconds,
  ),
];

export const FAMILIES_OF_METRICS: readonly Family[] = [
  ...NODE,
  OBJECTS,
  ...RECONCILE,
  ...SERVICES,
  ...TUNNEL,
  ...WATCH,
  ...PROCESS,
];
