/** A node's own object in the API, as kubelet writes it. */
import { arch, release } from 'node:os';
import type { IpAddress } from '../agent/model/ip.ts';
import { ZONE_LABEL } from './api-server/endpoint-slices.ts';
import { KINDS } from './api-server/kinds.ts';
import type { Store } from './api-server/store.ts';
import { type ApiWriter, apiPath } from './api-writer.ts';

export interface NewNode {
  readonly name: string;
  readonly addresses: readonly IpAddress[];
  readonly zone?: string | undefined;
}

/** Creates the Node; the controllers of the API server give it its pod CIDRs. Throws LabError. */
export async function registerNode(
  api: ApiWriter,
  { name, addresses, zone }: NewNode,
  signal: AbortSignal,
): Promise<void> {
  const labels = {
    'kubernetes.io/hostname': name,
    'kubernetes.io/os': 'linux',
    'kubernetes.io/arch': arch(),
    ...(zone !== undefined && { [ZONE_LABEL]: zone }),
  };
  await api.create(apiPath.nodes, { apiVersion: 'v1', kind: 'Node', metadata: { name, labels }, spec: {} }, signal);
  await api.patch(`${apiPath.node(name)}/status`, { status: nodeStatus(name, addresses) }, signal);
}

/**
 * spec.podCIDRs; empty until the controller has chosen, or without the Node. Past the REST interface: the lab has a
 * status also while its API server fails on purpose.
 */
export function readPodCidrs(store: Store, name: string): readonly string[] {
  const node = store.find(KINDS.node, { namespace: '', name })?.object;
  return (node?.['spec'] as { readonly podCIDRs?: readonly string[] } | undefined)?.podCIDRs ?? [];
}

/** `zone-1` and on, round robin; undefined in a lab without zones. */
export const zoneOfNode = (index: number, zones: number): string | undefined =>
  zones > 0 ? `zone-${(index % zones) + 1}` : undefined;

const nodeStatus = (name: string, addresses: readonly IpAddress[]): unknown => ({
  addresses: [...addresses.map((address) => ({ type: 'InternalIP', address })), { type: 'Hostname', address: name }],
  conditions: [{ type: 'Ready', status: 'True', reason: 'LabNodeUp', lastTransitionTime: new Date().toISOString() }],
  nodeInfo: { operatingSystem: 'linux', architecture: arch(), kernelVersion: release() },
});
