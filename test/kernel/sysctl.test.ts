/** Sysctls of a real namespace: what was there before comes back, whatever happens in between. */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { openNetlink } from '../../agent/kernel/netlink/open.ts';
import { isSysctlPath, openSysctls } from '../../agent/kernel/sysctl/files.ts';
import { createSysctlDriver } from '../../agent/kernel/sysctl/sysctl.ts';
import { create, holds, list, remove } from '../support/netlink-host.ts';
import { createNetns, waitFor } from '../support/netns.ts';

const FORWARD = 'net/ipv4/ip_forward';

async function openHost(t: ExecutionContext) {
  const host = await createNetns(t, 'host');
  const directory = mkdtempSync(join(tmpdir(), 'tulle-sysctl-'));
  const netnsFd = openSync(host.path, 'r');
  t.teardown(() => {
    closeSync(netnsFd);
    rmSync(directory, { recursive: true });
  });
  const files = openSysctls({ netnsFd });
  const stateFile = join(directory, 'sysctl.json');
  return { host, files, stateFile, netnsFd, restart: () => createSysctlDriver({ files, stateFile }) };
}

test('sysctl: written, known to the next process, and restored when it is no longer wanted', async (t) => {
  const { files, restart } = await openHost(t);
  files.write(FORWARD, '0');
  const wanted = { path: FORWARD, value: '1' };
  const first = restart();
  t.true(await holds(first));
  await create(first, wanted);
  t.is(files.read(FORWARD), '1');
  t.true(await holds(first, wanted));
  const second = restart();
  t.true(await holds(second, wanted));
  await create(second, wanted);
  t.is(second.former(FORWARD), '0', 'a restart does not overwrite the former value');
  await remove(second, wanted);
  t.is(files.read(FORWARD), '0');
  t.true(await holds(restart()));
});

test('sysctl: what somebody changes is seen', async (t) => {
  const { files, restart } = await openHost(t);
  const path = 'net/ipv6/conf/lo/accept_ra';
  const driver = restart();
  await create(driver, { path, value: '2' });
  files.write(path, '0');
  t.deepEqual(await list(driver), [{ path, value: '0' }]);
});

test('sysctl: forwarding that somebody switches is heard', async (t) => {
  const { host, files, stateFile, netnsFd } = await openHost(t);
  const netlink = openNetlink({ netnsFd });
  t.teardown(() => netlink.close());
  const driver = createSysctlDriver({ files, stateFile, monitor: netlink.monitor });
  const paths = [FORWARD, 'net/ipv6/conf/all/forwarding'];
  for (const path of paths) await create(driver, { path, value: '1' });
  const heard = new Map<string, unknown>();
  const notice = { found: (key: string, value: unknown) => heard.set(key, value), stale: () => {} };
  driver.watch?.(notice as never, AbortSignal.timeout(60_000));
  for (const path of paths) {
    await host.run('sysctl', '-q', `${path.replaceAll('/', '.')}=0`);
    await waitFor(() => heard.has(`sysctl ${path}`), { describe: path, timeoutMs: 5_000 });
    t.deepEqual(heard.get(`sysctl ${path}`), { path, value: '0' });
  }
});

test('sysctl: a link that is gone keeps nobody from restoring', async (t) => {
  const { host, restart } = await openHost(t);
  await host.run('ip', 'link', 'add', 'x0', 'type', 'bridge');
  const wanted = { path: 'net/ipv6/conf/x0/accept_ra', value: '2' };
  const driver = restart();
  await create(driver, wanted);
  await host.run('ip', 'link', 'delete', 'x0');
  t.true(await holds(driver));
  await t.notThrowsAsync(remove(driver, wanted));
  const error = await t.throwsAsync(create(driver, wanted), { instanceOf: KernelError });
  t.is(error.code, 'ENOENT');
});

test('sysctl: a file that cannot be written says what to do', async (t) => {
  const { files } = await openHost(t);
  const error = t.throws(() => files.write('net/ipv4/tcp_available_congestion_control', 'x'), {
    instanceOf: KernelError,
  });
  t.is(error.code, 'EACCES');
  t.regex(error.message, /\/proc\/sys is read-only here: run privileged, or mount the host's/);
});

test('sysctl: a state file that is no JSON does not keep the agent from starting', async (t) => {
  const { restart, stateFile } = await openHost(t);
  writeFileSync(stateFile, '{"net/ipv4');
  t.true(await holds(restart()));
});

test('isSysctlPath: only what is below net, by name', (t) => {
  for (const path of [
    FORWARD,
    'net/ipv6/conf/eth0.100/accept_ra',
    'net/ipv6/conf/br-1f@x/accept_ra',
    'net/ipv4/conf/..a/x',
  ]) {
    t.true(isSysctlPath(path), path);
  }
  const bad = [
    '',
    'net',
    'net/',
    'kernel/core_pattern',
    '/net/ipv4/x',
    'net/../kernel/x',
    'net/./x',
    'net//x',
    'net/..',
    'net/a b',
    'net/a\n',
    'net/a\0',
  ];
  for (const path of bad) t.false(isSysctlPath(path), JSON.stringify(path));
});
