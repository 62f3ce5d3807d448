/** The tour's Service: three backends, who of them answers how often, and what a connection costs beside a direct one. */
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import type { AgentStatus } from '../agent/agent-status.ts';
import { askAgent } from '../agent/commands/ask-agent.ts';
import { table } from '../agent/commands/table.ts';
import { type Family, familyOf, type IpAddress } from '../agent/model/ip.ts';
import { ipPortText } from '../agent/model/ip-port.ts';
import type { ServiceRow } from '../agent/service-report.ts';
import { apiPath } from './api-writer.ts';
import type { ProbeResult } from './connect-probe.ts';
import type { LabControl, LabNodeStatus } from './control.ts';
import { LabError } from './lab-error.ts';
import { inPod, pathOnHost } from './node.ts';
import type { PodStatus } from './pods.ts';
import { printHeading, printLines } from './print.ts';
import { serviceObject } from './services.ts';
import { until } from './until.ts';

const PROBE = fileURLToPath(new URL('connect-probe.ts', import.meta.url));
const NAMESPACE = 'default';
const NAME = 'shop';
const BACKENDS = 3;
const PORT = 80;
const TARGET_PORT = 8080;
/** Of each family, to the Service and directly. */
const CONNECTIONS = 300;
const DEADLINE_MS = 15_000;

/** Throws LabError when a connection fails. Where another proxy serves Services there is nothing to show. */
export async function showService(control: LabControl): Promise<void> {
  const { nodes, families } = await control.status();
  const backends = await runBackends(control, nodes);
  const client = (await control.status()).pods.find(({ name }) => !name.startsWith(NAME));
  const node = nodes.find(({ name }) => name === client?.node);
  if (!client || !node) return;
  const { services } = (await askAgent(runDirOf(node), 'status')) as AgentStatus;
  if (!services) return;
  const addresses = await serviceAddresses(control, node, families);
  printHeading(`A Service (${services.mode}): ${CONNECTIONS} connections to each address of it from ${client.name}`);
  const rows: string[][] = [];
  for (const ip of addresses) rows.push(resultRow(ip, backends, await probe(node, client, ip, backends)));
  const names = backends.map(({ name, node: at }) => `${name} on ${at}`);
  printLines(table([['address', ...names, 'connect, median', 'direct'], ...rows]));
}

async function runBackends(control: LabControl, nodes: readonly LabNodeStatus[]): Promise<readonly PodStatus[]> {
  const { pods } = await control.status();
  const run = async (i: number): Promise<PodStatus> => {
    const name = `${NAME}-${i + 1}`;
    const known = pods.find((pod) => pod.namespace === NAMESPACE && pod.name === name);
    const node = nodes[i % nodes.length]?.name ?? '';
    const pod = { namespace: NAMESPACE, name, node, labels: { app: NAME }, serve: [{ port: TARGET_PORT }] };
    return known ?? control.runPod(pod);
  };
  return Promise.all(Array.from({ length: BACKENDS }, (_, i) => run(i)));
}

/** Those of the Service, which is made unless it is there, once the node serves all backends. */
async function serviceAddresses(
  control: LabControl,
  node: LabNodeStatus,
  families: readonly Family[],
): Promise<readonly IpAddress[]> {
  if (!(await rowOf(node))) {
    const protocol = 'TCP';
    const request = { namespace: NAMESPACE, name: NAME, type: 'ClusterIP', port: PORT, protocol };
    const object = serviceObject({
      ...request,
      targetPort: `${TARGET_PORT}`,
      selector: { app: NAME },
      families: families.length > 1 ? 'dual' : 'single',
    });
    await control.callApi({ method: 'POST', path: apiPath.services(NAMESPACE), object });
  }
  let row: ServiceRow | undefined;
  const isServed = async () => {
    row = await rowOf(node);
    return row?.endpoints.ready === BACKENDS && row.problems.length === 0;
  };
  await until(isServed, { describe: `${node.name} to serve ${NAME}`, deadlineMs: DEADLINE_MS, intervalMs: 20 });
  return (row?.addresses ?? []) as readonly IpAddress[];
}

async function rowOf(node: LabNodeStatus): Promise<ServiceRow | undefined> {
  const rows = (await askAgent(runDirOf(node), 'services')) as readonly ServiceRow[];
  return rows.find(({ service }) => service === `${NAMESPACE}/${NAME}`);
}

/** Of every agent of a lab. */
const runDirOf = (node: LabNodeStatus): string => pathOnHost(node, '/run/tulle');

async function probe(
  node: LabNodeStatus,
  client: PodStatus,
  ip: IpAddress,
  backends: readonly PodStatus[],
): Promise<ProbeResult> {
  const direct = backends.flatMap(({ addresses }) =>
    addresses.filter((each) => familyOf(each) === familyOf(ip)).map((each) => ({ ip: each, port: TARGET_PORT })),
  );
  const places = [{ ip, port: PORT }, ...direct].map(ipPortText);
  const [file, ...args] = inPod(node, client.netns, [process.execPath, PROBE, `${CONNECTIONS}`, ...places]);
  const { exitCode, stdout, stderr } = await execa(file, args, { reject: false, timeout: DEADLINE_MS });
  if (exitCode === 0) return JSON.parse(stdout) as ProbeResult;
  throw new LabError({
    operation: `connect to ${ipPortText({ ip, port: PORT })}`,
    expected: `${CONNECTIONS} answers`,
    received: stderr || `exit code ${exitCode}`,
  });
}

const resultRow = (
  ip: IpAddress,
  backends: readonly PodStatus[],
  { answers, serviceMs, directMs }: ProbeResult,
): string[] => [
  ipPortText({ ip, port: PORT }),
  ...backends.map(({ name }) => `${answers[name] ?? 0}`),
  `${serviceMs.toFixed(2)} ms`,
  `${directMs.toFixed(2)} ms`,
];
