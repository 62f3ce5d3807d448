/** A node's own object in the API, as kubelet writes it. */
import { arch, release } from 'node:os';
import type { IpAddress } from '../agent/model/ip.ts';
import { KINDS } from './api-server/kinds.ts';
import type { Store } from './api-server/store.ts';
import { type ApiWriter, apiPath } from './api-writer.ts';

/** Creates the Node; the controllers of the API server give it its pod CIDRs. Throws LabError. */
export async function registerNode(
  api: ApiWriter,
  name: string,
  addresses: readonly IpAddress[],
  signal: AbortSignal,
): Promise<void> {
  const labels = { 'kubernetes.io/hostname': name, 'kubernetes.io/os': 'linux', 'kubernetes.io/arch': arch() };
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

const nodeStatus = (name: string, addresses: readonly IpAddress[]): unknown => ({
  addresses: [...addresses.map((address) => ({ type: 'InternalIP', address })), { type: 'Hostname', address: name }],
  conditions: [{ type: 'Ready', status: 'True', reason: 'LabNodeUp', lastTransitionTime: new Date().toISOString() }],
  nodeInfo: { operatingSystem: 'linux', architecture: arch(), kernelVersion: release() },
});
