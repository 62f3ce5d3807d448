import test from 'ava';
import { cidr, ip } from '../../test/support/cluster-values.ts';
import { startTestApi } from '../../test/support/lab-api.ts';
import { until } from '../../test/support/until.ts';
import { KINDS } from './kinds.ts';

const REF = { namespace: 'default', name: 'kubernetes' };
const SERVICE = '/api/v1/namespaces/default/services/kubernetes';
const SLICE = '/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes';

test('the Service kubernetes has the first address and the real one of the server behind it, and comes back', async (t) => {
  const options = {
    serviceCidrs: [cidr('fd96::/108'), cidr('10.96.0.0/16')],
    advertised: { ip: ip('fd30::1'), port: 6443 },
  };
  const { server, call } = await startTestApi(t, options);
  const isThere = () =>
    server.store.find(KINDS.service, REF) !== undefined && server.store.find(KINDS.endpointSlice, REF) !== undefined;
  await until(isThere, 'the Service is there');
  for (const path of [SERVICE, SLICE]) t.is((await call('DELETE', path)).code, 200);
  await until(isThere, 'the Service is there again');
  t.like((await call('GET', SERVICE)).json.spec, {
    clusterIPs: { 0: 'fd96::1', length: 1 },
    ports: { 0: { name: 'https', port: 443, targetPort: 6443 } },
  });
  t.like((await call('GET', SLICE)).json, {
    addressType: 'IPv6',
    endpoints: { 0: { addresses: { 0: 'fd30::1' } } },
    ports: { 0: { name: 'https', port: 6443, protocol: 'TCP' } },
  });
});

test('without an address to lead to, or to have, there is no Service kubernetes', async (t) => {
  const advertised = { ip: ip('172.30.0.1'), port: 6443 };
  for (const options of [{ advertised }, { serviceCidrs: [cidr('10.96.0.0/16')] }]) {
    const { call } = await startTestApi(t, options);
    t.is((await call('GET', SERVICE)).code, 404);
    t.is((await call('POST', '/api/v1/namespaces', { metadata: { name: 'later' } })).code, 201);
    t.is((await call('GET', SERVICE)).code, 404);
  }
});
