import type { Logger } from 'pino';
import type { Cluster, Node, Pod } from '../model/cluster.ts';
import type { EndpointSlice, Service } from '../model/services.ts';
import type { ApiClient } from './api-client.ts';
import { isObjectName, type Narrowed, nameKey, namespacedKey } from './fields.ts';
import { ListWatch, type ListWatchStatus, type ListWatchTiming, type Resource } from './list-watch.ts';
import { narrowNode, narrowPod } from './narrow.ts';
import { HEADLESS_LABEL, narrowEndpointSliceFor, narrowService, PROXY_NAME_LABEL } from './narrow-services.ts';
import { ObjectCache } from './object-cache.ts';

export interface ClusterChange {
  /** Names of Nodes that came, changed or went. */
  readonly nodes: ReadonlySet<string>;
  /** `<namespace>/<name>` of Pods that did. */
  readonly pods: ReadonlySet<string>;
  /** The same of Services and EndpointSlices. */
  readonly services: ReadonlySet<string>;
  readonly endpointSlices: ReadonlySet<string>;
}

export interface ResourceStatus extends ListWatchStatus {
  readonly objects: number;
  /** What could not be used of the objects, one sentence each, with their names; at most PROBLEMS_SHOWN. */
  readonly problems: readonly string[];
  /** How many there are. */
  readonly problemCount: number;
  /** The objects that they are about, as far as those have names, with how many each has; at most TROUBLED_SHOWN. */
  readonly troubled: readonly (readonly [object: string, problems: number])[];
}

export interface ClusterStatus {
  readonly resources: readonly ResourceStatus[];
}

interface ClusterWatchOptions {
  readonly client: Pick<ApiClient, 'list' | 'watch'>;
  /** Pods bound to this node are watched. */
  readonly nodeName: string;
  /** Whether Services and their EndpointSlices are watched. */
  readonly services?: boolean;
  readonly log: Logger;
  readonly timing?: Partial<ListWatchTiming>;
}

type AnyCache = Pick<ObjectCache<unknown>, 'size' | 'problems' | 'troubled' | 'apply' | 'startReplacement'>;

/** In a status: who has thousands of bad objects begins with the first. */
const PROBLEMS_SHOWN = 20;
const TROUBLED_SHOWN = 100;
const NONE: ReadonlySet<string> = new Set();
const NO_CHANGE: ClusterChange = { nodes: NONE, pods: NONE, services: NONE, endpointSlices: NONE };

/** Neither what has no address of its own nor what another proxy serves. */
const SERVED = { labelSelector: `!${PROXY_NAME_LABEL},!${HEADLESS_LABEL}` };

/**
 * What the API says about all Nodes, the Pods of one node and, if asked, about Services, as a value that is replaced on each change. Through an
 * outage the last value stays. All events that arrived together are one change.
 */
export class ClusterWatch {
  /** Once every resource was listed. Rejects with the signal's reason when it aborts before. */
  readonly synced: Promise<void>;
  readonly #synced = Promise.withResolvers<void>();
  readonly #nodes: ObjectCache<Node>;
  readonly #pods: ObjectCache<Pod>;
  readonly #services: ObjectCache<Service>;
  readonly #endpointSlices: ObjectCache<EndpointSlice>;
  readonly #watches: readonly { readonly watch: ListWatch; readonly cache: AnyCache }[];
  readonly #listeners = new Set<(changed: ClusterChange) => void>();
  readonly #log: Logger;
  /** Absent after a change, until somebody asks. */
  #snapshot: Cluster | undefined;
  /** The listeners know that everything is synced. */
  #syncedTold = false;
  #running: Promise<unknown> | undefined;

  constructor({ client, nodeName, services = false, log, timing = {} }: ClusterWatchOptions) {
    if (!isObjectName(nodeName)) throw new TypeError(`not the name of a Node: ${JSON.stringify(nodeName)}`);
    this.#log = log;
    this.synced = this.#synced.promise;
    // Nobody has to wait for it.
    this.synced.catch(() => {});
    this.#nodes = this.#cache('nodes', nameKey, narrowNode);
    this.#pods = this.#cache('pods', namespacedKey, narrowPod);
    this.#services = this.#cache('services', namespacedKey, narrowService);
    this.#endpointSlices = this.#cache('endpointSlices', namespacedKey, narrowEndpointSliceFor(nodeName));
    const follow = (resource: Resource, cache: AnyCache) => ({
      cache,
      watch: new ListWatch({ client, resource, sink: cache, log, listed: () => this.#listed(), timing }),
    });
    const slices = '/apis/discovery.k8s.io/v1/endpointslices';
    this.#watches = [
      follow({ name: 'nodes', path: '/api/v1/nodes', query: {} }, this.#nodes),
      follow({ name: 'pods', path: '/api/v1/pods', query: { fieldSelector: `spec.nodeName=${nodeName}` } }, this.#pods),
      ...(services ? [follow({ name: 'services', path: '/api/v1/services', query: SERVED }, this.#services)] : []),
      ...(services ? [follow({ name: 'endpointslices', path: slices, query: SERVED }, this.#endpointSlices)] : []),
    ];
  }

  /** Starts watching, once, and goes on until the signal aborts. */
  start(signal: AbortSignal): void {
    this.#running ??= Promise.all(this.#watches.map(({ watch }) => watch.run(signal))).then(() =>
      this.#synced.reject(signal.reason),
    );
  }

  /** Resolves when, after the abort, everything has ended; at once if nothing was started. */
  async stopped(): Promise<void> {
    await this.#running;
  }

  /** The newest value; a new one after each change, with new maps only where something changed. */
  snapshot(): Cluster {
    this.#snapshot ??= Object.freeze({
      synced: this.#isSynced(),
      nodes: this.#nodes.objects,
      pods: this.#pods.objects,
      services: this.#services.objects,
      endpointSlices: this.#endpointSlices.objects,
    });
    return this.#snapshot;
  }

  /**
   * Calls after each change of the snapshot, also before everything is synced and, with empty sets perhaps, when it
   * becomes so. Returns how to end it. A listener must not throw.
   */
  onChange(listener: (changed: ClusterChange) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  status(): ClusterStatus {
    const resources = this.#watches.map(({ watch, cache }) => {
      const problems = cache.problems();
      return {
        ...watch.status(),
        objects: cache.size,
        problems: problems.slice(0, PROBLEMS_SHOWN),
        problemCount: problems.length,
        troubled: [...cache.troubled().take(TROUBLED_SHOWN)],
      };
    });
    return { resources };
  }

  /** All of them, by what is watched. */
  problems(): readonly { readonly cause: string; readonly problem: string }[] {
    return this.#watches.flatMap(({ watch, cache }) => {
      const cause = watch.status().resource;
      return cache.problems().map((problem) => ({ cause, problem }));
    });
  }

  #cache<T>(
    of: keyof ClusterChange,
    keyOf: (raw: unknown) => string | undefined,
    narrow: (raw: unknown) => Narrowed<T>,
  ): ObjectCache<T> {
    return new ObjectCache({ keyOf, narrow, changed: (keys) => this.#changed({ ...NO_CHANGE, [of]: keys }) });
  }

  #listed(): void {
    if (!this.#isSynced()) return;
    if (!this.#syncedTold) this.#changed(NO_CHANGE);
    this.#synced.resolve();
  }

  #isSynced(): boolean {
    return this.#watches.every(({ watch }) => watch.status().synced);
  }

  #changed(changed: ClusterChange): void {
    this.#snapshot = undefined;
    this.#syncedTold = this.#isSynced();
    for (const listener of this.#listeners) this.#tell(listener, changed);
  }

  /** A fault of a listener is a bug; it must not look like one of the server's. */
  #tell(listener: (changed: ClusterChange) => void, changed: ClusterChange): void {
    try {
      listener(changed);
    } catch (err) {
      this.#log.error({ err }, 'listener of cluster changes failed');
    }
  }
}
