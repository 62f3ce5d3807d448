/** `tulle status`: what is held in the kernel, and what is dirty, blocked or contested, and why. */
import type { AgentStatus } from '../agent-status.ts';
import type { Feature } from '../kernel/features.ts';
import type { SocketServicesStatus } from '../socket-services.ts';
import { askAgent } from './ask-agent.ts';
import { table } from './table.ts';
import { tunnelLines, tunnelTroubles } from './tunnel-lines.ts';

type Watch = AgentStatus['cluster']['resources'][number];

/** Exit code 0 when the node is ready for pods, 1 otherwise. */
export async function status({ runDir, json }: { runDir: string; json: boolean }): Promise<number> {
  const answer = (await askAgent(runDir, 'status')) as AgentStatus;
  process.stdout.write(json ? `${JSON.stringify(answer, undefined, 2)}\n` : describeStatus(answer));
  return answer.readiness.ready ? 0 : 1;
}

export function describeStatus(status: AgentStatus): string {
  const { tunnel } = status;
  const sections = [
    nodeLines(status),
    clusterLines(status),
    tunnel ? tunnelLines(tunnel) : [],
    kernelLines(status),
    troubleLines(status),
  ];
  return `${sections
    .filter((lines) => lines.length > 0)
    .map((lines) => lines.join('\n'))
    .join('\n\n')}\n`;
}

function nodeLines({
  version,
  nodeName,
  readiness,
  obstacles,
  backend,
  podLink,
  underlay,
  host,
  attachments,
  addresses,
}: AgentStatus): readonly string[] {
  const networks = underlay?.podNetworks.map(({ cidr }) => cidr).join(', ') || 'none';
  const mtu = underlay ? `${underlay.mtuBytes}, of links ${underlay.linkMtuBytes}` : 'unknown';
  const tunnel = underlay?.tunnel ? ` over ${underlay.tunnel.family} from ${underlay.tunnel.local}` : '';
  return [
    `node      ${nodeName}, tulle ${version}, Linux ${host.kernel}, iptables ${host.iptables}`,
    `ready     ${readiness.ready ? 'yes' : `no: ${obstacles.join('\n          ')}`}`,
    `pods      ${attachments.length} attached, podCIDR ${networks}, MTU ${mtu}`,
    ...addresses.map(
      ({ family, used, resting, free }) =>
        `addresses ${family}: ${used} used, ${resting} resting, ${approximate(free)} free`,
    ),
    `backend   ${backend}${tunnel}, pod link ${podLink}`,
    ...host.features.flatMap(lackLines),
  ];
}

/** Only what is not there: all of it is the rule. */
function lackLines({ name, state, evidence, consequence }: Feature): readonly string[] {
  if (state === 'supported') return [];
  return [`kernel    ${state === 'missing' ? 'lacks' : 'cannot be asked for'} ${name} (${evidence}): ${consequence}`];
}

/** Nobody counts the addresses of an IPv6 podCIDR. */
const approximate = (count: number): string => (count < 1e6 ? String(count) : 'over a million');

function clusterLines({ cluster, kernel, services }: AgentStatus): readonly string[] {
  const served = services
    ? [`services  ${services.mode} (${services.reason})${services.sockets ? `, ${usageText(services.sockets)}` : ''}`]
    : [];
  const behind = kernel.behindMs > 0 ? [`behind    ${seconds(kernel.behindMs)}: not yet in the kernel`] : [];
  return [...cluster.resources.map(watchLine), ...served, ...behind];
}

const usageText = ({ usage }: SocketServicesStatus): string =>
  Object.entries(usage)
    .map(([map, { used, max }]) => `${used} of ${max} ${map}`)
    .join(', ');

function watchLine({ resource, objects, synced, connected, error, lastEventMs, relists, expired }: Watch): string {
  const parts = [
    `${objects} objects`,
    synced ? 'synced' : 'not synced yet',
    connected ? 'connected' : `not connected${error ? `: ${error}` : ''}`,
    ...(lastEventMs === undefined ? [] : [`last heard ${seconds(Date.now() - lastEventMs)} ago`]),
    ...(relists > 0 ? [`listed again ${relists} times (${expired} for 410 Gone)`] : []),
  ];
  return `watch     ${resource}: ${parts.join(', ')}`;
}

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

function kernelLines({ kernel }: AgentStatus): readonly string[] {
  const rows = Object.entries(kernel.kinds).map(([kind, row]) => [
    kind,
    ...[row.wanted, row.known, row.dirty, row.failing, row.blocked, row.changes, row.drift].map(String),
  ]);
  return table([['kind', 'wanted', 'held', 'dirty', 'failing', 'blocked', 'changes', 'repaired'], ...rows]);
}

function watchTroubles({ resource, problems, problemCount }: Watch): readonly string[] {
  const more = problemCount - problems.length;
  const lines = problems.map((problem) => `problem   ${problem}`);
  return more > 0 ? [...lines, `problem   and ${more} more of ${resource}, which the log has`] : lines;
}

function troubleLines({ kernel, cluster, tunnel, problems }: AgentStatus): readonly string[] {
  return [
    ...(tunnel ? tunnelTroubles(tunnel) : []),
    ...problems.map((problem) => `problem   ${problem}`),
    ...kernel.problems.map(({ problem }) => `problem   ${problem}`),
    ...cluster.resources.flatMap(watchTroubles),
    ...kernel.failing.map(({ key, error, attempts }) => `failing   ${key}: ${error} (${attempts} attempts)`),
    ...kernel.blocked.map(({ key, by }) => `blocked   ${key} by ${by}`),
  ];
}
