/** What the lab has for Services: pods that answer with their name, and what its API and its command line tell of them. */
import test, { type ExecutionContext } from 'ava';
import { execa } from 'execa';
import { apiPath } from '../../lab/api-writer.ts';
import { inPod } from '../../lab/node.ts';
import type { PodStatus, ServedPort } from '../../lab/pods.ts';
import type { ServiceRow } from '../../lab/services.ts';
import { until } from '../../lab/until.ts';
import { TULLE } from '../../lab/up.ts';
import { type Output, output, TIMEOUT_MS, useLab } from '../support/lab.ts';

const lab = useLab({ nodes: 2, zones: 2 });
const PORTS: readonly ServedPort[] = [{ name: 'http', port: 8080 }, { port: 9090 }];
const pods: PodStatus[] = [];

async function labCommand(...args: readonly string[]): Promise<Output> {
  const env = { TULLE_LAB_DIR: (await lab().control.status()).dir };
  const { exitCode, stdout, stderr } = await execa(TULLE, ['lab', ...args], {
    reject: false,
    env,
    timeout: TIMEOUT_MS,
  });
  return { exitCode, stdout, stderr };
}

/** Shell lines in the first pod. */
const asked = (line: string): Promise<string> => {
  const [{ node, netns }] = pods as [PodStatus];
  return output(inPod(lab().node(node), netns, ['bash', '-ec', line]));
};

async function rowOf(service: string): Promise<ServiceRow | undefined> {
  const { stdout } = await labCommand('svc', 'ls', '--json');
  return (JSON.parse(stdout) as ServiceRow[]).find((row) => row.service === service);
}

/** The controller acts after the answer to whoever made the change; slices are in the order of their names, by chance. */
async function untilEndpoints(t: ExecutionContext, endpoints: readonly string[]): Promise<void> {
  let last: readonly string[] = [];
  const expected = endpoints.toSorted();
  const isSo = async () => {
    last = ((await rowOf('default/web'))?.endpoints ?? []).toSorted();
    return last.join() === expected.join();
  };
  await until(isSo, { describe: 'the endpoints', deadlineMs: TIMEOUT_MS, intervalMs: 50 }).catch(() => undefined);
  t.deepEqual(last, expected);
}

test.serial('pods serve: over TCP, UDP and HTTP, over both families, they tell their name and who asked', async (t) => {
  for (const [name, node] of [
    ['web-1', 'node-1'],
    ['web-2', 'node-2'],
  ] as const) {
    const labels = { app: 'web' };
    pods.push(await lab().control.runPod({ namespace: 'default', name, node, labels, serve: PORTS }));
  }
  const [from, to] = pods as [PodStatus, PodStatus];
  for (const [i, address] of to.addresses.entries()) {
    const source = from.addresses[i] as string;
    const line = new RegExp(`^web-2 ${source} \\d+$`);
    for (const { port } of PORTS) {
      t.regex(await asked(`exec 3<>/dev/tcp/${address}/${port}; echo hello >&3; head -n 1 <&3`), line);
      t.regex(await asked(`exec 3<>/dev/udp/${address}/${port}; echo hello >&3; timeout 10 head -n 1 <&3`), line);
    }
    const host = address.includes(':') ? `[${address}]` : address;
    t.regex(await asked(`curl -sSg --max-time 10 http://${host}:8080/`), line);
  }
});

test.serial('a pod that cannot serve is an error that says why, and is gone', async (t) => {
  const serve = [{ port: 8080 }, { port: 8080 }];
  const refused = lab().control.runPod({ namespace: 'default', name: 'twice', node: 'node-1', serve });
  t.regex((await t.throwsAsync(refused))?.message ?? '', /cannot serve in pod default\/twice: .*EADDRINUSE/s);
  t.false((await lab().control.status()).pods.some(({ name }) => name === 'twice'));
  const both = await labCommand('pod', 'run', 'x', '--node', 'node-1', '--serve', '80', '--', 'true');
  t.regex(both.stderr, /cannot run pod x: expected --serve or a command, got both/);
});

test.serial('lab svc: a Service with its addresses and endpoints follows its pods', async (t) => {
  const [one, two] = pods.map(({ addresses: [v4, v6] }) => [`${v4}:8080`, `[${v6}]:8080`]) as [string[], string[]];
  const options = ['--port', '80', '--target-port', 'http', '--families', 'dual', '--type', 'LoadBalancer'];
  const exposed = await labCommand('svc', 'expose', 'web', ...options, '--distribution', 'PreferSameNode');
  t.regex(exposed.stdout, /^default\/web: 10\.96\.\d+\.\d+:80\/TCP, \[fd96::\w+\]:80\/TCP, node:3\d{4}\/TCP$/);
  t.is((await labCommand('svc', 'lb-ip', 'web', '192.0.2.7')).exitCode, 0);
  t.true((await rowOf('default/web'))?.frontends.includes('192.0.2.7:80/TCP'));
  await untilEndpoints(t, [one[0], two[0], one[1], two[1]] as string[]);

  t.is((await labCommand('pod', 'unready', 'web-1')).exitCode, 0);
  t.is((await labCommand('pod', 'terminate', 'web-2')).exitCode, 0);
  const states = (names: readonly (string | undefined)[], state: string) => names.map((name) => `${name} (${state})`);
  const [none, going] = [states(one, 'not ready'), states(two, 'terminating')];
  await untilEndpoints(t, [none[0], going[0], none[1], going[1]] as string[]);
  t.regex(
    (await labCommand('svc', 'ls')).stdout,
    /default\/kubernetes:https +ClusterIP +10\.96\.0\.1:443\/TCP +172\.30\.0\.1:6443/,
  );
  t.regex((await labCommand('status')).stdout, /node-2 +0 +zone-2[\s\S]*web-1 .*Running, not ready/);

  t.is((await labCommand('pod', 'ready', 'web-1')).exitCode, 0);
  t.is((await labCommand('pod', 'rm', 'web-2')).exitCode, 0);
  await untilEndpoints(t, one);
  const path = `${apiPath.allEndpointSlices}?labelSelector=kubernetes.io/service-name%3Dweb`;
  const list = (await lab().control.callApi({ method: 'GET', path })) as unknown as { items: object[] };
  t.like(list.items[0], {
    endpoints: [{ zone: 'zone-1', hints: { forZones: [{ name: 'zone-1' }], forNodes: [{ name: 'node-1' }] } }],
  });
  t.is((await labCommand('svc', 'rm', 'web')).exitCode, 0);
  t.is(await rowOf('default/web'), undefined);
});

test.serial('the certificate of the API server is good for the Service kubernetes', async (t) => {
  const { apiServer, supervisorPid } = await lab().control.status();
  const port = new URL(apiServer.url).port;
  for (const name of ['kubernetes.default.svc', '10.96.0.1', '[fd96::1]']) {
    const argv = ['curl', '-sSg', '--max-time', '10', '--cacert', `${(await lab().control.status()).dir}/pki/ca.crt`];
    const connect = ['--connect-to', `::127.0.0.1:${port}`, `https://${name}/version`];
    const answer = await output(['nsenter', '--target', `${supervisorPid}`, '--net', '--', ...argv, ...connect]);
    t.is(JSON.parse(answer).major, '1', name);
  }
});
