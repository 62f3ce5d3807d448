/** The agent's view of Services against the lab's API server and its controllers: what both must agree on. */
import { join } from 'node:path';
import test from 'ava';
import { pino } from 'pino';
import { ApiClient } from '../agent/cluster/api-client.ts';
import { ClusterWatch } from '../agent/cluster/cluster.ts';
import { kubeconfig } from '../agent/cluster/kubeconfig.ts';
import type { EndpointSlice } from '../agent/model/services.ts';
import { cidr, ip } from '../test/support/cluster-values.ts';
import { startTestApi, TOKEN } from '../test/support/lab-api.ts';
import { until } from '../test/support/until.ts';
import { writeKubeconfig } from './pki.ts';

const SERVICES = '/api/v1/namespaces/default/services';
const PODS = '/api/v1/namespaces/default/pods';
const MERGE = { headers: { 'content-type': 'application/merge-patch+json' } };

const describe = ({ endpoints }: EndpointSlice): string =>
  endpoints
    .map(({ ip: address, state, local, zones, nodeHint }) =>
      [address, state, local ? 'local' : 'remote', ...(zones ?? []), nodeHint ?? ''].join(' ').trim(),
    )
    .join(', ');

test('the agent sees Services with what was allocated to them, and endpoints with state, place and hints', async (t) => {
  const options = {
    serviceCidrs: [cidr('10.96.0.0/16'), cidr('fd96::/108')],
    advertised: { ip: ip('172.30.0.1'), port: 6443 },
  };
  const { server, call, ca, directory } = await startTestApi(t, options);
  const path = join(directory, 'kubeconfig');
  await writeKubeconfig({ path, server: server.url, ca: ca.cert, user: { token: TOKEN } });
  const client = new ApiClient({ credentials: kubeconfig({ path }) });
  const watch = new ClusterWatch({ client, nodeName: 'n1', services: true, log: pino({ level: 'silent' }) });
  const stop = new AbortController();
  t.teardown(async () => {
    stop.abort();
    await watch.stopped();
    client.close();
  });
  watch.start(stop.signal);
  await watch.synced;

  for (const [name, zone] of [
    ['n1', 'a'],
    ['n2', 'b'],
  ] as const)
    await call('POST', '/api/v1/nodes', { metadata: { name, labels: { 'topology.kubernetes.io/zone': zone } } });
  const report = (name: string, address: string, ready: boolean) => {
    const conditions = [{ type: 'Ready', status: ready ? 'True' : 'False' }];
    return call(
      'PATCH',
      `${PODS}/${name}/status`,
      { status: { phase: 'Running', podIPs: [{ ip: address }], conditions } },
      MERGE,
    );
  };
  for (const [name, nodeName, address] of [
    ['p1', 'n1', '10.84.0.2'],
    ['p2', 'n2', '10.84.1.2'],
  ] as const) {
    await call('POST', PODS, { metadata: { name, labels: { app: 'web' } }, spec: { nodeName } });
    await report(name, address, true);
  }
  const spec = {
    type: 'LoadBalancer',
    externalTrafficPolicy: 'Local',
    ipFamilyPolicy: 'RequireDualStack',
    trafficDistribution: 'PreferSameNode',
    sessionAffinity: 'ClientIP',
    selector: { app: 'web' },
    ports: [{ port: 80, targetPort: 8080 }],
  };
  await call('POST', SERVICES, { metadata: { name: 'web' }, spec });
  await call('POST', SERVICES, {
    metadata: { name: 'headless' },
    spec: { clusterIP: 'None', selector: { app: 'web' } },
  });
  await call(
    'PATCH',
    `${SERVICES}/web/status`,
    { status: { loadBalancer: { ingress: [{ ip: '192.0.2.7' }] } } },
    MERGE,
  );

  const slices = () => [...watch.snapshot().endpointSlices.values()];
  const webSlice = (family: string) =>
    slices().find((each) => each.service === 'default/web' && each.family === family);
  const shown = () => describe(webSlice('ipv4') ?? ({ endpoints: [] as EndpointSlice['endpoints'] } as EndpointSlice));
  const isShown = (text: string) => until(() => shown() === text, `endpoints ${text}`);
  await isShown('10.84.0.2 ready local a here, 10.84.1.2 ready remote b elsewhere');
  await until(() => watch.snapshot().services.get('default/web')?.loadBalancerIps.length === 1, 'the status arrives');
  const service = watch.snapshot().services.get('default/web');
  t.like(service, { externalTrafficPolicy: 'Local', affinitySeconds: 10_800, loadBalancerIps: [ip('192.0.2.7')] });
  t.is(service?.clusterIps.length, 2);
  t.truthy(service?.ports[0]?.nodePort);
  t.truthy(service?.healthCheckNodePort);
  t.deepEqual(webSlice('ipv6')?.endpoints, [], 'the slice that stands for none');
  t.deepEqual([...watch.snapshot().services.keys()].sort(), ['default/kubernetes', 'default/web']);
  t.false(slices().some((each) => each.service === 'default/headless'));
  t.is(slices().find((each) => each.service === 'default/kubernetes')?.endpoints[0]?.ip, ip('172.30.0.1'));

  await report('p1', '10.84.0.2', false);
  await isShown('10.84.1.2 ready remote b elsewhere');
  await call('DELETE', `${PODS}/p2?gracePeriodSeconds=30`);
  await isShown('10.84.1.2 draining remote');
  await call('DELETE', `${SERVICES}/web`);
  await until(() => !slices().some((each) => each.service === 'default/web'), 'the slices go');
  t.deepEqual(
    watch.status().resources.flatMap(({ problems }) => problems),
    [],
  );
});
