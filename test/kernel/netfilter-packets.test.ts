/** Rules and members as packets meet them: two namespaces, one wire, both back ends, both families. */
import test from 'ava';
import { createMemberDriver } from '../../agent/kernel/ipset/member.ts';
import { createSetDriver } from '../../agent/kernel/ipset/set.ts';
import { type BackendName, describeBackend } from '../../agent/kernel/iptables/backend.ts';
import { createChainDriver } from '../../agent/kernel/iptables/chain.ts';
import { FAMILIES, families, hostCidr, type IpAddress } from '../../agent/model/ip.ts';
import type { ChainPart } from '../../agent/model/items.ts';
import { converge } from '../support/converge.ts';
import { netfilterOf } from '../support/netfilter-host.ts';
import { connect, createNetns, type Netns } from '../support/netns.ts';

const ADDRESS = { ipv4: ['10.66.0.1', '10.66.0.2'], ipv6: ['fd66::1', 'fd66::2'] } as const;

const answers = async (from: Netns, to: string): Promise<boolean> => {
  try {
    await from.run('ping', '-n', '-c', '1', '-W', '1', to);
    return true;
  } catch {
    return false;
  }
};

for (const backendName of ['nft', 'legacy'] satisfies BackendName[]) {
  test(`${backendName}: a rule drops and counts, and a set's member decides at once`, async (t) => {
    const [a, b] = [await createNetns(t, 'a'), await createNetns(t, 'b')];
    const end = (netns: Netns, i: 0 | 1) => ({
      netns,
      link: 'eth0',
      addresses: families.map(({ family }) => `${ADDRESS[family][i]}/${family === 'ipv4' ? 24 : 64}`),
    });
    await connect(end(a, 0), end(b, 1));
    const { run, client } = netfilterOf(t, b);
    const backend = await describeBackend(run, backendName, 'test');
    const [sets, members, chains] = [
      createSetDriver({ run, client }),
      createMemberDriver({ client }),
      createChainDriver({ run, backend }),
    ];
    const setOf = (digit: string) => `tulle-test-${digit}`;
    await converge(
      sets,
      families.map(({ family, digit }) => ({ name: setOf(digit), type: 'hash:ip', family, maxElements: 16 }) as const),
    );
    const parts = families.map(
      ({ family, digit }): ChainPart => ({
        family,
        table: 'filter',
        chain: 'TULLE-INPUT',
        order: '10-drop',
        rules: [{ args: ['-m', 'set', '--match-set', setOf(digit), 'src', '-j', 'DROP'], comment: 'packet test' }],
      }),
    );
    t.is((await converge(chains, parts)).failures.size, 0);
    for (const { family, digit } of families) {
      const [own, peer] = ADDRESS[family];
      t.true(await answers(a, peer), `${family}: before`);
      const member = { set: setOf(digit), entry: hostCidr(own as IpAddress) };
      t.is((await converge(members, [member])).failures.size, 0);
      t.false(await answers(a, peer), `${family}: the member is dropped`);
      const { stdout } = await run({
        file: backend.commands[family].save,
        args: ['-c', '-t', 'filter'],
        timeoutMs: 10_000,
      });
      t.regex(
        stdout,
        new RegExp(`^\\[[1-9]\\d*:\\d+\\] -A TULLE-INPUT -m set --match-set ${setOf(FAMILIES[family].digit)} src`, 'm'),
      );
      t.is((await converge(members, [])).failures.size, 0);
      t.true(await answers(a, peer), `${family}: after`);
    }
  });
}
