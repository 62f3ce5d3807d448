/** The lab's words to people. */
import { table } from '../agent/commands/table.ts';
import type { LabNodeStatus, LabStatus } from './control.ts';
import type { ProcessStatus } from './node-process.ts';

export function printLines(lines: readonly string[]): void {
  if (lines.length > 0) process.stdout.write(`${lines.join('\n')}\n`);
}

export const printHeading = (text: string): void => printLines(['', `── ${text}`]);

/** One thing done and how long it took. */
export function printStep(text: string, durationMs: number): void {
  printLines([`${durationMs.toFixed(0).padStart(6)} ms  ${text}`]);
}

/** What `lab status` prints; nodes are left out when there are none. */
export function describeStatus({ nodes, pods, apiServer, dir }: LabStatus): readonly string[] {
  const runtime = nodes.some(({ containerd }) => containerd) ? ['CONTAINERD'] : [];
  const zoned = nodes.some(({ zone }) => zone !== undefined) ? ['ZONE'] : [];
  const nodeRows = [
    ['NODE', 'SEGMENT', ...zoned, 'ADDRESSES', 'POD CIDRS', 'AGENT', ...runtime],
    ...nodes.map(nodeRow),
  ];
  const podRows = pods.map(({ namespace, name, node, addresses, phase, ready }) => [
    `${namespace}/${name}`,
    node,
    addresses.join(' '),
    phase === 'Running' && !ready ? 'Running, not ready' : phase,
  ]);
  return [
    ...(nodes.length > 0 ? [...table(nodeRows), ''] : []),
    ...(podRows.length > 0 ? table([['POD', 'NODE', 'ADDRESSES', 'PHASE'], ...podRows]) : ['no pods']),
    ...(nodes.length > 0
      ? ['', `API server  ${apiServer.url}`, `kubeconfig  ${apiServer.kubeconfig}`, `directory   ${dir}`]
      : []),
  ];
}

function nodeRow({
  name,
  state,
  segment,
  zone,
  addresses,
  podCidrs,
  agent,
  containerd,
}: LabNodeStatus): readonly string[] {
  const agentText = `${agent.state}, ${agent.ready ? 'ready' : 'not ready'}${restartsOf(agent)}`;
  return [
    name,
    `${segment}`,
    ...(zone === undefined ? [] : [zone]),
    addresses.join(' '),
    podCidrs.join(' ') || 'none',
    state === 'up' ? agentText : 'the node ended',
    ...(containerd ? [`${containerd.state}${restartsOf(containerd)}`] : []),
  ];
}

const restartsOf = ({ restarts, lastEnd = 'an unknown end' }: ProcessStatus): string =>
  restarts === 0 ? '' : `, ${restarts} restarts, the last after ${lastEnd}`;
