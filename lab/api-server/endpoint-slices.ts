/** Keeps the EndpointSlices of Services with a selector, as kube-controller-manager does. */

import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import type { Controller } from './controllers.ts';
import { familiesOf, groupEndpoints } from './endpoints.ts';
import { Follower } from './follower.ts';
import { KINDS } from './kinds.ts';
import { type ApiObject, arrayAt, isJsonObject, keyOfRef, refOf, textAt, valueAt } from './objects.ts';
import { type IpFamilyName, isHeadless, specOf } from './service-spec.ts';
import { SetsByKey } from './sets-by-key.ts';
import { planSlices, type SliceContent } from './slice-plan.ts';
import type { Store } from './store.ts';

export const SERVICE_NAME_LABEL = 'kubernetes.io/service-name';
const MANAGED_BY_LABEL = 'endpointslice.kubernetes.io/managed-by';
export const ZONE_LABEL = 'topology.kubernetes.io/zone';
const HEADLESS_LABEL = 'service.kubernetes.io/headless';
const RESERVED_LABELS = [SERVICE_NAME_LABEL, MANAGED_BY_LABEL, HEADLESS_LABEL];
const MANAGER = 'endpointslice-controller.k8s.io';
/** Longer than this no other work of the process waits. */
const TURN_MS = 10;

/** What a change costs follows the Services that it touches: Pods and Services find each other by single labels. */
export class EndpointSliceController implements Controller {
  readonly watches = [KINDS.service, KINDS.pod, KINDS.node, KINDS.endpointSlice];
  readonly #store: Store;
  readonly #log: Logger | undefined;
  readonly #services: Follower;
  readonly #pods: Follower;
  readonly #nodes: Follower;
  readonly #slices: Follower;
  /** Keys of Services by the first pair of their selector, of Pods by each of their labels, of Pods by their Node. */
  readonly #servicesByPair = new SetsByKey<string>();
  readonly #podsByPair = new SetsByKey<string>();
  readonly #podsByNode = new SetsByKey<string>();
  /** Keys of slices that are this controller's, by the key of their Service. */
  readonly #slicesByService = new SetsByKey<string>();
  /** Keys of Services. */
  readonly #dirty = new Set<string>();

  constructor(store: Store, log: Logger | undefined) {
    this.#store = store;
    this.#log = log;
    this.#services = new Follower(store, KINDS.service, (before, after) => this.#serviceChanged(before, after));
    this.#pods = new Follower(store, KINDS.pod, (before, after) => this.#podChanged(before, after));
    this.#nodes = new Follower(store, KINDS.node, (before, after) => this.#nodeChanged(before, after));
    this.#slices = new Follower(store, KINDS.endpointSlice, (before, after) => this.#sliceChanged(before, after));
  }

  run(): boolean {
    for (const follower of [this.#nodes, this.#services, this.#pods, this.#slices]) follower.catchUp();
    const end = performance.now() + TURN_MS;
    for (const key of this.#dirty) {
      if (performance.now() > end) return true;
      this.#trySync(key);
    }
    return false;
  }

  #serviceChanged(before: ApiObject | undefined, after: ApiObject | undefined): void {
    if (before) for (const pair of pairsOf(before).slice(0, 1)) this.#servicesByPair.delete(pair, keyOf(before));
    if (after) for (const pair of pairsOf(after).slice(0, 1)) this.#servicesByPair.add(pair, keyOf(after));
    this.#dirty.add(keyOf((after ?? before) as ApiObject));
  }

  #podChanged(before: ApiObject | undefined, after: ApiObject | undefined): void {
    if (before) this.#indexPod(before, 'delete');
    if (after) this.#indexPod(after, 'add');
    for (const pod of [before, after]) if (pod) this.#touchServicesOf(pod);
  }

  #indexPod(pod: ApiObject, operation: 'add' | 'delete'): void {
    for (const pair of labelPairsOf(pod)) this.#podsByPair[operation](pair, keyOf(pod));
    this.#podsByNode[operation](nodeOf(pod), keyOf(pod));
  }

  #touchServicesOf(pod: ApiObject): void {
    const pairs = new Set(labelPairsOf(pod));
    for (const pair of pairs)
      for (const key of this.#servicesByPair.get(pair)) {
        const service = this.#services.objects.get(key);
        if (service && pairsOf(service).every((each) => pairs.has(each))) this.#dirty.add(key);
      }
  }

  #nodeChanged(before: ApiObject | undefined, after: ApiObject | undefined): void {
    if (before && after && zoneOf(before) === zoneOf(after)) return;
    const { name } = ((after ?? before) as ApiObject).metadata;
    for (const key of this.#podsByNode.get(name)) this.#touchServicesOf(this.#pods.objects.get(key) as ApiObject);
  }

  #sliceChanged(before: ApiObject | undefined, after: ApiObject | undefined): void {
    for (const [slice, operation] of [
      [before, 'delete'],
      [after, 'add'],
    ] as const) {
      if (slice?.metadata.labels?.[MANAGED_BY_LABEL] !== MANAGER) continue;
      this.#slicesByService[operation](serviceOf(slice), keyOf(slice));
      this.#dirty.add(serviceOf(slice));
    }
  }

  /** A Service whose slices cannot be written waits for its next change, and no other one waits for it. */
  #trySync(key: string): void {
    try {
      this.#sync(key);
    } catch (err) {
      this.#log?.error({ service: key, err }, 'cannot keep the EndpointSlices of a Service');
    }
    // What was just written is known to be right.
    this.#slices.catchUp();
    this.#dirty.delete(key);
  }

  #sync(key: string): void {
    const service = this.#services.objects.get(key);
    const slices = [...this.#slicesByService.get(key)].map((each) => this.#slices.objects.get(each) as ApiObject);
    const isTheirs = (slice: ApiObject) => ownerOf(slice) === service?.metadata.uid;
    // Of a Service that is gone, though another may have its name by now: elsewhere the garbage collector's work.
    for (const slice of slices) if (!isTheirs(slice)) this.#store.delete(KINDS.endpointSlice, refOf(slice));
    const [pair] = service ? pairsOf(service) : [];
    if (!service || pair === undefined) return;
    const pods = this.#podsOf(service, pair);
    const families = familiesOf(specOf(service));
    const own = slices.filter(isTheirs);
    for (const slice of own)
      if (!families.some((family) => family === slice['addressType']))
        this.#store.delete(KINDS.endpointSlice, refOf(slice));
    for (const family of families) this.#syncFamily(service, pods, family, own);
  }

  #syncFamily(service: ApiObject, pods: readonly ApiObject[], family: IpFamilyName, own: readonly ApiObject[]): void {
    const placeOf = (name: string) => {
      const node = this.#nodes.objects.get(`/${name}`);
      return node && { zone: zoneOf(node) };
    };
    const existing = own.filter((slice) => slice['addressType'] === family);
    const plan = planSlices(existing, groupEndpoints(service, pods, placeOf, family), family);
    for (const { slice, content } of plan.keep)
      this.#store.update(KINDS.endpointSlice, refOf(slice), () => sliceOf(service, slice.metadata.name, content));
    const namespace = service.metadata.namespace ?? '';
    for (const content of plan.create)
      this.#store.create(KINDS.endpointSlice, sliceOf(service, this.#freeName(service), content), namespace);
    for (const slice of plan.remove) this.#store.delete(KINDS.endpointSlice, refOf(slice));
  }

  #podsOf(service: ApiObject, pair: string): readonly ApiObject[] {
    const wanted = pairsOf(service);
    const candidates = [...this.#podsByPair.get(pair)].map((key) => this.#pods.objects.get(key) as ApiObject);
    return candidates.filter((pod) => {
      const labels = new Set(labelPairsOf(pod));
      return wanted.every((each) => labels.has(each));
    });
  }

  #freeName({ metadata: { namespace = '', name } }: ApiObject): string {
    for (;;) {
      const free = `${name}-${randomUUID().slice(0, 5)}`;
      if (!this.#store.find(KINDS.endpointSlice, { namespace, name: free })) return free;
    }
  }
}

const keyOf = (object: ApiObject): string => keyOfRef(refOf(object));

const nodeOf = (pod: ApiObject): string => textAt(pod, 'spec', 'nodeName');

const zoneOf = (node: ApiObject): string => node.metadata.labels?.[ZONE_LABEL] ?? '';

const serviceOf = ({ metadata: { namespace = '', labels } }: ApiObject): string =>
  keyOfRef({ namespace, name: labels?.[SERVICE_NAME_LABEL] ?? '' });

const ownerOf = (slice: ApiObject): unknown =>
  valueAt(
    arrayAt(slice.metadata, 'ownerReferences').find((owner) => textAt(owner, 'kind') === 'Service'),
    'uid',
  );

/** `namespace/label=value`: neither labels nor values contain what stands between them. */
const pairs = (namespace: string | undefined, map: unknown): readonly string[] =>
  isJsonObject(map) ? Object.entries(map).map(([label, value]) => `${namespace}/${label}=${String(value)}`) : [];

const labelPairsOf = ({ metadata: { namespace, labels } }: ApiObject): readonly string[] => pairs(namespace, labels);

/** Of the selector; none where the endpoints are made by somebody else. */
const pairsOf = (service: ApiObject): readonly string[] => {
  const { type, selector } = specOf(service);
  return type === 'ExternalName' ? [] : pairs(service.metadata.namespace, selector);
};

function sliceOf(service: ApiObject, name: string, content: SliceContent): unknown {
  const { namespace, uid, name: serviceName } = service.metadata;
  const own = Object.entries(service.metadata.labels ?? {}).filter(([label]) => !RESERVED_LABELS.includes(label));
  const { clusterIP } = specOf(service);
  const labels = {
    ...Object.fromEntries(own),
    ...((clusterIP === undefined || isHeadless(specOf(service))) && { [HEADLESS_LABEL]: '' }),
    [SERVICE_NAME_LABEL]: serviceName,
    [MANAGED_BY_LABEL]: MANAGER,
  };
  const owner = {
    apiVersion: 'v1',
    kind: 'Service',
    name: serviceName,
    uid,
    controller: true,
    blockOwnerDeletion: true,
  };
  return { metadata: { namespace, name, labels, ownerReferences: [owner] }, ...content };
}
