/** What load balancers are told of a node: asked from the fabric, from other nodes and from the node itself, in both families. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import test, { type ExecutionContext } from 'ava';
import type { IpAddress } from '../../agent/model/ip.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { inNode } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from '../support/agent-status.ts';
import { run, TIMEOUT_MS, useLab } from '../support/lab.ts';

const lab = useLab({ nodes: 2, agentArgs: ['--services-mode', 'auto'] });
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };
const PORT = 32_001;
const OTHER_PORT = 32_002;
const NODE_PORT = 10_256;

interface Answer {
  /** 0: nobody listens. */
  readonly status: number;
  readonly head: string;
  readonly body: string;
}

/** `inside`: what enters the place of the client. */
async function get(inside: readonly string[], ip: string, port: number, path = '/healthz'): Promise<Answer> {
  const host = ip.includes(':') ? `[${ip}]` : ip;
  const argv = [...inside, 'curl', '-sSgi', '--max-time', '10', `http://${host}:${port}${path}`];
  const { stdout } = await run(argv);
  const [head = '', body = ''] = stdout.split('\r\n\r\n');
  return { status: Number(head.split(' ')[1] ?? 0), head, body: body.trim() };
}

const node = (name = 'node-1') => lab().node(name);
const addresses = (): readonly IpAddress[] => node().addresses;
/** From a host beside the nodes, as a load balancer. */
const fabric = async () => ['nsenter', '--target', `${(await lab().control.status()).supervisorPid}`, '--net', '--'];

/** At each address of node-1. */
async function untilStatus(port: number, expected: readonly number[], path?: string): Promise<void> {
  let last: readonly Answer[] = [];
  const outside = await fabric();
  const isSo = async () => {
    last = await Promise.all(addresses().map((ip) => get(outside, ip, port, path)));
    return last.map(({ status }) => status).join() === expected.join();
  };
  await until(isSo, { describe: `${expected.join()} of port ${port}`, ...WAIT }).catch((cause) => {
    const got = last.map(({ status, body }) => `${status} ${body}`).join(', ');
    throw new Error(`port ${port} of node-1 still answers ${got}, not ${expected.join()}`, { cause });
  });
}

const problems = async (): Promise<readonly string[]> =>
  (await agentStatus(node()))?.problems.filter((problem) => problem.includes('health check')) ?? [];

const spec = (port: number, families = ['IPv4', 'IPv6']) => ({
  type: 'LoadBalancer',
  externalTrafficPolicy: 'Local',
  healthCheckNodePort: port,
  ipFamilies: families,
  ipFamilyPolicy: families.length > 1 ? 'RequireDualStack' : 'SingleStack',
  selector: { app: 'web' },
  ports: [{ port: 80, targetPort: 8080 }],
});

const createService = (name: string, port: number, families?: string[]) =>
  lab().control.callApi({
    method: 'POST',
    path: apiPath.services('default'),
    object: { metadata: { name, namespace: 'default' }, spec: spec(port, families) },
  });
const removeService = (name: string) =>
  lab().control.callApi({ method: 'DELETE', path: apiPath.service('default', name) });

const runWeb = (name: string, at: string) =>
  lab().control.runPod({ namespace: 'default', name, node: at, labels: { app: 'web' }, serve: [{ port: 8080 }] });

test.serial('a Service with policy Local: 200 while it has a ready endpoint on the node, with how many', async (t) => {
  await runWeb('web-2', 'node-2');
  await createService('web', PORT);
  await untilStatus(PORT, [503, 503]);
  await runWeb('web-1', 'node-1');
  await untilStatus(PORT, [200, 200]);
  const places = [await fabric(), inNode(node(), []), inNode(node('node-2'), [])];
  for (const inside of places)
    for (const ip of addresses()) {
      const { head, body } = await get(inside, ip, PORT);
      t.deepEqual(JSON.parse(body), {
        service: { namespace: 'default', name: 'web' },
        localEndpoints: 1,
        serviceProxyHealthy: true,
      });
      t.regex(head, /\r\nx-load-balancing-endpoint-weight: 1\r\n/i);
      t.regex(head, /\r\ncontent-type: application\/json\r\n/i);
    }
  // Not on loopback, nor at the node's address in the pod network.
  t.is((await get(inNode(node(), []), '127.0.0.1', PORT)).status, 0);
  await lab().control.terminatePod('default', 'web-1', 600);
  await untilStatus(PORT, [503, 503]);
  await lab().control.removePod('default', 'web-1');
  await runWeb('web-3', 'node-1');
  await untilStatus(PORT, [200, 200]);
});

test.serial('a Service of one family is served in that family, and another port is followed', async (t) => {
  await removeService('web');
  await createService('web', OTHER_PORT, ['IPv6']);
  await untilStatus(OTHER_PORT, [0, 200]);
  await untilStatus(PORT, [0, 0]);
  await removeService('web');
  await untilStatus(OTHER_PORT, [0, 0]);
  t.pass();
});

test.serial('a port that is taken is a problem of the node and is had as soon as it is free', async (t) => {
  const other = occupy(t, PORT);
  await once(other.stdout, 'data', { signal: AbortSignal.timeout(TIMEOUT_MS) });
  await createService('web', PORT);
  await until(async () => (await problems()).length === 2, { describe: 'a problem an address', ...WAIT });
  const [problem = ''] = await problems();
  t.regex(
    problem,
    /^cannot serve the health check of Service default\/web on \S+:32001: .*got EADDRINUSE; stop what has/,
  );
  other.stdin.end();
  await untilStatus(PORT, [200, 200]);
  t.deepEqual(await problems(), []);
});

test.serial(
  'the node: well while Services are in the kernel, and away for load balancers when it is leaving',
  async (t) => {
    await untilStatus(NODE_PORT, [200, 200]);
    const patch = (taints: readonly object[]) =>
      lab().control.callApi({ method: 'PATCH', path: '/api/v1/nodes/node-1', object: { spec: { taints } } });
    await patch([{ key: 'ToBeDeletedByClusterAutoscaler', effect: 'NoSchedule' }]);
    await untilStatus(NODE_PORT, [503, 503]);
    const { body } = await get(await fabric(), addresses()[0] as string, NODE_PORT);
    t.like(JSON.parse(body), { serviceProxyHealthy: true, nodeEligible: false });
    await untilStatus(NODE_PORT, [200, 200], '/livez');
    await untilStatus(PORT, [200, 200]);
    await patch([]);
    await untilStatus(NODE_PORT, [200, 200]);
  },
);

test.serial('servers end with the agent and are back with the next one', async (t) => {
  await lab().control.stopAgent('node-1');
  await untilStatus(PORT, [0, 0]);
  await lab().control.startAgent('node-1');
  await untilStatus(PORT, [200, 200]);
  await untilStatus(NODE_PORT, [200, 200]);
  t.deepEqual(await problems(), []);
});

/** Listens at the port of node-1, in both families, until its input ends. */
function occupy(t: ExecutionContext, port: number) {
  const listen = `require('net').createServer().listen(${port}, '::', () => console.log('listens'))`;
  const script = `${listen}; process.stdin.resume().on('end', () => process.exit())`;
  const [file, ...args] = inNode(node(), [process.execPath, '-e', script]);
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.stdin.end());
  return child;
}
