import test from 'ava';
import { requireCapabilities, requireDumpFilters } from './capabilities.ts';
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

test('a kernel without filters of dumps is refused, and the version that has them is named', (t) => {
  t.notThrows(() => requireDumpFilters());
  const refuse = () => {
    throw new KernelError({ code: 'ENOPROTOOPT', operation: 'set', object: 'socket option 270/12' });
  };
  const error = t.throws(() => requireDumpFilters(refuse), { instanceOf: KernelError });
  t.is(error?.code, 'ENOPROTOOPT');
  t.regex(error?.message ?? '', /expected Linux 4\.20 or newer, got \d/);
});
