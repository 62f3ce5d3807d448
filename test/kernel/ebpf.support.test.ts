/** What is asked of a kernel before Services are translated at its sockets, asked of this one. */
import test from 'ava';
import { findCgroupRoot, possibleCpus } from '../../agent/kernel/bpf/place.ts';
import { probeSocketSupport } from '../../agent/kernel/bpf/support.ts';
import { KernelError } from '../../agent/kernel/errors.ts';
import { cgroupRoot } from '../../scripts/isolation.ts';
import { createEbpfNode } from '../support/ebpf-node.ts';

test('a host that runs these tests lacks nothing', async (t) => {
  const { bpffs } = await createEbpfNode(t);
  const { features, lacking } = probeSocketSupport({ bpffs });
  t.deepEqual(lacking, []);
  t.deepEqual(
    features.filter(({ state }) => state !== 'supported'),
    [],
  );
});

test('what is not there is named, with what follows and what to do', (t) => {
  const { lacking } = probeSocketSupport({ cgroupRoots: ['/proc'], bpffs: '/proc', kernelBtf: '/proc/none' });
  t.deepEqual(
    lacking.map(({ name, state }) => `${name}: ${state}`),
    ['cgroup v2: missing', 'bpffs: missing', 'type information of the kernel: missing'],
  );
  t.regex(lacking[0]?.evidence ?? '', /expected cgroup v2 at \/proc, got none/);
  t.regex(lacking[1]?.evidence ?? '', /expected a bpffs, got a file system of type 0x9fa0/);
});

test('the root of the cgroups is found, on pure and hybrid hosts alike', (t) => {
  t.is(findCgroupRoot() as string | undefined, cgroupRoot());
  t.throws(() => findCgroupRoot(['/proc', '/none']), {
    instanceOf: KernelError,
    message: /expected cgroup v2 at \/proc or \/none/,
  });
});

test('possible CPUs are counted to the last', (t) => {
  t.deepEqual(
    ['0\n', '0-3\n', '0,2-5\n', '0-1,7\n'].map((text) => possibleCpus(text)),
    [1, 4, 6, 8],
  );
});
