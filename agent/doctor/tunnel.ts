/** Whether the peers answer through the tunnel, and whether checksums survive it: proved by packets. */
import { readFileSync } from 'node:fs';
import type { ProbeAnswer } from '../kernel/probe.ts';
import type { TunnelPlace } from '../plan/backend.ts';
import { BACKENDS } from '../plan/backends.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, several, verdict } from './finding.ts';
import { suspects } from './firewall.ts';
import { describeAnswer, type PeerReach, type PodReach, type Reach } from './reach.ts';

export const tunnel: Check = {
  name: 'tunnel',
  async run(facts) {
    const reach = await facts.reach();
    if (!reach) return { skipped: 'the peers cannot be known without the Nodes' };
    const peers = reach.peers.filter(({ pods }) => pods.length > 0);
    const unknown = reach.unasked > 0 ? `, ${reach.unasked} not asked` : '';
    const seen =
      peers.length === 0 ? 'no peers with a tunnel' : `${peers.length} peers answer in the pod network${unknown}`;
    const findings = [secret(facts), ...(await unreachable(reach, facts)), corrupt(peers, facts)];
    return verdict(seen, findings);
  },
};

const isAnswered = ({ small }: Pick<PodReach, 'small'>): boolean => small.kind === 'answered';

async function unreachable({ peers }: Reach, facts: Facts): Promise<readonly Finding[]> {
  const tunnelled = peers.filter(({ pods }) => pods.length > 0);
  const silent = tunnelled.filter(({ pods }) => !pods.every(isAnswered));
  if (silent.length === 0) return [];
  const isAlone = silent.length === tunnelled.length;
  const blame = isAlone ? await suspects(facts) : [];
  const groups = Map.groupBy(silent, (peer) => `${isHostReached(peer)} ${peer.port && describeAnswer(peer.port)}`);
  return [...groups.values()].map((group) => unreachableFinding(group, isAlone, blame, facts));
}

/** What the agent itself says of all peers alike. */
function secret(facts: Facts): Finding | undefined {
  const problems = runningAgent(facts)?.tunnel?.problems ?? [];
  if (problems.length === 0) return undefined;
  return {
    severity: 'error',
    summary: 'the tunnel cannot be sealed as the settings say',
    evidence: problems,
    cause: 'The file of the secret is missing, too short or unreadable for the agent (tun.secretFile).',
    remedy: 'mount the same Secret on all nodes, of at least 32 random bytes; the agent reads it again by itself',
  };
}

const isHostReached = ({ underlay }: PeerReach): boolean => underlay.some(isAnswered);

function unreachableFinding(
  group: readonly PeerReach[],
  isAlone: boolean,
  blame: readonly string[],
  facts: Facts,
): Finding {
  const [first] = group as [PeerReach];
  const names = several(group.map(({ name }) => name));
  const place = placeOf(facts);
  const { port } = place;
  return {
    severity: isAlone ? 'error' : 'warning',
    summary: isHostReached(first)
      ? `the tunnel to ${names} does not carry packets, although the ${group.length === 1 ? 'host answers' : 'hosts answer'}`
      : `${names} cannot be reached`,
    evidence: [
      ...group.slice(0, 5).flatMap((peer) => [...describePeer(peer, port), ...agentOn(peer, facts)]),
      ...blame,
    ],
    cause: causeOf(first, isAlone, place),
    remedy: isHostReached(first)
      ? `allow UDP port ${port} between all nodes, in both directions (host firewalls, security groups, network ACLs); look at ${names} with tulle doctor too`
      : `see whether ${names} is up and its agent runs; look for a firewall or a missing route between the nodes`,
  };
}

/** Peers without a tunnel are not looked at here. */
const placeOf = ({ config }: Facts): TunnelPlace => BACKENDS[config.backend].tunnel?.(config) as TunnelPlace;

/** What the agent says of a peer, where it carries the tunnel itself. */
function agentOn({ name }: PeerReach, facts: Facts): readonly string[] {
  const problem = runningAgent(facts)?.tunnel?.peers.find(({ node }) => node === name)?.problem;
  return problem === undefined ? [] : [`${name}, the agent says: ${problem}`];
}

const describePeer = (
  { name, underlay, pods, port: knock, otherPorts = new Map() }: PeerReach,
  port: number,
): readonly string[] => [
  ...underlay.map(({ ip, small }) => `${name} ${ip}, echo on the underlay: ${describeAnswer(small)}`),
  ...pods.map(({ ip, small }) => `${name} ${ip}, echo in the pod network: ${describeAnswer(small)}`),
  ...(knock ? [`${name}, UDP port ${port}: ${describeKnock(knock)}`] : []),
  ...[...otherPorts].map(([backend, answer]) => `${name}, UDP port of backend ${backend}: ${describeKnock(answer)}`),
];

const describeKnock = (answer: ProbeAnswer): string =>
  answer.kind === 'answered' ? 'closed' : answer.kind === 'silent' ? 'open, or dropped' : describeAnswer(answer);

function causeOf(peer: PeerReach, isAlone: boolean, { port, portSetting }: TunnelPlace): string {
  const [other] = [...(peer.otherPorts ?? [])].filter(([, { kind }]) => kind === 'silent');
  if (other)
    return `The peer uses backend ${other[0]}, it seems: that one's port is not closed, as UDP port ${port} is. All nodes need the same backend.`;
  if (peer.port?.kind === 'answered')
    return `Nothing has UDP port ${port} on the peer: its agent does not run or is not ready, or it has another ${portSetting} or backend.`;
  if (peer.port?.kind === 'unreachable') return `A firewall at ${peer.port.by} rejects UDP port ${port}.`;
  if (!isHostReached(peer))
    return 'The peer is down, or the underlay between the nodes is broken or does not pass ICMP.';
  return isAlone
    ? `No peer answers: something on this node, or in the whole network, drops UDP port ${port} without a word.`
    : `Other peers answer: something on the peer or on the way to it drops UDP port ${port} without a word, or its ${portSetting === 'vxlan.port' ? 'vxlan.vni' : 'tun.encryption or secret'} is another.`;
}

/** Without a checksum the same datagram arrives: it is the checksum that is wrong, not the way. */
function corrupt(peers: readonly PeerReach[], { config }: Facts): Finding | undefined {
  const found = peers.flatMap(({ name, pods }) =>
    pods
      .filter(({ udp, udpUnchecked }) => udp?.kind === 'silent' && udpUnchecked?.kind === 'answered')
      .map(({ ip, fullBytes }) => ({ name, ip, fullBytes })),
  );
  if (found.length === 0) return undefined;
  const isSetOff = config.backend !== 'vxlan' || config['vxlan.txChecksumOffload'] === 'off';
  return {
    severity: 'error',
    summary: `TCP and UDP to ${several([...new Set(found.map(({ name }) => name))])} arrive with wrong checksums`,
    evidence: [
      ...found
        .slice(0, 5)
        .flatMap(({ name, ip, fullBytes }) => [
          `ICMP, ${fullBytes} bytes to ${name} ${ip}: answered`,
          `UDP with a checksum, ${fullBytes} bytes: no answer`,
          `UDP without a checksum, ${fullBytes} bytes: answered`,
        ]),
      ...badChecksums(),
    ],
    cause:
      'The network card, its driver, the hypervisor or a kernel before 5.7 computes the checksums of packets in the tunnel wrongly (transmit checksum offload).',
    remedy: `${isSetOff ? '' : 'set vxlan.txChecksumOffload to off on all nodes; '}on the card: ethtool -K <uplink> tx off, or only tx-udp_tnl-segmentation and tx-udp_tnl-csum-segmentation; look at the peer and at what is in between, too`,
  };
}

/** Datagrams that came to this node with a wrong checksum (proc_net_snmp, column InCsumErrors). */
function badChecksums(): readonly string[] {
  const rows = readFileSync('/proc/thread-self/net/snmp', 'latin1')
    .split('\n')
    .filter((line) => line.startsWith('Udp:'));
  const [names = [], values = []] = rows.map((row) => row.split(' '));
  const at = names.indexOf('InCsumErrors');
  return at < 0 ? [] : [`received here with wrong checksums since boot: ${values[at]} UDP datagrams`];
}
