import test from 'ava';
import { fragment, route, sysctl } from '../test/support/fragments.ts';
import { quiet, startRig } from '../test/support/reconcile.ts';
import { until } from '../test/support/until.ts';
import { serviceObstacles } from './service-obstacles.ts';

test('what a Service and all that it requires want has to be in the kernel, and to be writable', async (t) => {
  const rig = await startRig(t);
  const of = (...ids: string[]) => serviceObstacles(rig, ids);
  t.deepEqual(of('service a'), [], 'nothing is wanted');
  rig.put(
    fragment('stem', [sysctl(2)], { shared: true }),
    fragment('base', [sysctl(1)], { shared: true, requires: ['stem'] }),
    fragment('service a', [route(1)], { requires: ['base'] }),
  );
  t.regex(of('service a').join(), /^route 10\.0\.1\.0\/24 metric 0 is not in the kernel yet$/);
  await quiet(rig.reconciler);
  t.deepEqual(of('service a'), []);

  // What is being exchanged is no obstacle, what cannot be is.
  rig.sysctls.failNext({ key: sysctl(2).key }, 1_000);
  rig.put(fragment('stem', [sysctl(2, 'b')], { shared: true }));
  t.deepEqual(of('service a'), []);
  await until(() => of('service a').length > 0, 'an error that lasts');
  t.notRegex(of('service a').join(), /not in the kernel yet/);
  t.deepEqual(of('service b'), [], 'another one has nothing to do with it');
});
