import test from 'ava';
import { requireCapabilities } from './capabilities.ts';
import { KernelError } from './errors.ts';

test('every missing capability is named with what it is for', (t) => {
  const error = t.throws(() => requireCapabilities('Name:\tnode\nCapEff:\t0000000000001000\n'), {
    instanceOf: KernelError,
  });
  t.is(error?.code, 'EPERM');
  t.regex(error?.message ?? '', /lacks CAP_NET_RAW \(.*\), CAP_SYS_ADMIN \(.*namespaces\): run it as root/);
  t.throws(() => requireCapabilities(''), { instanceOf: KernelError });
  t.notThrows(() => requireCapabilities('CapEff:\t000001ffffffffff\n'));
});
