/** A Node that somebody deletes and registers again. */
import { apiPath } from '../../lab/api-writer.ts';
import type { TestLab } from './lab.ts';

/** Without podCIDRs the lab's controller chooses them, if it has any left. */
export async function recreateNode({ control }: TestLab, node: string, podCIDRs?: readonly string[]): Promise<void> {
  const { metadata, status } = await control.callApi({ method: 'GET', path: apiPath.node(node) });
  await control.callApi({ method: 'DELETE', path: apiPath.node(node) });
  const { name, labels } = metadata as unknown as { readonly name: string; readonly labels: object };
  const spec = podCIDRs ? { podCIDR: podCIDRs[0], podCIDRs } : {};
  const object = { apiVersion: 'v1', kind: 'Node', metadata: { name, labels }, spec };
  await control.callApi({ method: 'POST', path: apiPath.nodes, object });
  await control.callApi({ method: 'PATCH', path: `${apiPath.node(node)}/status`, object: { status } });
}
