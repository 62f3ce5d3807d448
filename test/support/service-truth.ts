/** The tests of what Services mean, for whatever serves them. */
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import test from 'ava';
import { families, type IpAddress } from '../../agent/model/ip.ts';
import { until } from '../../lab/until.ts';
import type { Caller } from './caller.ts';
import { TIMEOUT_MS, tulle } from './lab.ts';
import { type ServiceApi, TCP_AND_UDP } from './service-api.ts';
import {
  BALANCERS,
  CLIENTS,
  type Client,
  GROUP,
  nodeOf,
  type ServiceLab,
  type ServicesMode,
  serversAt,
  useServiceLab,
} from './service-lab.ts';
import { SCENARIOS } from './service-scenarios.ts';
import { serviceSctp } from './service-sctp.ts';
import { serviceShapes } from './service-shapes.ts';
import { askAll, expose } from './service-table.ts';
import type { Answer, Call } from './socket-caller.ts';

/** Sentences of a failure; a thousand would hide what they have in common. */
const WRONG_MAX = 40;
/** Services that are asked twice by each client, over both families: that all of them fall alike is no chance. */
const COINS = 12;
const SHORT_SECONDS = 1;
const LONG_SECONDS = 10_800;
/** Where a cluster address leads somewhere in every mode. */
const INSIDE = ['pod-1', 'self-1', 'pod-3', 'host-1', 'host-3'] as const;

/** Call once, at the top of a file. */
export function serviceTruth(mode: ServicesMode): void {
  const lab = useServiceLab(mode);

  test.serial(`${mode}: the first pod of a node reaches the API server by the Service kubernetes`, async (t) => {
    const log = lab().pods.get('idle-1')?.logFile ?? '';
    const isOver = async () => (await readFile(log, 'utf8')) !== '';
    await until(isOver, { describe: `an answer in ${log}`, deadlineMs: TIMEOUT_MS, intervalMs: 50 });
    t.regex(await readFile(log, 'utf8'), /"major": *"1"/);
  });

  test.serial(`${mode}: every client gets what it should at every address of a Service`, async (t) => {
    t.timeout(120_000);
    const services = await expose(lab(), SCENARIOS);
    const { questions, connections, wrong } = await askAll(lab(), mode, services);
    t.log(`${questions} cells, ${connections} connections`);
    t.deepEqual(wrong.slice(0, WRONG_MAX), [], `${wrong.length} differ`);
  });

  test.serial(`${mode}: a client with affinity stays with its backend until the time is over`, async (t) => {
    const { api, written, caller } = lab();
    const [short, long] = [await createSticky(api, SHORT_SECONDS, COINS), await createSticky(api, LONG_SECONDS, 3)];
    await written();
    const calls = [...short, ...long].map((ip): Call => ({ how: 'tcp', ip, port: 80 }));
    const askEach = () => Promise.all(INSIDE.map((client) => serversOf(caller(client), calls)));
    const [first, again] = [await askEach(), await askEach()];
    // The kernel counts the time of affinity, in both modes, and its clock cannot be turned.
    await delay(2000 * SHORT_SECONDS);
    const late = await askEach();
    for (const [i, client] of INSIDE.entries()) {
      t.deepEqual([...new Set(first[i])].sort(), ['web-1', 'web-2'], `${client}: each is used`);
      const kept = [first, again, late].map((answers) => answers[i]?.slice(short.length));
      t.deepEqual(kept, [kept[0], kept[0], kept[0]], `${client} stays`);
      t.notDeepEqual(late[i]?.slice(0, short.length), first[i]?.slice(0, short.length), `${client} is forgotten`);
    }
  });

  test.serial(
    `${mode}: unknown ports of a cluster address are refused, and loopback serves no node port`,
    async (t) => {
      const { api, written, caller } = lab();
      const { clusterIps, ports } = await api.createService('edges', { type: 'NodePort', ports: TCP_AND_UDP });
      for (const { family } of families) await api.createSlice({ of: 'edges', family, endpoints: '1 2' });
      await written();
      const unknown = clusterIps.flatMap((ip) =>
        [1, 79, 443, 8080, 65_535].flatMap((port): Call[] => [
          { how: 'tcp', ip, port },
          { how: 'udp-connected', ip, port },
        ]),
      );
      const port = ports[0]?.nodePort as number;
      const loopback = ['127.0.0.1', '::1', '127.1.2.3'].map((ip): Call => ({ how: 'tcp', ip, port }));
      for (const client of CLIENTS) {
        const isHost = client.startsWith('host');
        const calls = [...unknown, ...(isHost ? loopback : [])];
        const answers = await caller(client).callAll(calls);
        const isRefused = ({ error }: Answer, i: number) =>
          error === 'ECONNREFUSED' ||
          // What the host's own rules reject is told to a datagram's sender before the refusal comes.
          (error === 'EPERM' && isHost && mode === 'iptables' && calls[i]?.how === 'udp-connected');
        const wrong = answers.flatMap((answer, i) => (isRefused(answer, i) ? [] : [{ call: calls[i], answer }]));
        t.deepEqual(wrong, [], client);
      }
    },
  );

  test.serial(
    `${mode}: a load balancer without node ports is served at its address, and at a port asked for`,
    async (t) => {
      const { api, written, lab: testLab } = lab();
      const [number, nodePort] = [200, 32_500];
      const ingress = families.map(({ family }) => ({ ip: `${BALANCERS[family]}${number}` }));
      const spec = { type: 'LoadBalancer', allocateLoadBalancerNodePorts: false, ports: TCP_AND_UDP };
      const { clusterIps, ports } = await api.createService('portless', spec, ingress);
      t.deepEqual(
        ports.map((port) => port.nodePort),
        [undefined, undefined],
      );
      for (const { family } of families) await api.createSlice({ of: 'portless', family, endpoints: '1 2' });
      await written();
      const balancers = ingress.map(({ ip }) => ip as IpAddress);
      const atNode = (client: Client) =>
        serversAt(lab(), client, testLab.node(nodeOf(client)).addresses, nodePort, 2000);
      for (const client of CLIENTS) {
        t.deepEqual(await serversAt(lab(), client, balancers), ['web-1', 'web-2'], client);
        t.deepEqual(await atNode(client), ['ECONNREFUSED'], client);
      }
      const shown = async () => (await tulle(testLab.node('node-1'), 'service', 'show', 'default/portless')).stdout;
      t.notRegex(await shown(), /node-port/);
      await api.patchService('portless', { spec: { ports: TCP_AND_UDP.map((port) => ({ ...port, nodePort })) } });
      await written();
      for (const client of CLIENTS) t.deepEqual(await atNode(client), ['web-1', 'web-2'], client);
      t.regex(await shown(), /node-port/);
      for (const client of INSIDE) t.deepEqual(await serversAt(lab(), client, clusterIps), ['web-1', 'web-2'], client);
    },
  );

  serviceShapes(mode, lab);
  serviceSctp(mode, lab);

  test.serial(
    `${mode}: Services that prefer what is near follow readiness, zone by zone and node by node`,
    async (t) => {
      const { api, lab: testLab } = lab();
      const create = async (name: string, trafficDistribution: string) =>
        (await api.createService(name, { selector: GROUP, ports: TCP_AND_UDP, trafficDistribution })).clusterIps;
      const zoned = [...(await create('close', 'PreferClose')), ...(await create('same-zone', 'PreferSameZone'))];
      const noded = await create('same-node', 'PreferSameNode');
      // node-1 and node-3 are in one zone. By client: of Services that prefer the zone, and of the one that prefers the node.
      const expectAll = async (zone: readonly string[], node: Readonly<Record<'1' | '3', readonly string[]>>) => {
        for (const client of INSIDE) {
          await untilServers(lab(), client, zoned, zone);
          await untilServers(lab(), client, noded, node[client.at(-1) as '1' | '3']);
        }
      };
      await expectAll(['web-1', 'web-3'], { 1: ['web-1'], 3: ['web-3'] });
      await testLab.control.setPodReady('default', 'web-1', false);
      await expectAll(['web-3'], { 1: ['web-3'], 3: ['web-3'] });
      await testLab.control.setPodReady('default', 'web-3', false);
      await expectAll(['web-2'], { 1: ['web-2'], 3: ['web-2'] });
      for (const name of ['web-1', 'web-3']) await testLab.control.setPodReady('default', name, true);
      await expectAll(['web-1', 'web-3'], { 1: ['web-1'], 3: ['web-3'] });
      const prefers = async (trafficDistribution: string | null) =>
        api.patchService('same-node', { spec: { trafficDistribution } });
      await prefers('PreferClose');
      await expectAll(['web-1', 'web-3'], { 1: ['web-1', 'web-3'], 3: ['web-1', 'web-3'] });
      await prefers(null);
      const all = ['web-1', 'web-2', 'web-3'];
      await expectAll(['web-1', 'web-3'], { 1: all, 3: all });
      t.pass();
    },
  );

  test.serial(
    `${mode}: Services by selector follow readiness, and publish what is not ready if they say so`,
    async (t) => {
      const { api, written, lab: testLab } = lab();
      const spec = { selector: { app: 'web-3' }, ports: TCP_AND_UDP };
      const usual = await api.createService('usual', spec);
      const early = await api.createService('early', { ...spec, publishNotReadyAddresses: true });
      const headless = await api.createService('headless', { ...spec, clusterIP: 'None' });
      t.deepEqual(headless.clusterIps, ['None' as IpAddress]);
      await written();
      await untilAnswered(lab(), usual.clusterIps, 'web-3');
      await testLab.control.setPodReady('default', 'web-3', false);
      await untilAnswered(lab(), usual.clusterIps, 'ECONNREFUSED');
      await untilAnswered(lab(), early.clusterIps, 'web-3');
      await testLab.control.setPodReady('default', 'web-3', true);
      await untilAnswered(lab(), usual.clusterIps, 'web-3');
      // It runs on, and nothing else is there.
      await testLab.control.terminatePod('default', 'web-3', 600);
      await written();
      await untilAnswered(lab(), usual.clusterIps, 'web-3');
    },
  );
}

/** Addresses of that many Services; both backends are theirs. */
async function createSticky(api: ServiceApi, timeoutSeconds: number, count: number): Promise<readonly IpAddress[]> {
  const affinity = { sessionAffinity: 'ClientIP', sessionAffinityConfig: { clientIP: { timeoutSeconds } } };
  const ips: IpAddress[] = [];
  for (let i = 0; i < count; i++) {
    const name = `sticky-${timeoutSeconds}-${i}`;
    ips.push(...(await api.createService(name, { ports: TCP_AND_UDP, ...affinity })).clusterIps);
    for (const { family } of families) await api.createSlice({ of: name, family, endpoints: '1 2' });
  }
  return ips;
}

async function serversOf(caller: Caller, calls: readonly Call[]): Promise<readonly string[]> {
  return (await caller.callAll(calls)).map(({ from, error }) => from?.split(' ')[0] ?? error ?? '');
}

async function untilAnswered(lab: ServiceLab, ips: readonly IpAddress[], expected: string): Promise<void> {
  for (const client of INSIDE) await untilServers(lab, client, ips, [expected]);
}

/** A controller of the API comes first, and there is no telling when. */
async function untilServers(
  lab: ServiceLab,
  client: Client,
  ips: readonly IpAddress[],
  expected: readonly string[],
): Promise<void> {
  let last: readonly string[] = [];
  const isSo = async () => {
    last = await serversAt(lab, client, ips, 80, 2000);
    return last.join() === expected.join();
  };
  const wait = { describe: `${expected} for ${client}`, deadlineMs: TIMEOUT_MS, intervalMs: 50 };
  await until(isSo, wait).catch((cause: unknown) => {
    throw new Error(`${client} gets ${last} of ${ips}`, { cause });
  });
}
