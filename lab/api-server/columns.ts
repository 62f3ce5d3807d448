/** The columns of `kubectl get`, a kind each, near to what a real server prints. Pure. */

import { type ApiObject, arrayAt, isJsonObject, textAt, valueAt } from './objects.ts';

export interface Column {
  readonly name: string;
  readonly type: 'string' | 'integer';
  /** Above 0: printed with `-o wide` only. */
  readonly priority: number;
  readonly value: (object: ApiObject) => string | number;
}

const NONE = '<none>';

const text = (name: string, value: Column['value']): Column => ({ name, type: 'string', priority: 0, value });
const wide = (name: string, value: Column['value']): Column => ({ name, type: 'string', priority: 1, value });

export const columns = {
  namespace: [text('Status', (object) => textAt(object, 'status', 'phase'))],
  node: [
    text('Status', readiness),
    text('Pod-CIDRs', (object) => joined(arrayAt(object, 'spec', 'podCIDRs'))),
    wide('Internal-IP', (object) =>
      joined(
        arrayAt(object, 'status', 'addresses')
          .filter((address) => textAt(address, 'type') === 'InternalIP')
          .map((address) => textAt(address, 'address')),
      ),
    ),
  ],
  pod: [
    text('Ready', containersReady),
    text('Status', (object) => (object.metadata.deletionTimestamp ? 'Terminating' : textAt(object, 'status', 'phase'))),
    wide('IP', (object) => joined(arrayAt(object, 'status', 'podIPs').map((entry) => textAt(entry, 'ip')))),
    wide('Node', (object) => textAt(object, 'spec', 'nodeName') || NONE),
  ],
  service: [
    text('Type', (object) => textAt(object, 'spec', 'type') || 'ClusterIP'),
    text('Cluster-IP', (object) => textAt(object, 'spec', 'clusterIP') || NONE),
    text('External-IP', (object) =>
      joined([
        ...arrayAt(object, 'spec', 'externalIPs'),
        ...arrayAt(object, 'status', 'loadBalancer', 'ingress').map((ingress) => textAt(ingress, 'ip')),
      ]),
    ),
    text('Port(s)', (object) => joined(arrayAt(object, 'spec', 'ports').map(servicePort))),
    wide('Selector', (object) => pairs(valueAt(object, 'spec', 'selector'))),
  ],
  endpointSlice: [
    text('AddressType', (object) => textAt(object, 'addressType')),
    text('Ports', (object) => joined(arrayAt(object, 'ports').map((port) => valueAt(port, 'port')))),
    text('Endpoints', (object) =>
      joined(arrayAt(object, 'endpoints').flatMap((endpoint) => arrayAt(endpoint, 'addresses'))),
    ),
  ],
  networkPolicy: [text('Pod-Selector', (object) => pairs(valueAt(object, 'spec', 'podSelector', 'matchLabels')))],
} as const satisfies Record<string, readonly Column[]>;

function readiness(node: ApiObject): string {
  const ready = arrayAt(node, 'status', 'conditions').find((condition) => textAt(condition, 'type') === 'Ready');
  const status = ready === undefined ? 'Unknown' : textAt(ready, 'status') === 'True' ? 'Ready' : 'NotReady';
  return valueAt(node, 'spec', 'unschedulable') === true ? `${status},SchedulingDisabled` : status;
}

function containersReady(pod: ApiObject): string {
  const ready = arrayAt(pod, 'status', 'containerStatuses').filter((status) => valueAt(status, 'ready') === true);
  return `${ready.length}/${arrayAt(pod, 'spec', 'containers').length}`;
}

function servicePort(port: unknown): string {
  const nodePort = valueAt(port, 'nodePort');
  return `${valueAt(port, 'port')}${nodePort ? `:${nodePort}` : ''}/${textAt(port, 'protocol') || 'TCP'}`;
}

const joined = (values: readonly unknown[]): string => values.join(',') || NONE;

const pairs = (map: unknown): string =>
  isJsonObject(map) ? joined(Object.entries(map).map(([key, value]) => `${key}=${value}`)) : NONE;
