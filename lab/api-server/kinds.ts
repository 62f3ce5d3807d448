/** What the server serves: one row a kind. Another kind is one more row. */

import { type Column, columns } from './columns.ts';
import { type ApiObject, textAt } from './objects.ts';
import { validateService } from './service-rules.ts';
import { prepareService } from './service-spec.ts';
import type { Cause } from './status.ts';
import { alignPodCidrs, type NameRule, validatePodCidrs } from './validation.ts';

export interface KindRow {
  /** '' for the core group. */
  readonly group: string;
  readonly version: string;
  /** Plural, as in paths. */
  readonly resource: string;
  readonly singular: string;
  readonly kind: string;
  readonly namespaced: boolean;
  readonly shortNames: readonly string[];
  readonly nameRule: NameRule;
  /**
   * The kind has a `status` subresource, and only that changes the status. `kept`: a new object brings its own, as the
   * kubelet's Node does; otherwise what a new object starts with.
   */
  readonly status?: 'kept' | Readonly<Record<string, unknown>>;
  /** Deletion may wait for a grace period. */
  readonly graceful?: true;
  /** Field selectors beyond metadata.name and metadata.namespace. */
  readonly fields?: Readonly<Record<string, (object: ApiObject) => string>>;
  /** Brings an incoming object, which may take the place of `previous`, into the form that is stored. Pure. */
  readonly prepare?: (object: ApiObject, previous: ApiObject | undefined) => ApiObject;
  /** Objections to a new object, or to one that takes the place of `previous`. Pure. */
  readonly validate?: (object: ApiObject, previous: ApiObject | undefined) => readonly Cause[];
  /** What `kubectl get` prints between the name and the age. */
  readonly columns: readonly Column[];
}

export const KINDS = {
  namespace: {
    group: '',
    version: 'v1',
    resource: 'namespaces',
    singular: 'namespace',
    kind: 'Namespace',
    namespaced: false,
    shortNames: ['ns'],
    nameRule: 'label',
    status: { phase: 'Active' },
    fields: { 'status.phase': (object) => textAt(object, 'status', 'phase') },
    prepare: labelWithName,
    columns: columns.namespace,
  },
  node: {
    group: '',
    version: 'v1',
    resource: 'nodes',
    singular: 'node',
    kind: 'Node',
    namespaced: false,
    shortNames: ['no'],
    nameRule: 'subdomain',
    status: 'kept',
    prepare: alignPodCidrs,
    validate: validatePodCidrs,
    columns: columns.node,
  },
  pod: {
    group: '',
    version: 'v1',
    resource: 'pods',
    singular: 'pod',
    kind: 'Pod',
    namespaced: true,
    shortNames: ['po'],
    nameRule: 'subdomain',
    status: { phase: 'Pending' },
    graceful: true,
    fields: {
      'spec.nodeName': (object) => textAt(object, 'spec', 'nodeName'),
      'status.phase': (object) => textAt(object, 'status', 'phase'),
    },
    columns: columns.pod,
  },
  service: {
    group: '',
    version: 'v1',
    resource: 'services',
    singular: 'service',
    kind: 'Service',
    namespaced: true,
    shortNames: ['svc'],
    nameRule: 'service',
    status: { loadBalancer: {} },
    prepare: prepareService,
    validate: validateService,
    columns: columns.service,
  },
  /** Taken as they come: what an agent makes of bad ones is rehearsed with them. */
  endpointSlice: {
    group: 'discovery.k8s.io',
    version: 'v1',
    resource: 'endpointslices',
    singular: 'endpointslice',
    kind: 'EndpointSlice',
    namespaced: true,
    shortNames: [],
    nameRule: 'subdomain',
    columns: columns.endpointSlice,
  },
  networkPolicy: {
    group: 'networking.k8s.io',
    version: 'v1',
    resource: 'networkpolicies',
    singular: 'networkpolicy',
    kind: 'NetworkPolicy',
    namespaced: true,
    shortNames: ['netpol'],
    nameRule: 'subdomain',
    columns: columns.networkPolicy,
  },
} as const satisfies Record<string, KindRow>;

export const kinds: readonly KindRow[] = Object.freeze(Object.values(KINDS));

/** `v1`, `discovery.k8s.io/v1`. */
export const apiVersionOf = ({ group, version }: KindRow): string => (group ? `${group}/${version}` : version);

/** Namespace selectors of policies find a namespace by this label (KEP 2161). */
function labelWithName(namespace: ApiObject): ApiObject {
  const { metadata } = namespace;
  const labels = { ...metadata.labels, 'kubernetes.io/metadata.name': metadata.name };
  return { ...namespace, metadata: { ...metadata, labels } };
}
