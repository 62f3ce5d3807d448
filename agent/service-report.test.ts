import test from 'ava';
import { fragment, route } from '../test/support/fragments.ts';
import { bound, quiet, startRig } from '../test/support/reconcile.ts';
import { clusterOf, service, slice } from '../test/support/service-values.ts';
import { backendSet } from './model/services.ts';
import type { ServiceView } from './plan/services/services.ts';
import { serviceAnswers } from './service-report.ts';

const NO_QUERY = new URLSearchParams();

test('where there is nothing to tell, the answer says why', async (t) => {
  const books = await startRig(t);
  const cluster = () => clusterOf([service('web')], []);
  const ask = (mode: string, plan: { readonly look: () => undefined } | undefined, query = NO_QUERY) => {
    const { services, service: one } = serviceAnswers({ mode, cluster, plan: () => plan, books });
    return [services, one].map((answer) => {
      try {
        return answer(bound(), query);
      } catch (error) {
        return (error as Error).message;
      }
    });
  };
  for (const text of ask('off', undefined)) t.regex(String(text), /services\.mode is off; set it to auto/);
  for (const text of ask('ebpf', undefined)) t.regex(String(text), /^no Service is planned yet; tulle status says/);
  const query = new URLSearchParams({ name: 'other/web' });
  t.regex(String(ask('ebpf', { look: () => undefined }, query)[1]), /other\/web: .*; did you mean default\/web\?$/);
});

test('what the kernel holds of a Service, of what it shares, and of what an older one has', async (t) => {
  const rig = await startRig(t);
  rig.put(
    fragment('base', [route(1)], { shared: true }),
    fragment('service default/old', [route(2, 'old')], { rank: '1', requires: ['base'] }),
    fragment('service default/web', [route(2), route(3), route(4), route(5)], { rank: '2', requires: ['base'] }),
  );
  await quiet(rig.reconciler);
  rig.routes.tamper(route(3).key, undefined, { notice: false });
  rig.routes.tamper(route(4).key, route(4, 'x').value, { notice: false });
  const web = service('web', { clusterIps: '10.96.0.7 fd96::7', ports: 'http:80=30080' });
  const slices = [slice('web', '10.84.0.5@ 10.84.1.5~'), slice('web', 'fd84::5@', { family: 'ipv6', name: 'web-6' })];
  const sets = [backendSet([{ ip: web.clusterIps[0] as never, port: 1 }])];
  const view: ServiceView = { service: web, slices, frontends: [], sets, problems: [] };
  const { services, service: one } = serviceAnswers({
    mode: 'iptables',
    cluster: () => clusterOf([web], slices),
    plan: () => ({ look: () => view }),
    books: rig,
  });
  const { items } = await one(bound(), NO_QUERY);
  t.deepEqual(
    items.map(({ key, state, shared, owner = '' }) => `${key.split(' ')[1]} ${state} ${shared} ${owner}`.trim()),
    [
      '10.0.2.0/24 contested false cause service default/old',
      '10.0.3.0/24 missing false',
      '10.0.4.0/24 differs false',
      '10.0.5.0/24 held false',
      '10.0.1.0/24 held true',
    ],
  );
  t.deepEqual(await services(bound()), [
    {
      service: 'default/web',
      addresses: web.clusterIps,
      ports: ['80:30080/TCP'],
      endpoints: { ready: 1, draining: 1, local: 1 },
      problems: ['cause service default/old has a place that it wants, too'],
    },
  ]);
});
