/** What the chain driver does when the tool fails. What it does when it works is in test/kernel/iptables.contract.test.ts. */
import test from 'ava';
import { converge, createOf, differences } from '../../../test/support/converge.ts';
import { FakeIptables } from '../../../test/support/fake-iptables.ts';
import { type Family, families } from '../../model/ip.ts';
import type { ChainPart } from '../../model/items.ts';
import { KernelError } from '../errors.ts';
import { describeBackend } from './backend.ts';
import { createChainDriver } from './chain.ts';

const signal = new AbortController().signal;
const part = (order: string, family: Family = 'ipv4', target = 'ACCEPT'): ChainPart => ({
  family,
  table: 'filter',
  chain: 'TULLE-FORWARD',
  order,
  rules: [{ args: ['-j', target], comment: '' }],
});
const failed = (code: string) => new KernelError({ code, operation: 'run', object: 'iptables', detail: 'injected' });
const codes = (failures: ReadonlyMap<string, Error>) =>
  [...failures.values()].map((error) => (error as KernelError).code);
const runs = (iptables: FakeIptables, verb: string) =>
  iptables.commands.filter(
    ({ file, args }) => file.endsWith(verb) && args.includes('--noflush') && !args.includes('--test'),
  );

async function open(options: ConstructorParameters<typeof FakeIptables>[0] = {}) {
  const iptables = new FakeIptables(options);
  const backend = await describeBackend(iptables.run, 'nft', 'test');
  return { iptables, driver: createChainDriver({ run: iptables.run, backend }) };
}

test('chain driver: one restore for a family and table, whatever the number of chains', async (t) => {
  const { iptables, driver } = await open();
  const inputs = ['10-a', '20-b'].map((order) => ({ ...part(order), chain: 'TULLE-INPUT' }));
  const wanted = [
    ...inputs,
    part('10-a'),
    part('20-b'),
    part('10-a', 'ipv6'),
    { ...part('1'), table: 'raw', chain: 'TULLE-X' } as const,
  ];
  t.is((await converge(driver, wanted)).failures.size, 0);
  t.is(runs(iptables, '-restore').length, 3);
});

for (const code of ['EAGAIN', 'ETIMEDOUT', 'EPERM']) {
  test(`chain driver: ${code} fails the batch at once and is not halved`, async (t) => {
    const { iptables, driver } = await open();
    const wanted = ['10-a', '20-b', '30-c'].map((order) => part(order));
    iptables.failNext(failed(code));
    const { failures } = await converge(driver, wanted);
    t.deepEqual(codes(failures), [code, code, code]);
    t.is(runs(iptables, '-restore').length, 1);
    t.is((await converge(driver, wanted)).failures.size, 0, 'the next attempt writes all');
    t.deepEqual(await differences(driver, wanted), []);
  });
}

test('chain driver: one of many that is refused costs a logarithm of tries', async (t) => {
  const { iptables, driver } = await open();
  const wanted = Array.from({ length: 64 }, (_, i) =>
    part(String(i).padStart(2, '0'), 'ipv4', i === 41 ? 'TULLE-NO' : 'ACCEPT'),
  );
  const { failures } = await converge(driver, wanted);
  t.deepEqual([...failures.keys()], ['chain-part ipv4 filter TULLE-FORWARD 41']);
  // All, then two halves at each of six levels, then the culprit once more.
  t.is(runs(iptables, '-restore').length, 1 + 2 * 6 + 1);
});

test('chain driver: a tool that hangs is given up when the signal says so', async (t) => {
  const { iptables, driver } = await open();
  iptables.hangNext();
  const controller = new AbortController();
  const applied = driver.apply([createOf('chain-part', part('10-a'))], controller.signal);
  setImmediate(() => controller.abort());
  t.deepEqual(codes(await applied), ['ECANCELED']);
  t.is((await driver.list(signal)).size, 0);
});

test('chain driver: a list waits for a running write, so that it cannot undo what the write noted', async (t) => {
  const { driver } = await open();
  const applied = driver.apply([createOf('chain-part', part('10-a'))], signal);
  t.is((await driver.list(signal)).size, 1);
  t.is((await applied).size, 0);
});

test('chain driver: a host without IPv6 keeps its IPv4, and IPv6 says what is missing', async (t) => {
  const { driver } = await open({ ipv6: false });
  const wanted = families.map(({ family }) => part('10-a', family));
  const { failures } = await converge(driver, wanted);
  t.deepEqual([...failures.keys()], ['chain-part ipv6 filter TULLE-FORWARD 10-a']);
  t.deepEqual(codes(failures), ['EAFNOSUPPORT']);
  t.deepEqual([...(await driver.list(signal)).keys()], ['chain-part ipv4 filter TULLE-FORWARD 10-a']);
});

test('chain driver: a list that fails for another reason is a failure, not an empty list', async (t) => {
  const { iptables } = await open();
  const backend = await describeBackend(iptables.run, 'nft', 'test');
  const run: typeof iptables.run = async (command) => {
    if (command.file === 'ip6tables-nft-save') throw failed('EAGAIN');
    return iptables.run(command);
  };
  await t.throwsAsync(createChainDriver({ run, backend }).list(signal), { instanceOf: KernelError, code: 'EAGAIN' });
});
