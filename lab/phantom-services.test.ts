import test from 'ava';
import { type Cidr, containsIp, familyOf } from '../agent/model/ip.ts';
import { cidr, ip } from '../test/support/cluster-values.ts';
import { startTestApi, TOKEN } from '../test/support/lab-api.ts';
import { KINDS } from './api-server/kinds.ts';
import { arrayAt, valueAt } from './api-server/objects.ts';
import { ApiWriter } from './api-writer.ts';
import type { ApiRequest } from './control.ts';
import {
  loadPhantomServices,
  movePhantomEndpoint,
  type PhantomServices,
  phantomServiceName,
} from './phantom-services.ts';

const SERVICES = '/api/v1/services';
const serviceCidrs: readonly Cidr[] = [cidr('10.96.0.0/16'), cidr('fd96::/108')];

test('phantoms are Services with an address and endpoints that no other has', async (t) => {
  const { server, call } = await startTestApi(t, { serviceCidrs });
  const request: PhantomServices = { count: 12, endpoints: 120, external: 4, families: ['ipv4', 'ipv6'] };
  await loadPhantomServices(server.store, request);
  const { items } = (await call('GET', SERVICES)).json;
  t.deepEqual(
    items.slice(0, 6).map(({ spec }: { spec: { type: string } }) => spec.type),
    ['NodePort', 'LoadBalancer', 'NodePort', 'LoadBalancer', 'ClusterIP', 'ClusterIP'],
  );
  t.is(items[1].status.loadBalancer.ingress.length, 2);
  t.is(new Set(items.flatMap(({ spec }: { spec: { clusterIPs: string[] } }) => spec.clusterIPs)).size, 24);
  const slices = server.store.list(KINDS.endpointSlice).objects.map(({ object }) => object);
  t.is(slices.length, 12 * 2 * 2);
  t.true(slices.every((slice) => arrayAt(slice, 'endpoints').length <= 100));
  const addresses = slices
    .flatMap((slice) => arrayAt(slice, 'endpoints'))
    .map((each) => String(arrayAt(each, 'addresses')[0]));
  t.is(new Set(addresses).size, 12 * 120 * 2);
  const outside = addresses
    .map(ip)
    .filter((each) => familyOf(each) === 'ipv4' && !containsIp(cidr('10.128.0.0/9'), each));
  t.deepEqual(outside, []);
  await loadPhantomServices(server.store, { ...request, first: 12, count: 1 });
  t.is((await call('GET', SERVICES)).json.items.length, 13);
});

test('movePhantomEndpoint replaces one endpoint by an address that is new', async (t) => {
  const { server, ca } = await startTestApi(t, { serviceCidrs });
  const request: PhantomServices = { count: 3, endpoints: 2, families: ['ipv4'] };
  await loadPhantomServices(server.store, request);
  const api = new ApiWriter({ url: server.url, ca: ca.cert, token: TOKEN });
  t.teardown(() => api.close());
  const signal = AbortSignal.timeout(20_000);
  const callApi = ({ method, path, object }: ApiRequest) => api.send(method, path, object, signal);
  const addressesOf = () =>
    server.store
      .list(KINDS.endpointSlice)
      .objects.flatMap(({ object }) => arrayAt(object, 'endpoints').map((each) => valueAt(each, 'addresses')));
  const before = addressesOf();
  await movePhantomEndpoint({ callApi }, request, 1, 1);
  const after = addressesOf();
  t.deepEqual(
    after.map((each, i) => JSON.stringify(each) === JSON.stringify(before[i])),
    [true, true, false, true, true, true],
  );
  await movePhantomEndpoint({ callApi }, request, 1, 0);
  t.deepEqual(addressesOf(), before);
  t.is(phantomServiceName(1), 'phantom-00001');
});
