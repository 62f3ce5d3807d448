/** The tests of what Services mean, for whatever serves them. */
import { readFile } from 'node:fs/promises';
import test from 'ava';
import { families, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { until } from '../../lab/until.ts';
import { TIMEOUT_MS } from './lab.ts';
import { TCP_AND_UDP } from './service-api.ts';
import { CLIENTS, type Client, type ServiceLab, type ServicesMode, useServiceLab } from './service-lab.ts';
import { SCENARIOS } from './service-scenarios.ts';
import { askAll, expose } from './service-table.ts';
import type { Answer, Call } from './socket-caller.ts';

/** Call once, at the top of a file. */
export function serviceTruth(mode: ServicesMode): void {
  const lab = useServiceLab(mode);

  test.serial(`${mode}: the first pod of a node reaches the API server by the Service kubernetes`, async (t) => {
    const log = lab().pods.get('idle-1')?.logFile ?? '';
    const answer = async () => /\}\s*$/.test(await readFile(log, 'utf8'));
    await until(answer, { describe: `an answer in ${log}`, deadlineMs: TIMEOUT_MS, intervalMs: 50 });
    t.is(JSON.parse(await readFile(log, 'utf8')).major, '1');
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
    const ports = Array.from({ length: STICKY_PORTS }, (_, i) => ({
      name: `p${i}`,
      protocol: 'TCP',
      port: 1000 + i,
      targetPort: 8080,
    }));
    const targets = ports.map(({ name, protocol, targetPort }) => ({ name, protocol, port: targetPort }));
    const places: (readonly [string, IpAddress])[] = [];
    for (const timeoutSeconds of [SHORT_SECONDS, 10_800]) {
      const name = `sticky-${timeoutSeconds}`;
      const sessionAffinityConfig = { clientIP: { timeoutSeconds } };
      const made = await api.createService(name, { ports, sessionAffinity: 'ClientIP', sessionAffinityConfig });
      for (const { family } of families) await api.createSlice({ of: name, family, endpoints: '1 2', ports: targets });
      places.push(...made.clusterIps.map((ip) => [name, ip] as const));
    }
    await written();
    const calls = places.flatMap(([, ip]) => ports.map(({ port }): Call => ({ how: 'tcp', ip, port })));
    const clients: readonly Client[] = ['pod-1', 'host-3', 'out-1'];
    const ask = (client: Client) => serversOf(caller(client), calls);
    const first = await Promise.all(clients.map(ask));
    const again = await Promise.all(clients.map(ask));
    await new Promise((resolve) => setTimeout(resolve, 2000 * SHORT_SECONDS));
    const late = await Promise.all(clients.map(ask));
    for (const [i, client] of clients.entries())
      for (const [j, [name, ip]] of places.entries()) {
        const part = (servers: readonly (readonly string[])[]) =>
          servers[i]?.slice(j * STICKY_PORTS, (j + 1) * STICKY_PORTS);
        const title = `${client} to ${name} ${ip}`;
        t.deepEqual(new Set(part(first)), new Set(['web-1', 'web-2']), `${title}: both backends are used`);
        if (name !== `sticky-${SHORT_SECONDS}`)
          t.deepEqual([part(again), part(late)], [part(first), part(first)], title);
        else t.notDeepEqual(part(late), part(first), `${title}: forgotten`);
      }
  });

  test.serial(
    `${mode}: unknown ports of a cluster address are refused, and loopback serves no node port`,
    async (t) => {
      const { api, written, caller } = lab();
      const { clusterIps, ports } = await api.createService('edges', { type: 'NodePort', ports: TCP_AND_UDP });
      for (const { family } of families) await api.createSlice({ of: 'edges', family, endpoints: '1 2' });
      await written();
      const [nodePort = 0] = ports.map((port) => port.nodePort);
      const unknown = clusterIps.flatMap((ip) =>
        [1, 79, 443, 8080, 65_535].flatMap((port): Call[] => [
          { how: 'tcp', ip, port },
          { how: 'udp-connected', ip, port },
        ]),
      );
      const loopback = ['127.0.0.1', '::1', '127.1.2.3'].map((ip): Call => ({ how: 'tcp', ip, port: nodePort }));
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

/** Sentences of a failure; a thousand would hide what they have in common. */
const WRONG_MAX = 40;
/** As many coins are thrown: that all fall alike is no chance. */
const STICKY_PORTS = 24;
const SHORT_SECONDS = 1;

async function serversOf(caller: ReturnType<ServiceLab['caller']>, calls: readonly Call[]): Promise<readonly string[]> {
  return (await caller.callAll(calls)).map(({ from, error }) => from?.split(' ')[0] ?? error ?? '');
}

/** From everywhere; as a controller of the API comes first, there is no telling when. */
async function untilAnswered({ caller }: ServiceLab, ips: readonly IpAddress[], expected: string): Promise<void> {
  const calls = ips.map((ip): Call => ({ how: 'tcp', ip, port: 80, deadlineMs: 2000 }));
  for (const client of CLIENTS) {
    let last: readonly string[] = [];
    const isSo = async () => {
      last = await serversOf(caller(client), calls);
      return last.every((each) => each === expected);
    };
    await until(isSo, { describe: `${expected} for ${client}`, deadlineMs: TIMEOUT_MS, intervalMs: 50 }).catch(
      (cause) => {
        throw new Error(`${client} gets ${last} of ${ips}`, { cause });
      },
    );
  }
}
