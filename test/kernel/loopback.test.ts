/** The CNI executable under the name `loopback`, in real namespaces. */
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { execa } from 'execa';
import { supportedVersions } from '../../cni/protocol.ts';
import { createNetns, type Netns } from '../support/netns.ts';

const CNI = join(import.meta.dirname, '../../cni');
const TIMEOUT_MS = 20_000;

test.before('make', async () => {
  await execa('make', ['-s', '-C', CNI]);
});

type Loopback = (
  verb: string,
  netnsPath: string,
  config?: object,
) => Promise<{ exitCode: number | undefined; answer: Answer }>;
interface Answer {
  readonly code?: number;
  readonly msg?: string;
}

/** Calls the plugin as a runtime does; in `inside` instead of this process's own namespace, if given. */
function installLoopback(t: ExecutionContext, inside?: Netns): Loopback {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-loopback-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const file = join(directory, 'loopback');
  symlinkSync(join(CNI, 'build/tulle-cni'), file);
  const [command, ...args] = inside ? ['ip', 'netns', 'exec', inside.name, file] : [file];
  return async (verb, netnsPath, config = {}) => {
    const { exitCode, stdout } = await execa(command as string, args, {
      env: {
        CNI_COMMAND: verb,
        CNI_CONTAINERID: 'c0ffee',
        CNI_IFNAME: 'lo',
        CNI_NETNS: netnsPath,
        CNI_PATH: directory,
      },
      input: JSON.stringify({ cniVersion: '1.0.0', name: 'lo', type: 'loopback', ...config }),
      reject: false,
      timeout: TIMEOUT_MS,
    });
    return { exitCode, answer: stdout === '' ? {} : (JSON.parse(stdout) as Answer) };
  };
}

async function isUp({ run }: Netns): Promise<boolean> {
  const [lo] = JSON.parse((await run('ip', '-json', 'link', 'show', 'lo')).stdout) as [{ flags: readonly string[] }];
  return lo.flags.includes('UP');
}

test('ADD brings lo up, CHECK sees it, DEL brings it down', async (t) => {
  const netns = await createNetns(t);
  const loopback = installLoopback(t);
  await netns.run('ip', 'link', 'set', 'lo', 'down');
  const down = await loopback('CHECK', netns.path);
  t.like(down, { exitCode: 1, answer: { code: 100 } });
  t.is(down.answer.msg, `cannot CHECK lo in ${netns.path}: expected it up, got it down`);
  t.is((await loopback('ADD', netns.path)).exitCode, 0);
  t.true(await isUp(netns));
  t.deepEqual(await loopback('CHECK', netns.path), { exitCode: 0, answer: {} });
  await netns.run('ping', '-c', '1', '-W', '5', '127.0.0.1');
  await netns.run('ping', '-c', '1', '-W', '5', '::1');
  for (const time of ['first', 'second']) {
    t.deepEqual(await loopback('DEL', netns.path), { exitCode: 0, answer: {} }, time);
    t.false(await isUp(netns), time);
  }
});

for (const cniVersion of supportedVersions) {
  test(`ADD answers in version ${cniVersion}`, async (t) => {
    const netns = await createNetns(t);
    const family = (version: string) => (cniVersion.startsWith('0.') ? { version } : {});
    const { answer } = await installLoopback(t)('ADD', netns.path, { cniVersion });
    t.deepEqual(answer as object, {
      cniVersion,
      interfaces: [{ name: 'lo', mac: '00:00:00:00:00:00', sandbox: netns.path }],
      ips: [
        { ...family('4'), interface: 0, address: '127.0.0.1/8' },
        { ...family('6'), interface: 0, address: '::1/128' },
      ],
      dns: {},
    });
  });
}

test('without IPv6 in the namespace there is no ::1 in the result', async (t) => {
  const netns = await createNetns(t);
  await netns.run('sysctl', '--quiet', '--write', 'net.ipv6.conf.all.disable_ipv6=1');
  const { answer } = await installLoopback(t)('ADD', netns.path);
  t.like(answer, { ips: [{ interface: 0, address: '127.0.0.1/8' }] } as object);
  t.is((answer as { ips?: readonly object[] }).ips?.length, 1);
});

test('an earlier plugin’s result is passed on', async (t) => {
  const netns = await createNetns(t);
  const prevResult = { cniVersion: '1.0.0', interfaces: [{ name: 'eth0', sandbox: '{"}]' }], ips: [], routes: [] };
  const { answer } = await installLoopback(t)('ADD', netns.path, { before: [{}], prevResult, after: 1 });
  t.deepEqual(answer as object, prevResult);
});

test('paths that are no network namespace of a pod', async (t) => {
  const netns = await createNetns(t);
  const loopback = installLoopback(t);
  const directory = mkdtempSync(join(tmpdir(), 'tulle-loopback-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  await execa('mkfifo', [join(directory, 'pipe')]);
  const table = [
    ['', /got '': No such file or directory$/],
    [`${netns.path}-gone`, /No such file or directory$/],
    [directory, /not a namespace$/],
    [join(directory, 'pipe'), /not a namespace$/],
    ['/proc/self/ns/uts', /not a network namespace$/],
  ] as const;
  for (const [path, message] of table) {
    const { exitCode, answer } = await loopback('ADD', path);
    t.like({ exitCode, answer }, { exitCode: 1, answer: { code: 4 } }, path);
    t.regex(answer.msg ?? '', message);
    t.deepEqual(await loopback('DEL', path), { exitCode: 0, answer: {} }, path);
  }
});

test('a DEL that names the runtime’s own namespace leaves its lo alone', async (t) => {
  const host = await createNetns(t);
  const loopback = installLoopback(t, host);
  t.is((await loopback('DEL', host.path)).exitCode, 0);
  t.true(await isUp(host));
  const { answer } = await loopback('ADD', host.path);
  t.is(answer.code, 4);
  t.regex(answer.msg ?? '', /: the runtime's own namespace$/);
});

test('other versions are refused, other verbs have nothing to do', async (t) => {
  const netns = await createNetns(t);
  const loopback = installLoopback(t);
  t.like((await loopback('ADD', netns.path, { cniVersion: '0.2.0' })).answer, { code: 1 });
  for (const verb of ['STATUS', 'GC']) {
    t.deepEqual(await loopback(verb, '', { cniVersion: '1.1.0' }), { exitCode: 0, answer: {} });
  }
  t.like((await loopback('VERSION', '')).answer, { cniVersion: '1.0.0', supportedVersions } as object);
});
