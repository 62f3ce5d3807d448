/** The reconciler over the real sets, members and chains: it repairs what was spoilt, restarts quietly, and sweeps. */
import test from 'ava';
import { pino } from 'pino';
import { createMemberDriver } from '../../agent/kernel/ipset/member.ts';
import { createSetDriver } from '../../agent/kernel/ipset/set.ts';
import { chooseBackend } from '../../agent/kernel/iptables/backend.ts';
import { createChainDriver } from '../../agent/kernel/iptables/chain.ts';
import type { Cidr } from '../../agent/model/ip.ts';
import { type AnyItem, item, type Kind } from '../../agent/model/items.ts';
import { KernelState } from '../../agent/reconcile/kernel-state.ts';
import { Reconciler } from '../../agent/reconcile/reconciler.ts';
import type { AnyDriver } from '../../agent/reconcile/types.ts';
import { kernelHost, type NetfilterHost } from '../support/netfilter-host.ts';
import { until } from '../support/until.ts';

const never = new AbortController().signal;

const set = item('set', { name: 'tulle-test-4', type: 'hash:net', family: 'ipv4', maxElements: 64 });
const members = ['10.0.0.0/8', '0.0.0.0/0'].map((entry) =>
  item('member', { set: 'tulle-test-4', entry: entry as Cidr }, [set.key]),
);
const chain = (order: string, args: string) =>
  item(
    'chain-part',
    { family: 'ipv4', table: 'filter', chain: 'TULLE-INPUT', order, rules: [{ args: args.split(' '), comment: 'x' }] },
    [set.key],
  );
const ITEMS: readonly AnyItem[] = [
  set,
  ...members,
  chain('10-a', '-m set --match-set tulle-test-4 src -j RETURN'),
  chain('20-b', '-p tcp -j ACCEPT'),
];

/** A process: its own state, drivers and reconciler, which lives until the action is done. */
async function agent<T>(
  host: NetfilterHost,
  items: readonly AnyItem[],
  action: (reconciler: Reconciler) => Promise<T>,
) {
  const backend = await chooseBackend(host.run);
  const member = createMemberDriver(host);
  const set = createSetDriver({ ...host, onEmptied: (name) => member.setEmptied(name) });
  const drivers = [set, member, createChainDriver({ run: host.run, backend })];
  const state = new KernelState({ set: 'same', member: 'same', 'chain-part': 'one' } as Record<Kind, 'one' | 'same'>);
  state.replace('test', { id: 'test', cause: 'test', rank: '', items, requires: [], problems: [] });
  const reconciler = new Reconciler({ state, drivers: drivers as AnyDriver[], log: pino({ level: 'silent' }) });
  const controller = new AbortController();
  reconciler.start(controller.signal);
  await reconciler.listed;
  try {
    return await action(reconciler);
  } finally {
    controller.abort(new Error('done'));
    await reconciler.stopped;
  }
}

const keys = (items: readonly AnyItem[]) => items.map(({ key }) => key);
const written = (reconciler: Reconciler) =>
  Object.values(reconciler.status().kinds).reduce((sum, { changes }) => sum + changes, 0);

test('a restart writes nothing, what was spoilt is repaired, and what nobody wants goes in the right order', async (t) => {
  const host = await kernelHost(t);
  await agent(host, ITEMS, (reconciler) => reconciler.settle(keys(ITEMS), never));
  await agent(host, ITEMS, async (reconciler) => {
    await reconciler.settle(keys(ITEMS), never);
    t.is(written(reconciler), 0);
    t.deepEqual(await reconciler.diff(never), []);
    const edit = (file: string, args: readonly string[], stdin = '') =>
      host.run({ file, args, stdin, timeoutMs: 10_000 });
    await edit('iptables-nft-restore', ['--noflush'], '*filter\n-F INPUT\n-F TULLE-INPUT\nCOMMIT\n');
    await edit('ipset', ['flush', 'tulle-test-4']);
    t.deepEqual(
      (await reconciler.diff(never)).map(({ action, key }) => `${action} ${key}`).sort(),
      keys(ITEMS.slice(1))
        .map((key) => `create ${key}`)
        .sort(),
    );
    reconciler.resync();
    await until(() => Object.values(reconciler.status().kinds).every(({ lists }) => lists === 2), 'listed again');
    await reconciler.settle(keys(ITEMS), never);
    t.deepEqual(await reconciler.diff(never), []);
  });
  await agent(host, [], async (reconciler) => {
    reconciler.enableSweep();
    await until(() => ITEMS.every(({ key }) => reconciler.known(key) === undefined), 'everything swept');
    t.deepEqual(await reconciler.diff(never), []);
    t.deepEqual((await host.run({ file: 'ipset', args: ['list', '-n'], timeoutMs: 10_000 })).stdout, '');
  });
});

test('a set that somebody destroyed is filled again as soon as it is made again', async (t) => {
  const host = await kernelHost(t);
  const items = [set, ...members];
  await agent(host, items, async (reconciler) => {
    await reconciler.settle(keys(items), never);
    await host.run({ file: 'ipset', args: ['destroy', set.value.name], timeoutMs: 10_000 });
    reconciler.resync('set');
    await until(() => (reconciler.status().kinds['set']?.lists ?? 0) === 2, 'the sets listed again');
    await reconciler.settle(keys(items), never);
    t.deepEqual(await reconciler.diff(never), []);
  });
});
