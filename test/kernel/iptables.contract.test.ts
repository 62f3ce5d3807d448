/** The chain driver against the fake and against the kernel, with both back ends and both families. */
import test, { type ExecutionContext } from 'ava';
import type { Run } from '../../agent/kernel/command.ts';
import { KernelError } from '../../agent/kernel/errors.ts';
import { createSetDriver } from '../../agent/kernel/ipset/set.ts';
import { type Backend, type BackendName, describeBackend } from '../../agent/kernel/iptables/backend.ts';
import { createChainDriver } from '../../agent/kernel/iptables/chain.ts';
import { FAMILIES, families } from '../../agent/model/ip.ts';
import { type ChainPart, item, type Rule, type Table } from '../../agent/model/items.ts';
import { converge, createOf, differences, removeOf } from '../support/converge.ts';
import { HOSTS } from '../support/netfilter-host.ts';

const signal = new AbortController().signal;
const TIMEOUT_MS = 10_000;
const BACKENDS: readonly BackendName[] = ['nft', 'legacy'];

const rule = (args: string, comment = 'why'): Rule => ({ args: args.split(' '), comment });
const codeOf = (error: Error | undefined): string | undefined =>
  error instanceof KernelError ? error.code : undefined;
const keyOfPart = (part: ChainPart): string => item('chain-part', part).key;

/** Foreign hands: one way each to spoil what was written. FORWARD of filter, own chain with parts 10-a and 20-b. */
const SPOILS: Readonly<Record<string, (saved: readonly string[]) => string>> = {
  'a rule deleted': () => '-D TULLE-FORWARD 2',
  'the last rule deleted': () => '-D TULLE-FORWARD 3',
  'a foreign rule at the front': () => '-I TULLE-FORWARD 1 -j ACCEPT',
  'a foreign rule at the end': () => '-A TULLE-FORWARD -m comment --comment "tulle:spoof 10-a" -j ACCEPT',
  'rules swapped within a part': (saved) => `-D TULLE-FORWARD 1\n-I TULLE-FORWARD 2 ${saved[0]}`,
  'rules moved between parts': (saved) => `-D TULLE-FORWARD 1\n-A TULLE-FORWARD ${saved[0]}`,
  'parts swapped': (saved) => `-D TULLE-FORWARD 3\n-I TULLE-FORWARD 1 ${saved[2]}`,
  'a rule doubled': (saved) => `-A TULLE-FORWARD ${saved[2]}`,
  'a rule without its comment': () => '-D TULLE-FORWARD 1\n-I TULLE-FORWARD 1 -p tcp -j ACCEPT',
  'a rule altered under its comment': (saved) =>
    `-D TULLE-FORWARD 1\n-I TULLE-FORWARD 1 ${saved[0]?.replace('-p tcp', '-p udp')}`,
  'a target altered under its comment': (saved) =>
    `-D TULLE-FORWARD 3\n-I TULLE-FORWARD 3 ${saved[2]?.replace('DROP', 'ACCEPT')}`,
  'a rule reversed under its comment': (saved) =>
    `-D TULLE-FORWARD 3\n-I TULLE-FORWARD 3 ${saved[2]?.replace('-d ', '! -d ')}`,
  'the chain flushed': () => '-F TULLE-FORWARD',
  'the built-in chain flushed': () => '-F FORWARD',
  'another jump': () => '-A FORWARD -j TULLE-FORWARD',
  'the jump twice': () => '-I FORWARD 1 -j TULLE-FORWARD',
  'the jump not first': () => '-I FORWARD 1 -s 10.66.0.0/16 -j ACCEPT'.replace('10.66.0.0/16', '$NET'),
  'the jump narrowed': () => '-F FORWARD\n-A FORWARD -i eth0 -j TULLE-FORWARD',
  'everything gone': () => '-F FORWARD\n-F TULLE-FORWARD\n-X TULLE-FORWARD',
};

for (const [hostName, makeHost] of Object.entries(HOSTS)) {
  for (const backendName of BACKENDS) {
    for (const { family } of families) {
      const net = family === 'ipv4' ? '10.66.0.0/16' : 'fd66::/64';
      const part = (order: string, rules: readonly Rule[], fields: Partial<ChainPart> = {}): ChainPart => ({
        family,
        table: 'filter',
        chain: 'TULLE-FORWARD',
        order,
        rules,
        ...fields,
      });
      const TWO_PARTS = [
        part('20-b', [rule(`-d ${net} -j DROP`)]),
        part('10-a', [rule('-p tcp -j ACCEPT'), rule('-p udp -j ACCEPT')]),
      ];

      const title = (what: string) => `${hostName} ${backendName} ${family}: ${what}`;
      const open = async (t: ExecutionContext) => {
        const host = await makeHost(t);
        const backend = await describeBackend(host.run, backendName, 'test');
        const byHand = (lines: string, table: Table = 'filter') => edit(host.run, backend, lines, table);
        const save = async (table: Table = 'filter') => {
          const command = { file: backend.commands[family].save, args: ['-t', table], timeoutMs: TIMEOUT_MS };
          const { stdout } = await host.run(command);
          return stdout.split('\n').filter((line) => /^(-|:TULLE)/.test(line));
        };
        const driver = () => createChainDriver({ run: host.run, backend });
        return { host, backend, byHand, save, driver };
      };
      const edit = async (run: Run, { commands }: Backend, lines: string, table: Table) => {
        const stdin = `*${table}\n${lines.replaceAll('$NET', net)}\nCOMMIT\n`;
        await run({ file: commands[family].restore, args: ['--noflush', '--wait=5'], stdin, timeoutMs: TIMEOUT_MS });
      };

      test(title('parts stand in order behind one jump, and a fresh process changes nothing'), async (t) => {
        const { driver, byHand, save } = await open(t);
        await byHand('-A FORWARD -p icmp -j ACCEPT');
        const { failures } = await converge(driver(), TWO_PARTS);
        t.deepEqual([...failures.values()], []);
        const lines = (await save()).map((line) => line.replace(/[0-9a-f]{16}/, 'HASH'));
        const tcp = (protocol: string, comment: string) =>
          `-A TULLE-FORWARD -p ${protocol} -m comment --comment "tulle:HASH ${comment}" -j ACCEPT`;
        t.deepEqual(lines, [
          ':TULLE-FORWARD - [0:0]',
          '-A FORWARD -j TULLE-FORWARD',
          '-A FORWARD -p icmp -j ACCEPT',
          tcp('tcp', '10-a why'),
          tcp('udp', '10-a why'),
          `-A TULLE-FORWARD -d ${net} -m comment --comment "tulle:HASH 20-b why" -j DROP`,
        ]);
        t.deepEqual(await differences(driver(), TWO_PARTS), []);
      });

      test(title('a fresh process rewrites one part and keeps the others'), async (t) => {
        const { driver, save } = await open(t);
        await converge(driver(), TWO_PARTS);
        const before = await save();
        const [b, a] = TWO_PARTS as [ChainPart, ChainPart];
        const next = { ...b, rules: [rule(`-s ${net} -j DROP`), rule('-j RETURN')] };
        const { changes, failures } = await converge(driver(), [a, next]);
        t.deepEqual([...failures.values()], []);
        t.deepEqual(
          changes.map(({ key }) => key),
          [keyOfPart(next)],
        );
        t.deepEqual((await save()).slice(0, 4), before.slice(0, 4));
        t.deepEqual(await differences(driver(), [a, next]), []);
        t.deepEqual(await differences(driver(), TWO_PARTS), [keyOfPart(b)]);
      });

      test(title('whatever is spoilt shows and is repaired'), async (t) => {
        const { driver, byHand, save } = await open(t);
        await byHand(':FOREIGN - [0:0]\n-A FOREIGN -s $NET -j RETURN\n-A FORWARD -j FOREIGN');
        const held = driver();
        await converge(held, TWO_PARTS);
        const written = await save();
        const own = written
          .filter((line) => line.startsWith('-A TULLE'))
          .map((line) => line.replace('-A TULLE-FORWARD ', ''));
        for (const [spoil, lines] of Object.entries(SPOILS)) {
          await byHand(lines(own));
          const foreign = (await save()).filter((line) => !line.includes('TULLE'));
          t.not((await differences(driver(), TWO_PARTS)).length, 0, `${spoil}: shows`);
          // Once with the driver that wrote it, once with a fresh one.
          const { failures } = await converge(spoil.length % 2 ? held : driver(), TWO_PARTS);
          t.deepEqual([...failures.values()], [], spoil);
          t.deepEqual(await differences(driver(), TWO_PARTS), [], `${spoil}: repaired`);
          const after = await save();
          t.deepEqual(
            after.filter((line) => line.includes('TULLE')),
            written.filter((line) => line.includes('TULLE')),
            spoil,
          );
          t.deepEqual(
            after.filter((line) => !line.includes('TULLE')),
            foreign,
            `${spoil}: foreign rules untouched`,
          );
          await byHand('-F FORWARD\n-A FORWARD -j FOREIGN');
          await converge(held, TWO_PARTS);
        }
      });

      test(title('what iptables words in its own way is written once more at most'), async (t) => {
        const { driver, byHand, save } = await open(t);
        const held = driver();
        // Printed as `-p udp`.
        const odd = [part('10-a', [rule('-p 17 -j ACCEPT')])];
        await converge(held, odd);
        await converge(held, odd);
        const lines = await save();
        t.deepEqual(await differences(held, odd), []);
        await byHand(`-F TULLE-FORWARD\n${lines.at(-1)?.replace('ACCEPT', 'DROP')}`);
        t.is((await differences(held, odd)).length, 1);
        await converge(held, odd);
        t.deepEqual(await save(), lines);
        t.deepEqual(await differences(held, odd), []);
      });

      test(title('the last part takes chain and jump with it'), async (t) => {
        const { driver, byHand, save } = await open(t);
        await byHand('-A FORWARD -p icmp -j ACCEPT');
        const before = await save();
        const elsewhere = part('10-a', [rule('-j MASQUERADE')], { table: 'nat', chain: 'TULLE-POSTROUTING' });
        await converge(driver(), [...TWO_PARTS, elsewhere]);
        t.is((await converge(driver(), [elsewhere])).failures.size, 0);
        t.deepEqual(await save(), before);
        t.is((await save('nat')).length, 3);
        t.is((await converge(driver(), [])).failures.size, 0);
        t.deepEqual(await save('nat'), []);
        // Removing what is gone succeeds.
        t.is((await driver().apply([removeOf('chain-part', elsewhere)], signal)).size, 0);
      });

      test(title('own chains that nobody wants are found and swept'), async (t) => {
        const { driver, byHand, save } = await open(t);
        await byHand(
          ':TULLE-OLD - [0:0]\n:TULLE-EMPTY - [0:0]\n-A TULLE-OLD -j TULLE-EMPTY\n:TULLE-INPUT - [0:0]\n-A INPUT -j TULLE-INPUT',
        );
        const found = await driver().list(signal);
        t.deepEqual(
          [...found.keys()].sort(),
          ['EMPTY', 'INPUT', 'OLD'].map((name) => `chain-part ${family} filter TULLE-${name} `),
        );
        t.is((await converge(driver(), TWO_PARTS)).failures.size, 0);
        t.deepEqual(
          (await save()).filter((line) => /OLD|EMPTY|INPUT/.test(line)),
          [],
        );
        t.deepEqual(await differences(driver(), TWO_PARTS), []);
      });

      test(title('a part without rules is found again'), async (t) => {
        const { driver, save } = await open(t);
        const wanted = [part('10-a', [], { chain: 'TULLE-ACCEPTED' }), part('50-x', [rule('-j TULLE-ACCEPTED')])];
        t.is((await converge(driver(), wanted)).failures.size, 0);
        t.deepEqual(await differences(driver(), wanted), []);
        t.is((await converge(driver(), [])).failures.size, 0);
        t.deepEqual(await save(), []);
      });

      test(title('a refused part is told from the others, which are written'), async (t) => {
        const { driver } = await open(t);
        const good = ['10-a', '20-b', '40-d', '60-f'].map((order) => part(order, [rule('-p tcp -j ACCEPT')]));
        const bad = [
          part('15-chain', [rule('-j TULLE-NOWHERE')]),
          part('30-set', [rule('-m set --match-set tulle-none src -j ACCEPT')]),
          part('35-option', [rule('--nonsense 1 -j ACCEPT')]),
          part('45-token', [rule('-j ACCEPT;')]),
          part('50-newline', [{ args: ['-j', 'ACCEPT\n-F'], comment: '' }]),
          part('has blank', [rule('-j ACCEPT')]),
        ];
        const { failures } = await converge(driver(), [...bad, ...good]);
        t.deepEqual([...failures.keys()].sort(), bad.map(keyOfPart).sort());
        t.deepEqual([...(await driver().list(signal)).keys()].sort(), good.map(keyOfPart).sort());
        t.is(codeOf(failures.get(item('chain-part', bad[1] as ChainPart).key)), 'ENOENT');
        const [, , , token] = bad as [ChainPart, ChainPart, ChainPart, ChainPart];
        t.regex(failures.get(item('chain-part', token).key)?.message ?? '', /TULLE-FORWARD part 45-token.*"ACCEPT;"/);
      });

      test(title('a bad part keeps its former rules while the others change'), async (t) => {
        const { driver, save } = await open(t);
        await converge(driver(), TWO_PARTS);
        const [b, a] = TWO_PARTS as [ChainPart, ChainPart];
        const broken = { ...b, rules: [rule('-j TULLE-NOWHERE')] };
        const next = { ...a, rules: [rule('-p udp -j DROP')] };
        const { failures } = await converge(driver(), [next, broken]);
        t.deepEqual([...failures.keys()], [keyOfPart(broken)]);
        t.deepEqual(await differences(driver(), [next, b]), []);
        t.regex((await save()).at(-1) ?? '', /20-b why" -j DROP$/);
      });

      test(title('chains that jump to each other come and go together, in any order'), async (t) => {
        const { driver, save } = await open(t);
        const wanted = [
          part('10-a', [rule('-j TULLE-ONE')]),
          part('10-a', [rule('-j TULLE-TWO')], { chain: 'TULLE-ONE' }),
          part('10-a', [rule('-j ACCEPT')], { chain: 'TULLE-TWO' }),
        ];
        for (const order of [wanted, wanted.toReversed()]) {
          const held = driver();
          t.is(
            (
              await held.apply(
                order.map((value) => createOf('chain-part', value)),
                signal,
              )
            ).size,
            0,
          );
          t.is(
            (
              await held.apply(
                order.map((value) => removeOf('chain-part', value)),
                signal,
              )
            ).size,
            0,
          );
          t.deepEqual(await save(), []);
        }
        // With a culprit among them the halves depend on each other: those that fail get another turn.
        const bad = part('05-bad', [rule('-j TULLE-NOWHERE')], { chain: 'TULLE-TWO' });
        const failures = await driver().apply(
          [...wanted, bad].map((value) => createOf('chain-part', value)),
          signal,
        );
        t.deepEqual([...failures.keys()], [keyOfPart(bad)]);
      });

      test(title('a chain that a foreign rule uses cannot go, and says so'), async (t) => {
        const { driver, byHand } = await open(t);
        const used = part('10-a', [rule('-j ACCEPT')], { chain: 'TULLE-USED' });
        await converge(driver(), [used, ...TWO_PARTS]);
        await byHand('-A INPUT -j TULLE-USED');
        const { failures } = await converge(driver(), []);
        t.deepEqual([...failures.keys()], [keyOfPart(used)]);
        t.deepEqual(await differences(driver(), [used]), [], 'nothing of it was lost');
        await byHand('-D INPUT -j TULLE-USED');
        t.is((await converge(driver(), [])).failures.size, 0);
      });

      test(title('a jump that vanishes between list and write does no harm'), async (t) => {
        const { driver, byHand } = await open(t);
        await converge(driver(), TWO_PARTS);
        const held = driver();
        await held.list(signal);
        await byHand('-F FORWARD');
        t.is(
          (
            await held.apply(
              TWO_PARTS.map((value) => removeOf('chain-part', value)),
              signal,
            )
          ).size,
          0,
        );
        await byHand(':TULLE-FORWARD - [0:0]\n-A FORWARD -j TULLE-FORWARD');
        t.is(
          (
            await held.apply(
              TWO_PARTS.map((value) => createOf('chain-part', value)),
              signal,
            )
          ).size,
          0,
        );
        t.deepEqual(await differences(driver(), TWO_PARTS), []);
      });

      test(title('rules over sets keep them, and let go of them'), async (t) => {
        const { host, driver } = await open(t);
        const sets = createSetDriver(host);
        const name = `tulle-test-${FAMILIES[family].digit}`;
        await converge(sets, [{ name, type: 'hash:net', family, maxElements: 64 }]);
        const wanted = [part('10-a', [rule(`-m set ! --match-set ${name} src -j DROP`)])];
        t.is((await converge(driver(), wanted)).failures.size, 0);
        t.deepEqual(await differences(driver(), wanted), []);
        t.deepEqual([...(await converge(sets, [])).failures.values()].map(codeOf), ['EBUSY']);
        await converge(driver(), []);
        t.is((await converge(sets, [])).failures.size, 0);
      });

      test(title('an aborted write changes nothing'), async (t) => {
        const { driver, save } = await open(t);
        const failures = await driver().apply([createOf('chain-part', TWO_PARTS[0] as ChainPart)], AbortSignal.abort());
        t.deepEqual([...failures.values()].map(codeOf), ['ECANCELED']);
        t.deepEqual(await save(), []);
      });
    }
  }
}
