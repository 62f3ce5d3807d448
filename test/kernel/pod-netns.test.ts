/** What the agent accepts as a pod's network namespace, tried with real files. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { dumpLinks } from '../../agent/kernel/netlink/links.ts';
import { identifyNetns, openPodNetns } from '../../agent/kernel/netns/netns.ts';
import { createNetns } from '../support/netns.ts';

test('openPodNetns: a namespace is entered for its links and its sysctls only', async (t) => {
  const pod = await createNetns(t, 'pod');
  await pod.run('ip', 'link', 'add', 'x0', 'type', 'bridge');
  const open = openPodNetns({ path: pod.path, ...identifyNetns(pod.path) });
  t.teardown(() => open.close());
  t.deepEqual(
    (await dumpLinks(open.client)).map(({ name }) => name),
    ['lo', 'x0'],
  );
  open.sysctls.write('net/ipv6/conf/x0/accept_ra', '0');
  t.is(open.sysctls.read('net/ipv6/conf/x0/accept_ra'), '0');
  t.is((await pod.run('sysctl', '-n', 'net.ipv6.conf.x0.accept_ra')).stdout, '0');
  t.is(open.sysctls.read('net/ipv6/conf/nothing/accept_ra'), undefined);
});

test('identifyNetns: what is no namespace of a pod is refused with its own words', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-netns-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const file = join(directory, 'file');
  const fifo = join(directory, 'fifo');
  writeFileSync(file, '');
  execFileSync('mkfifo', [fifo]);
  // Without a driver: to open it would be ENXIO.
  const device = join(directory, 'device');
  execFileSync('mknod', [device, 'c', '511', '0']);
  const cases = [
    [join(directory, 'missing'), 'ENOENT', /the pod is gone, or the directory of namespaces is not mounted/],
    [file, 'EINVAL', /expected a network namespace, got another kind of file/],
    [fifo, 'EINVAL', /expected a network namespace/],
    [directory, 'EINVAL', /expected a network namespace/],
    [device, 'EINVAL', /expected a network namespace, got another kind of file/],
    ['/proc/self/ns/mnt', 'EINVAL', /expected a network namespace/],
    ['/proc/self/ns/net', 'EPERM', /the host's own namespace/],
  ] as const;
  for (const [path, code, message] of cases) {
    const error = t.throws(() => identifyNetns(path), { instanceOf: KernelError, message }, path);
    t.is(error.code, code, path);
  }
});

test('openPodNetns: another namespace at the path is refused', async (t) => {
  const [pod, other] = [await createNetns(t, 'pod'), await createNetns(t, 'other')];
  const error = t.throws(() => openPodNetns({ path: other.path, ...identifyNetns(pod.path) }), {
    instanceOf: KernelError,
    message: /expected the namespace \d+:\d+, got \d+:\d+/,
  });
  t.is(error.code, 'ESTALE');
});
