import test from 'ava';
import { FakeIptables } from '../../../test/support/fake-iptables.ts';
import type { Run } from '../command.ts';
import { KernelError } from '../errors.ts';
import { type BackendName, chooseBackend } from './backend.ts';

type Contents = Partial<Record<`${'iptables' | 'ip6tables'}-${BackendName}`, string>>;

async function host(contents: Contents): Promise<FakeIptables> {
  const iptables = new FakeIptables();
  for (const [prefix, stdin] of Object.entries(contents)) {
    await iptables.run({ file: `${prefix}-restore`, args: ['--noflush'], stdin, timeoutMs: 1_000 });
  }
  return iptables;
}

const rules = (count: number) => `*filter\n${'-A INPUT -j ACCEPT\n'.repeat(count)}COMMIT\n`;
const chain = (name: string) => `*mangle\n:${name} - [0:0]\nCOMMIT\n`;
const own = '*filter\n:TULLE-INPUT - [0:0]\n-A INPUT -j TULLE-INPUT\nCOMMIT\n';

const cases: readonly (readonly [what: string, Contents, BackendName, reason: RegExp])[] = [
  ['an empty host', {}, 'nft', /no other rules/],
  ['rules of others in legacy', { 'iptables-legacy': rules(1) }, 'legacy', /1 rules of others/],
  ['more rules in legacy', { 'iptables-legacy': rules(3), 'iptables-nft': rules(2) }, 'legacy', /3 rules/],
  ['as many in both', { 'iptables-legacy': rules(2), 'iptables-nft': rules(2) }, 'nft', /2 rules/],
  ['rules of IPv6 count', { 'ip6tables-legacy': rules(2), 'iptables-nft': rules(1) }, 'legacy', /2 rules/],
  [
    'a hint against the count',
    { 'iptables-nft': chain('KUBE-IPTABLES-HINT'), 'iptables-legacy': rules(9) },
    'nft',
    /kubelet/,
  ],
  [
    'a canary in legacy',
    { 'iptables-legacy': chain('KUBE-KUBELET-CANARY'), 'iptables-nft': rules(9) },
    'legacy',
    /kubelet/,
  ],
  [
    'a hint of IPv6',
    { 'ip6tables-legacy': chain('KUBE-IPTABLES-HINT'), 'iptables-nft': rules(9) },
    'legacy',
    /kubelet/,
  ],
  [
    'a chain that only looks like a hint',
    { 'iptables-legacy': chain('KUBE-IPTABLES-HINTS'), 'iptables-nft': rules(1) },
    'nft',
    /1 rules/,
  ],
  ['own rules of before', { 'iptables-legacy': own }, 'legacy', /before/],
  [
    'own rules do not outweigh those of others',
    { 'iptables-legacy': own, 'iptables-nft': rules(1) },
    'nft',
    /1 rules of others/,
  ],
];

for (const [what, contents, expected, reason] of cases) {
  test(`chooseBackend: ${what}`, async (t) => {
    const { backend, reason: said, commands, randomFully } = await chooseBackend((await host(contents)).run);
    t.is(backend, expected);
    t.regex(said, reason);
    t.is(commands.ipv6.restore, `ip6tables-${expected}-restore`);
    t.true(randomFully);
  });
}

const without =
  (run: Run, pattern: RegExp, code: string): Run =>
  async (command) => {
    if (!pattern.test(command.file)) return run(command);
    throw new KernelError({
      code,
      operation: 'run',
      object: command.file,
      detail: 'install the Debian package iptables',
    });
  };

test('chooseBackend: a back end that is not installed is not chosen', async (t) => {
  const { run } = await host({ 'iptables-nft': rules(5) });
  t.is((await chooseBackend(without(run, /-nft-/, 'ENOPKG'))).backend, 'legacy');
});

test('chooseBackend: a back end that the kernel lacks is not chosen, and the reason says so', async (t) => {
  const { run } = await host({ 'iptables-nft': rules(5) });
  const { backend, reason } = await chooseBackend(without(run, /-nft-/, 'EINVAL'));
  t.is(backend, 'legacy');
  t.regex(reason, /^no other rules on this host; nft is unusable: cannot run iptables-nft-save: EINVAL/);
});

test('chooseBackend: when neither can be read it says why', async (t) => {
  const { run } = new FakeIptables();
  await t.throwsAsync(chooseBackend(without(run, /tables/, 'EINVAL')), { code: 'EINVAL', message: /-nft-save/ });
});

test('chooseBackend: without any it names the package', async (t) => {
  const { run } = new FakeIptables();
  await t.throwsAsync(chooseBackend(without(run, /tables/, 'ENOPKG')), { message: /Debian package iptables/ });
});

test('chooseBackend: a host without IPv6 still chooses', async (t) => {
  const { run } = new FakeIptables({ ipv6: false });
  t.is((await chooseBackend(run)).backend, 'nft');
});

test('chooseBackend: a busy tool is no reason to take the other one', async (t) => {
  const { run } = await host({ 'iptables-nft': rules(5) });
  await t.throwsAsync(chooseBackend(without(run, /-nft-save/, 'ETIMEDOUT')), { code: 'ETIMEDOUT' });
});

test('chooseBackend: --random-fully that is refused is not used', async (t) => {
  const { run } = new FakeIptables();
  const old: Run = async (command) => {
    if (command.stdin?.includes('--random-fully'))
      throw new KernelError({ code: 'EINVAL', operation: 'run', object: command.file });
    return run(command);
  };
  t.false((await chooseBackend(old)).randomFully);
});
