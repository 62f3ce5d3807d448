/** The set and member drivers against the fake and against the kernel: the same cases, the same answers. */
import test, { type ExecutionContext } from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { createMemberDriver } from '../../agent/kernel/ipset/member.ts';
import { createSetDriver } from '../../agent/kernel/ipset/set.ts';
import { type Cidr, FAMILIES, type Family, families } from '../../agent/model/ip.ts';
import { type IpSet, item, type Member, type MemberPort } from '../../agent/model/items.ts';
import { converge, createOf, differences, removeOf } from '../support/converge.ts';
import { HOSTS, kernelHost } from '../support/netfilter-host.ts';

const signal = new AbortController().signal;

const setOf = (family: Family, fields: Partial<IpSet> = {}): IpSet => ({
  name: `tulle-test-${FAMILIES[family].digit}`,
  type: 'hash:net',
  family,
  maxElements: 1024,
  ...fields,
});

const ENTRIES: Readonly<Record<Family, readonly string[]>> = {
  ipv4: ['0.0.0.0/0', '10.0.0.0/8', '10.1.2.3/32', '192.168.4.0/22'],
  ipv6: ['::/0', 'fd00::/8', 'fd00::1/128', '2001:db8:4::/46'],
};
const HALVES: Readonly<Record<Family, readonly [string, string]>> = {
  ipv4: ['0.0.0.0/1', '128.0.0.0/1'],
  ipv6: ['::/1', '8000::/1'],
};

const membersOf = ({ name }: IpSet, entries: readonly string[]): readonly Member[] =>
  entries.map((entry) => ({ set: name, entry: entry as Cidr }));
const keysOf = (members: readonly Member[]): readonly string[] =>
  members.map((member) => item('member', member).key).sort();
const code = (error: Error | undefined): string | undefined => (error instanceof KernelError ? error.code : undefined);

for (const [hostName, makeHost] of Object.entries(HOSTS)) {
  for (const { family } of families) {
    const title = (what: string) => `${hostName} ${family}: ${what}`;
    const open = async (t: ExecutionContext) => {
      const host = await makeHost(t);
      return { host, sets: createSetDriver(host), members: createMemberDriver(host) };
    };

    test(title('sets and members are made, found again, and removed'), async (t) => {
      const { host, sets, members } = await open(t);
      const set = setOf(family);
      const wanted = membersOf(set, ENTRIES[family]);
      t.is((await converge(sets, [set])).failures.size, 0);
      t.is((await converge(members, wanted)).failures.size, 0);
      // A fresh process reads the same.
      t.deepEqual([...(await createMemberDriver(host).list(signal)).keys()].sort(), keysOf(wanted));
      t.deepEqual(await differences(createSetDriver(host), [set]), []);
      t.is((await converge(members, wanted.slice(2))).failures.size, 0);
      t.deepEqual([...(await members.list(signal)).keys()].sort(), keysOf(wanted.slice(2)));
      t.is((await converge(sets, [])).failures.size, 0);
      t.is((await members.list(signal)).size, 0);
    });

    test(title('adding what is there and removing what is not both succeed'), async (t) => {
      const { sets, members } = await open(t);
      const set = setOf(family, { type: 'hash:ip' });
      const [member] = membersOf(set, [ENTRIES[family][2] as string]) as [Member];
      for (let i = 0; i < 2; i++) {
        t.is((await sets.apply([createOf('set', set)], signal)).size, 0);
        t.is((await members.apply([createOf('member', member)], signal)).size, 0);
      }
      t.deepEqual([...(await members.list(signal)).keys()], [item('member', member).key]);
      for (let i = 0; i < 2; i++) t.is((await members.apply([removeOf('member', member)], signal)).size, 0);
      for (let i = 0; i < 2; i++) t.is((await sets.apply([removeOf('set', set)], signal)).size, 0);
      t.is((await members.apply([removeOf('member', member)], signal)).size, 0, 'from a set that is gone');
    });

    test(title('members with a port are read back, survive another size and go one by one'), async (t) => {
      const { host, sets, members } = await open(t);
      const set = setOf(family, { type: 'hash:ip,port' });
      const entry = (family === 'ipv4' ? '10.0.0.1/32' : 'fd00::1/128') as Cidr;
      const ports: readonly MemberPort[] = [
        { protocol: 'TCP', number: 80 },
        { protocol: 'UDP', number: 80 },
        { protocol: 'SCTP', number: 65_535 },
      ];
      const wanted = ports.map((port): Member => ({ set: set.name, entry, port }));
      await converge(sets, [set]);
      t.is((await converge(members, wanted)).failures.size, 0);
      t.deepEqual([...(await createMemberDriver(host).list(signal)).keys()].sort(), keysOf(wanted));
      t.is((await converge(sets, [{ ...set, maxElements: 4096 }])).failures.size, 0);
      t.is((await converge(members, wanted.slice(1))).changes.length, 1);
      t.deepEqual([...(await members.list(signal)).keys()].sort(), keysOf(wanted.slice(1)));
      const { failures } = await converge(members, [...wanted, { set: set.name, entry }]);
      t.deepEqual([...failures.keys()], [`member ${set.name} ${entry}`], 'a member without a port');
    });

    test(title('a bad member fails alone, with its errno'), async (t) => {
      const { sets, members } = await open(t);
      const set = setOf(family, { type: 'hash:ip' });
      await converge(sets, [set]);
      const good = membersOf(set, [ENTRIES[family][2] as string]);
      const otherFamily = ENTRIES[family === 'ipv4' ? 'ipv6' : 'ipv4'][2] as string;
      const bad = [{ set: 'tulle-none', entry: good[0]?.entry as Cidr }, ...membersOf(set, [otherFamily])] as const;
      const { failures } = await converge(members, [...bad, ...good]);
      t.deepEqual([...failures.keys()].sort(), keysOf(bad));
      t.is(code(failures.get(item('member', bad[0]).key)), 'ENOENT');
      t.regex(failures.get(item('member', bad[1] as Member).key)?.message ?? '', /\(.+\)$/, 'in words');
      t.deepEqual([...(await members.list(signal)).keys()], keysOf(good));
    });

    test(title('a bad set fails alone'), async (t) => {
      const { sets } = await open(t);
      const good = [setOf(family), setOf(family, { name: 'tulle-other' })];
      const foreign = setOf(family, { name: 'tulle-hard', type: 'hash:ip' });
      await converge(sets, [foreign]);
      const clash = setOf(family, { name: 'tulle-hard' });
      const changes = [good[0], clash, good[1]].map((set) => createOf('set', set as IpSet));
      const failures = await sets.apply(changes, signal);
      t.deepEqual([...failures.keys()], ['set tulle-hard']);
      t.is(code(failures.get('set tulle-hard')), 'EEXIST');
      t.is((await sets.list(signal)).size, 3);
    });

    test(title('a full set says so'), async (t) => {
      const { sets, members } = await open(t);
      const set = setOf(family, { type: 'hash:ip', maxElements: 1 });
      await converge(sets, [set]);
      const entries = family === 'ipv4' ? ['10.0.0.1/32', '10.0.0.2/32'] : ['fd00::1/128', 'fd00::2/128'];
      const { failures } = await converge(members, membersOf(set, entries));
      t.deepEqual([...failures.values()].map(code), ['ENOSPC']);
    });

    test(title('another size keeps the members, another type does not'), async (t) => {
      const { sets, members } = await open(t);
      const set = setOf(family);
      const wanted = membersOf(set, ENTRIES[family]);
      await converge(sets, [set]);
      await converge(members, wanted);
      const larger = setOf(family, { maxElements: 4096 });
      t.is((await converge(sets, [larger])).failures.size, 0);
      t.deepEqual([...(await sets.list(signal)).values()], [larger]);
      t.deepEqual([...(await members.list(signal)).keys()].sort(), keysOf(wanted));
      t.is((await converge(sets, [setOf(family, { type: 'hash:ip' })])).failures.size, 0);
      t.is((await members.list(signal)).size, 0);
    });

    test(title('a set that a rule uses can be resized but not destroyed'), async (t) => {
      const { host, sets } = await open(t);
      const set = setOf(family);
      await converge(sets, [set]);
      const file = `${FAMILIES[family].iptables}-legacy-restore`;
      const stdin = `*filter\n-A INPUT -m set --match-set ${set.name} src -j ACCEPT\nCOMMIT\n`;
      await host.run({ file, args: ['--noflush'], stdin, timeoutMs: 10_000 });
      t.is((await converge(sets, [setOf(family, { maxElements: 2048 })])).failures.size, 0);
      t.deepEqual([...(await converge(sets, [])).failures.values()].map(code), ['EBUSY']);
      const { failures } = await converge(sets, [setOf(family, { type: 'hash:ip' })]);
      t.deepEqual([...failures.values()].map(code), ['EBUSY']);
      await host.run({ file, args: ['--noflush'], stdin: stdin.replace('-A INPUT', '-D INPUT'), timeoutMs: 10_000 });
      t.is((await converge(sets, [])).failures.size, 0);
    });

    test(title('the whole and its halves live side by side'), async (t) => {
      const { host, sets, members } = await open(t);
      const set = setOf(family);
      await converge(sets, [set]);
      const [whole, low, high] = membersOf(set, [ENTRIES[family][0] as string, ...HALVES[family]]) as [
        Member,
        Member,
        Member,
      ];
      const cases = [
        [whole],
        [whole, low],
        [low],
        [low, high],
        [whole, low, high],
        [whole],
        [high],
        [],
        [low, high],
        [],
      ];
      for (const wanted of cases) {
        await converge(members, wanted);
        t.deepEqual([...(await members.list(signal)).keys()].sort(), keysOf(wanted));
      }
      // A fresh process takes two halves for the whole until it is asked for them.
      await converge(members, [low, high]);
      const fresh = createMemberDriver(host);
      t.deepEqual([...(await fresh.list(signal)).keys()], keysOf([whole]));
      await converge(fresh, [low, high]);
      t.deepEqual([...(await fresh.list(signal)).keys()].sort(), keysOf([low, high]));
    });

    test(title('only own sets are seen, and what is done by hand shows'), async (t) => {
      const { host, sets, members } = await open(t);
      const set = setOf(family);
      const wanted = membersOf(set, ENTRIES[family].slice(1));
      await converge(sets, [set]);
      await converge(members, wanted);
      const { setFamily } = FAMILIES[family];
      const byHand = (...lines: readonly string[]) =>
        host.run({ file: 'ipset', args: ['restore'], stdin: `${lines.join('\n')}\n`, timeoutMs: 10_000 });
      await byHand(`create foreign hash:ip family ${setFamily} maxelem 10`, `flush ${set.name}`);
      t.deepEqual([...(await sets.list(signal)).keys()], [item('set', set).key]);
      t.deepEqual((await differences(members, wanted)).toSorted(), keysOf(wanted));
      await converge(members, wanted);
      t.deepEqual(await differences(members, wanted), []);
      await byHand(`destroy ${set.name}`);
      t.deepEqual(await differences(sets, [set]), [item('set', set).key]);
    });
  }
}

test('kernel: an altered member counts as missing and is mended', async (t) => {
  const host = await kernelHost(t);
  const [sets, members] = [createSetDriver(host), createMemberDriver(host)];
  const set = setOf('ipv4');
  const wanted = membersOf(set, ['10.0.0.0/8']);
  await converge(sets, [set]);
  await host.run({ file: 'ipset', args: ['add', set.name, '10.0.0.0/8', 'nomatch'], timeoutMs: 10_000 });
  t.deepEqual(await differences(members, wanted), keysOf(wanted));
  await converge(members, wanted);
  t.deepEqual(await differences(members, wanted), []);
  const { stdout } = await host.run({ file: 'ipset', args: ['list', set.name], timeoutMs: 10_000 });
  t.notRegex(stdout, /nomatch/);
});

test('kernel: a hundred thousand members are listed in turns of the event loop', async (t) => {
  const host = await kernelHost(t);
  const sets = createSetDriver(host);
  const set = setOf('ipv4', { maxElements: 131_072 });
  await converge(sets, [set]);
  const entries = Array.from(
    { length: 100_000 },
    (_, i) => `add ${set.name} 10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`,
  );
  await host.run({ file: 'ipset', args: ['restore'], stdin: `${entries.join('\n')}\n`, timeoutMs: 30_000 });
  let last = performance.now();
  let longestMs = 0;
  const timer = setInterval(() => {
    longestMs = Math.max(longestMs, performance.now() - last);
    last = performance.now();
  }, 1);
  const start = performance.now();
  const found = await createMemberDriver(host).list(signal);
  clearInterval(timer);
  t.is(found.size, 100_000);
  t.log(`listed in ${Math.round(performance.now() - start)} ms, longest turn ${Math.round(longestMs)} ms`);
  t.true(longestMs < 1_000, 'a generous bound against blocking for the whole list');
});
