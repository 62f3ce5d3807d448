/** What `tulle status` says of a tunnel that the agent itself carries. */
import type { TunDrops } from '../kernel/tun/status.ts';
import { type NodeTunnelStatus, type PeerStatus, tunnelProblems } from '../node-tunnel.ts';
import { table } from './table.ts';

/** Peers that are told of one by one: the troubled ones first, then those with the most traffic. */
const PEERS_MAX = 30;

export function tunnelLines({ path, peers, dropped }: NodeTunnelStatus): readonly string[] {
  const drops = dropText(dropped);
  const head = [
    path
      ? `tunnel    ${path.link}, UDP port ${path.port} of ${path.local}, carriage ${path.carriage}, encryption ${path.encryption}`
      : 'tunnel    not open',
    `peers     ${peers.filter(isAgreed).length} of ${peers.length} agreed${drops && `; dropped of nobody: ${drops}`}`,
  ];
  if (peers.length === 0) return head;
  const shown = peers.toSorted(byWeight).slice(0, PEERS_MAX);
  const rest = peers.length - shown.length;
  return [
    ...head,
    '',
    ...table([['peer', 'end', 'state', 'carriage', 'encryption', 'sends', 'receives', 'dropped'], ...shown.map(row)]),
    ...(rest > 0 ? [`and ${rest} more: tulle status --json`] : []),
  ];
}

/** As lines of the section that has everybody's problems. */
export function tunnelTroubles(status: NodeTunnelStatus): readonly string[] {
  const problems = tunnelProblems(status);
  const more = problems.length - PEERS_MAX;
  return [
    ...problems.slice(0, PEERS_MAX).map(({ problem }) => `problem   ${problem}`),
    ...(more > 0 ? [`problem   and ${more} more of the tunnel, which the log has`] : []),
  ];
}

const isAgreed = ({ state }: PeerStatus): boolean => state === 'agreed';

const trafficOf = ({ rates }: PeerStatus): number =>
  (rates?.sentBitsPerSecond ?? 0) + (rates?.receivedBitsPerSecond ?? 0);

const byWeight = (a: PeerStatus, b: PeerStatus): number =>
  Number(isAgreed(a)) - Number(isAgreed(b)) || trafficOf(b) - trafficOf(a) || (a.node < b.node ? -1 : 1);

const row = ({ node, end, state, sinceMs, carriage, encryption, rates, dropped }: PeerStatus): readonly string[] => [
  node,
  end,
  state === 'agreed' ? state : `${state} for ${(sinceMs / 1000).toFixed(0)} s`,
  carriage,
  encryption,
  rateText(rates?.sentBitsPerSecond),
  rateText(rates?.receivedBitsPerSecond),
  dropText(dropped),
];

const UNITS = ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s'] as const;

function rateText(bitsPerSecond: number | undefined): string {
  if (bitsPerSecond === undefined) return '-';
  const step = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(1, bitsPerSecond)) / 3));
  return `${(bitsPerSecond / 1000 ** step).toFixed(step === 0 ? 0 : 1)} ${UNITS[step]}`;
}

const dropText = (drops: TunDrops): string =>
  Object.entries(drops)
    .filter(([, count]) => count > 0)
    .map(([reason, count]) => `${reason} ${count}`)
    .join(', ');
