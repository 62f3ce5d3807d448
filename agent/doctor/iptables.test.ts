import test from 'ava';
import type { RuleScan } from '../kernel/iptables/scan.ts';
import type { Facts } from './facts.ts';
import { iptables } from './iptables.ts';

const scan = (backend: RuleScan['backend'], ownRules: number): RuleScan => ({
  backend,
  family: 'ipv4',
  tables: [],
  ownRules,
  foreignRules: 0,
  remarks: [],
});

const RUNNING = { host: { iptables: 'nft (a kubelet uses it)' } } as Exclude<Facts['agent'], Error>;

async function findingOf(agent: Facts['agent']) {
  const facts = {
    agent,
    iptables: async () => ({ backend: 'nft', version: 'iptables v1.8.9', reason: 'it holds 3 rules of others' }),
    rules: async () => [scan('nft', 0), scan('legacy', 40)],
  } as unknown as Facts;
  const verdict = await iptables.run(facts, new AbortController().signal);
  return 'findings' in verdict ? verdict.findings[0] : undefined;
}

test('while no agent runs, rules in the other back end may be what carries the pods: they are told, not removed', async (t) => {
  const finding = await findingOf(new Error('no agent answers'));
  t.regex(finding?.summary ?? '', /^rules of Tulle stand in iptables-legacy/);
  t.is(finding?.fix, undefined);
  t.regex(finding?.remedy ?? '', /^start the agent/);
});

test('what the running agent does not use is removed', async (t) => {
  const finding = await findingOf(RUNNING);
  t.deepEqual(finding?.fix?.steps, ['remove the chains TULLE-* from iptables-legacy (ipv4)']);
  t.is(finding?.fix?.name, undefined);
});
