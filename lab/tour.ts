/** A guided tour of a lab: what a newcomer should see in ten lines, each of them measured and none of them staged. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { execa } from 'execa';
import type { AgentStatus } from '../agent/agent-status.ts';
import { table } from '../agent/commands/table.ts';
import { SETTINGS } from '../agent/config.ts';
import { familyOf } from '../agent/model/ip.ts';
import { ROUTE_PROTOCOL } from '../agent/model/kernel-names.ts';
import type { LabControl, LabNodeStatus, LabStatus } from './control.ts';
import { bridgeName } from './fabric.ts';
import { LabError } from './lab-error.ts';
import { inNode } from './node.ts';
import { matrixOf, type PingEnd, pingAll, pingEnds } from './ping.ts';
import { printHeading, printLines } from './print.ts';
import { showService } from './tour-service.ts';
import { until } from './until.ts';
import { TULLE } from './up.ts';

const PODS_PER_NODE = ['a', 'b'];
/** For each thing that the tour waits for. */
const DEADLINE_MS = 15_000;
/** Unless the lab was started with another (`-- --vxlan-port`): then no packet is seen. */
const VXLAN_PORT = SETTINGS['vxlan.port'].default;

/** The lab must be up. Throws LabError when something that it shows does not happen. */
export async function tour(control: LabControl): Promise<void> {
  await showNetwork(await control.status());
  await showPods(control);
  const status = await control.status();
  await showPings(status);
  await showPacket(status);
  await showRepair(status);
  await showService(control);
  await showAgent(status);
  showWaysOn(status);
}

/** What a node really uses, in its agent's words: the lab may have been started with other options than the tour. */
async function showNetwork({ nodes: [node] }: LabStatus): Promise<void> {
  if (!node) return;
  const { backend, podLink, underlay } = JSON.parse(await runIn(node, [TULLE, 'status', '--json'])) as AgentStatus;
  const tunnel = underlay?.tunnel ? `tunnel over ${underlay.tunnel.family} from ${underlay.tunnel.local}` : 'no tunnel';
  printHeading(`The network that the agent of ${node.name} gives its pods`);
  printLines([`backend ${backend} (${tunnel}), pod link ${podLink}, MTU ${underlay?.mtuBytes ?? 'unknown'}`]);
}

async function showPods(control: LabControl): Promise<void> {
  const { nodes, pods } = await control.status();
  const runtime = nodes.some(({ containerd }) => containerd) ? 'by its containerd' : 'as containerd would';
  printHeading(`Pods, attached through the CNI executable of their node ${runtime}`);
  for (const { name: node } of nodes) {
    for (const suffix of PODS_PER_NODE) {
      const name = `pod-${node.replace('node-', '')}${suffix}`;
      if (!pods.some((pod) => pod.namespace === 'default' && pod.name === name))
        await control.runPod({ namespace: 'default', name, node });
    }
  }
  const rows = (await control.status()).pods.map(({ name, node, addresses, addMs }) => [
    name,
    node,
    addresses.join('  '),
    `${addMs.toFixed(0)} ms`,
  ]);
  printLines(table(rows));
}

async function showPings(status: LabStatus): Promise<void> {
  printHeading(`Ping between all of them: round trips in ms, ${status.families.join(' / ')}`);
  const ends = pingEnds(status);
  const results = await pingAll(ends, { count: 1, families: status.families, nodes: false }, deadline());
  printLines(table(matrixOf(ends, results)));
  const lost = results.filter(({ ok }) => !ok);
  if (lost.length === 0) return;
  throw failed('reach every pod from every other', 'all pings answered', `${lost.length} of ${results.length} lost`);
}

/** One echo request, seen from the bridge between the nodes: in a tunnel, or plain with the pods' own addresses. */
async function showPacket(status: LabStatus): Promise<void> {
  const [from, to] = podsOnTwoNodes(status);
  const [family] = status.families;
  const [source, destination] = [from, to].map((end) => end?.addresses.find((ip) => familyOf(ip) === family));
  if (!from || !to || !source || !destination) return;
  const { segment } = nodeNamed(status, from.node);
  printHeading(`That ping on the wire between ${from.node} and ${to.node} (tcpdump on ${bridgeName(segment)})`);
  const inFabric = ['nsenter', '--target', `${status.supervisorPid}`, '--net', '--'];
  // A tunnel's packets have the nodes' addresses, so only one of the two can be what is seen.
  const filter = `udp port ${VXLAN_PORT} or (host ${source} and host ${destination})`;
  const [file = '', ...args] = [
    ...inFabric,
    'tcpdump',
    '-l',
    '-n',
    '-t',
    '-T',
    'vxlan',
    '-i',
    bridgeName(segment),
    '-c',
    '1',
    filter,
  ];
  const capture = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  try {
    await lineWith(capture.stderr, 'listening on');
    const packet = printed(capture.stdout);
    await pingAll([from, to], { count: 1, families: status.families.slice(0, 1), nodes: false }, deadline());
    printLines((await packet).map((line) => line.trimEnd()));
  } finally {
    capture.kill('SIGKILL');
  }
}

/** Deletes a route that the agent made and reads from the kernel's own notices when it is back. */
async function showRepair(status: LabStatus): Promise<void> {
  const [node, peer] = status.nodes;
  const cidr = peer?.podCidrs[0];
  if (!node || !cidr) return;
  printHeading(`A route deleted by hand in ${node.name}`);
  const family = cidr.includes(':') ? '-6' : '-4';
  const monitor = await routeMonitor(node, family);
  try {
    const repaired = repairOf(monitor, cidr);
    await runIn(node, ['ip', family, 'route', 'del', cidr, 'proto', `${ROUTE_PROTOCOL}`]);
    const { lines, durationMs } = await repaired;
    printLines([...lines, `repaired after ${durationMs.toFixed(1)} ms`]);
  } finally {
    monitor.kill('SIGKILL');
  }
}

async function showAgent(status: LabStatus): Promise<void> {
  const [node] = status.nodes;
  if (!node) return;
  printHeading(`tulle status, asked in ${node.name}`);
  printLines((await runIn(node, [TULLE, 'status'])).split('\n'));
  printHeading('tulle diff: what the agent would change now');
  const changes = await runIn(node, [TULLE, 'diff']);
  printLines([changes === '' ? '(nothing: the kernel is as it should be)' : changes]);
}

function showWaysOn({ nodes, pods }: LabStatus): void {
  const pod = pods[0]?.name ?? 'POD';
  const node = nodes[0]?.name ?? 'NODE';
  printHeading('The lab stays up. Go on with');
  const ways = [
    ['./tulle lab status', 'nodes, agents, pods'],
    [`./tulle lab pod run web --node ${node} -- sleep 3600`, 'another pod'],
    [`./tulle lab exec ${pod} -- ip address`, 'look around in a pod'],
    [`./tulle lab kill-agent ${node}; sudo ./tulle lab ping`, 'traffic does not need the agent'],
    [`./tulle lab logs ${node} -f`, 'what the agent does'],
    [`./tulle lab exec-node ${node} -- $PWD/tulle service show shop`, 'the Service as the kernel has it'],
    ['./tulle lab down', 'end it; nothing is left'],
  ];
  printLines(table(ways.map((row) => [`  sudo ${row[0]}`, row[1] as string])));
}

const deadline = (): AbortSignal => AbortSignal.timeout(DEADLINE_MS);

function podsOnTwoNodes(status: LabStatus): readonly PingEnd[] {
  const pods = pingEnds(status).filter(({ kind }) => kind === 'pod');
  const [from] = pods;
  return from ? [from, ...pods.filter(({ node }) => node !== from.node)] : [];
}

function nodeNamed({ nodes }: LabStatus, name: string): LabNodeStatus {
  const node = nodes.find((candidate) => candidate.name === name);
  if (node) return node;
  throw failed('find a node', name, 'no such node');
}

async function runIn(node: LabNodeStatus, argv: readonly string[]): Promise<string> {
  const [file, ...args] = inNode(node, argv);
  const { stdout, stderr, exitCode } = await execa(file, args, { reject: false, timeout: DEADLINE_MS });
  if (exitCode === 0) return stdout;
  throw failed(`run ${argv.join(' ')} in ${node.name}`, 'exit code 0', `${exitCode}: ${stdout}${stderr}`);
}

/** `ip monitor route` in a node, listening when this resolves. */
async function routeMonitor(node: LabNodeStatus, family: string): Promise<ChildProcess> {
  const args = ['--target', `${node.pid}`, '--net', '--', 'ip', family, '-ts', '-o', 'monitor', 'route'];
  const monitor = spawn('nsenter', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const { pid } = monitor;
  // nsenter becomes ip in the same process; its netlink socket names that process as port and the groups it hears.
  await until(async () => hearsGroups(await readFile(`/proc/${pid}/net/netlink`, 'utf8'), pid as number), {
    describe: 'ip monitor to listen',
    deadlineMs: DEADLINE_MS,
  });
  return monitor;
}

/** Columns of /proc/net/netlink: sk, Eth, Pid, Groups, ... */
const hearsGroups = (sockets: string, pid: number): boolean =>
  sockets.split('\n').some((line) => {
    const [, protocol, port, groups] = line.trim().split(/\s+/);
    return protocol === '0' && port === String(pid) && Number.parseInt(groups ?? '0', 16) !== 0;
  });

interface Repair {
  readonly lines: readonly string[];
  readonly durationMs: number;
}

/** Lines look like `[2026-01-31T12:00:00.123456] Deleted 10.84.1.0/24 via ...`. */
async function repairOf({ stdout }: ChildProcess, cidr: string): Promise<Repair> {
  const lines: string[] = [];
  let deletedMs: number | undefined;
  for await (const line of createInterface({ input: stdout as Readable, signal: deadline() })) {
    const [, time = '', text = ''] = /^\[(\S+?)\]\s*(.*)$/.exec(line) ?? [];
    if (!text.includes(`${cidr} `)) continue;
    lines.push(line.trimEnd());
    if (text.startsWith('Deleted')) deletedMs = microsecondTime(time);
    else if (deletedMs !== undefined) return { lines, durationMs: microsecondTime(time) - deletedMs };
  }
  throw failed(
    'see the route repaired',
    `${cidr} again within ${DEADLINE_MS / 1000} s`,
    lines.join('; ') || 'no notice',
  );
}

/** Milliseconds since the epoch, with the fraction that Date drops. */
const microsecondTime = (iso: string): number =>
  Date.parse(`${iso.slice(0, 19)}Z`) + Number(`0${iso.slice(19)}`) * 1000;

/** Throws LabError when the stream ends or the deadline passes before. */
async function lineWith(stream: Readable, wanted: string): Promise<void> {
  const lines: string[] = [];
  for await (const line of createInterface({ input: stream, signal: deadline() })) {
    if (line.includes(wanted)) return;
    lines.push(line);
  }
  throw failed('start a capture', `"${wanted}"`, lines.join('; ') || 'nothing');
}

async function printed(stream: Readable): Promise<readonly string[]> {
  const lines: string[] = [];
  for await (const line of createInterface({ input: stream, signal: deadline() })) lines.push(line);
  return lines;
}

const failed = (operation: string, expected: string, received: string): LabError =>
  new LabError({ operation, expected, received });
