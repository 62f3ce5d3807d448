/** Nodes that are nothing but objects in the API: how an agent fares among thousands is rehearsed with them. */
import { apiPath } from './api-writer.ts';
import type { LabControl } from './control.ts';

/** As many as addresses are there for. */
export const MAX_PHANTOMS = 16_384;
const CONCURRENCY = 8;

export const phantomName = (index: number): string => `phantom-${String(index).padStart(5, '0')}`;

/** Creates Nodes 0 to `count` - 1. Nobody answers at their addresses. Throws LabError. */
export async function createPhantoms({ callApi }: Pick<LabControl, 'callApi'>, count: number): Promise<void> {
  if (count > MAX_PHANTOMS) throw new RangeError(`cannot make ${count} phantoms: expected at most ${MAX_PHANTOMS}`);
  let next = 0;
  const create = async () => {
    while (next < count) await callApi({ method: 'POST', path: apiPath.nodes, object: phantom(next++) });
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, create));
}

/** Gives a phantom other addresses, `generation` 1 and up, as a machine that was replaced. Throws LabError. */
export async function movePhantom(
  { callApi }: Pick<LabControl, 'callApi'>,
  index: number,
  generation: number,
): Promise<void> {
  const path = `${apiPath.node(phantomName(index))}/status`;
  await callApi({ method: 'PATCH', path, object: { status: { addresses: addressesOf(index, generation) } } });
}

function phantom(index: number): unknown {
  const podCIDRs = [`10.${128 + (index >> 8)}.${index & 255}.0/24`, `fd85:0:0:${index.toString(16)}::/64`];
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: phantomName(index), labels: { 'tulle.dev/phantom': 'true' } },
    spec: { podCIDR: podCIDRs[0], podCIDRs },
    status: { addresses: addressesOf(index, 0) },
  };
}

/** Beside all addresses of a lab. */
const addressesOf = (index: number, generation: number): unknown =>
  [
    `100.${64 + (generation & 63)}.${index >> 8}.${index & 255}`,
    `fd31:0:0:${generation.toString(16)}::${(index + 1).toString(16)}`,
  ].map((address) => ({ type: 'InternalIP', address }));
