import test, { type ExecutionContext } from 'ava';
import { until } from '../../test/support/until.ts';
import { KernelError } from './errors.ts';
import { type HostOptions, HostWatch } from './host.ts';
import type { MonitorListener } from './netlink/monitor.ts';

/** A host without links, whose IPv6 can be switched off and whose links can be unreadable. */
async function start(t: ExecutionContext) {
  const host = { refusals: 0, ipv6: true };
  const faults: unknown[] = [];
  let listener: MonitorListener | undefined;
  const links = {
    async refresh() {
      if (host.refusals-- > 0) throw new KernelError({ code: 'ETIMEDOUT', operation: 'list', object: 'links' });
      return [];
    },
  };
  const options = {
    client: { dump: async () => [] },
    links,
    monitor: {
      subscribe: (added: MonitorListener) => {
        listener = added;
      },
    },
    sysctls: { read: () => (host.ipv6 ? '0' : '1') },
    randomFully: true,
    formerSysctl: () => undefined,
    onFault: (error: unknown) => faults.push(error),
  } as unknown as HostOptions;
  const watch = new HostWatch(options);
  const end = new AbortController();
  t.teardown(() => end.abort());
  await watch.start(end.signal);
  return { host, watch, faults, notice: () => listener?.lost('a test') };
}

test('host: a reading that fails is done again without another notice', async (t) => {
  const { host, watch, notice } = await start(t);
  t.true(watch.current.ipv6);
  host.refusals = 2;
  host.ipv6 = false;
  notice();
  await until(() => !watch.current.ipv6, 'the change of the host');
  t.is(host.refusals, -1);
});

test('host: a listener that throws is reported, and the others are told', async (t) => {
  const { host, watch, faults, notice } = await start(t);
  const fault = new Error('a fault');
  const told: boolean[] = [];
  watch.onChange(() => {
    throw fault;
  });
  watch.onChange(({ ipv6 }) => told.push(ipv6));
  host.ipv6 = false;
  notice();
  await until(() => told.length > 0, 'the second listener');
  t.deepEqual(told, [false]);
  t.deepEqual(faults, [fault]);
});
