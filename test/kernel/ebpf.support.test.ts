/** What is asked of a kernel before Services are translated at its sockets, asked of this one. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { execa } from 'execa';
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
    [
      'cgroup v2: missing',
      'bpffs: missing',
      'type information of the kernel: missing',
      'room beside other programs: missing',
    ],
  );
  t.regex(lacking[0]?.evidence ?? '', /expected cgroup v2 at \/proc, got none/);
  t.regex(lacking[1]?.evidence ?? '', /expected a bpffs, got a file system of type 0x9fa0/);
});

test('a program of somebody who shares with nobody is named, with what to do', async (t) => {
  const { cgroup, bpffs, directory } = await createEbpfNode(t);
  const [source, object, pin] = [join(directory, 'foreign.c'), join(directory, 'foreign.o'), join(bpffs, 'foreign')];
  writeFileSync(
    source,
    '#include <linux/bpf.h>\nint foreign(struct bpf_sock_addr *ctx) __attribute__((section("cgroup/sendmsg6")));\n' +
      'int foreign(struct bpf_sock_addr *ctx) { return 1; }\nchar _license[] __attribute__((section("license"))) = "GPL";\n',
  );
  const multiarch = `/usr/include/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`;
  await execa('clang-14', ['-target', 'bpf', '-O2', '-g', '-idirafter', multiarch, '-c', source, '-o', object]);
  await execa('bpftool', ['-n', 'prog', 'load', object, pin]);
  const lackingHere = () => probeSocketSupport({ cgroupRoots: [cgroup], bpffs }).lacking;
  await execa('bpftool', ['cgroup', 'attach', cgroup, 'sendmsg6', 'pinned', pin, 'multi']);
  t.deepEqual(lackingHere(), []);
  await execa('bpftool', ['cgroup', 'detach', cgroup, 'sendmsg6', 'pinned', pin]);
  await execa('bpftool', ['cgroup', 'attach', cgroup, 'sendmsg6', 'pinned', pin]);
  const [lacking] = lackingHere();
  t.is(lacking?.name, 'room beside other programs');
  const evidence =
    /program \d+ \(foreign\) has for itself; stop who attached it, then (bpftool cgroup detach .* id \d+)\)$/;
  t.regex(lacking?.evidence ?? '', evidence);
  const [file = '', ...args] = evidence.exec(lacking?.evidence ?? '')?.[1]?.split(' ') ?? [];
  await execa(file, args);
  t.deepEqual(lackingHere(), []);
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
