import test from 'ava';
import { KernelError } from '../errors.ts';
import { text } from './attributes.ts';
import { explainMissingType, Links } from './links.ts';
import type { NetlinkClient, NetlinkMessage } from './message.ts';
import { IFLA, linkHeader, RTM } from './rtnetlink.ts';

const message = (type: number, ifindex: number, name: string): NetlinkMessage => {
  return { type, flags: 0, port: 0, payload: Buffer.concat([linkHeader({ ifindex }), text(IFLA.IFNAME, name)]) };
};

/** Links whose dump shows `dumped`, and during which the monitor says `said`. */
async function refreshed(dumped: readonly NetlinkMessage[], said: readonly NetlinkMessage[]): Promise<Links> {
  const client: Pick<NetlinkClient, 'dump'> = {
    async dump() {
      for (const one of said) links.see(one);
      return dumped;
    },
  };
  const links = new Links(client as NetlinkClient);
  await links.refresh();
  return links;
}

const indexes = (links: Links) => [...links.all()].map(({ ifindex, name }) => `${ifindex} ${name}`).sort();

test('links: what the monitor says during a dump is not undone by it', async (t) => {
  const links = await refreshed(
    [message(RTM.NEWLINK, 5, 'gone'), message(RTM.NEWLINK, 6, 'old'), message(RTM.NEWLINK, 7, 'stays')],
    [message(RTM.DELLINK, 5, 'gone'), message(RTM.NEWLINK, 6, 'new'), message(RTM.NEWLINK, 8, 'added')],
  );
  t.deepEqual(indexes(links), ['6 new', '7 stays', '8 added']);
  t.is(links.byName('gone'), undefined);
  t.is(links.byName('old'), undefined);
  t.is(links.byName('added')?.ifindex, 8);
});

test('links: a late word of a link that another has followed does not hide that', async (t) => {
  const links = await refreshed([message(RTM.NEWLINK, 9, 'a')], [message(RTM.NEWLINK, 5, 'a')]);
  t.is(links.byName('a')?.ifindex, 9);
  links.see(message(RTM.DELLINK, 5, 'a'));
  t.is(links.byName('a')?.ifindex, 9);
});

test('links: what is said of a link before its end is told is understood, though a dump has it no more', async (t) => {
  const dumped = [message(RTM.NEWLINK, 5, 'a'), message(RTM.NEWLINK, 6, 'b')];
  const links = await refreshed(dumped, []);
  dumped.splice(0, 2, message(RTM.NEWLINK, 9, 'a'));
  await links.refresh();
  await links.refresh();
  t.deepEqual([links.byIndex(5)?.name, links.byIndex(6)?.name], ['a', 'b']);
  t.deepEqual([indexes(links), links.byName('b')], [['9 a'], undefined], 'otherwise it is gone');
  t.is(links.see(message(RTM.DELLINK, 5, 'a'))?.name, 'a');
  t.is(links.byIndex(5), undefined);
  t.is(links.byName('a')?.ifindex, 9);
});

test('links: the next dump counts again in full', async (t) => {
  const said = [message(RTM.NEWLINK, 8, 'added')];
  const links = await refreshed([], said);
  t.deepEqual(indexes(links), ['8 added']);
  said.length = 0;
  await links.refresh();
  t.deepEqual(indexes(links), []);
});

test('links: a type that the kernel does not know is told with what to load; other refusals stay', (t) => {
  const refused = new KernelError({
    code: 'EOPNOTSUPP',
    operation: 'create',
    object: 'link tulle.84',
    detail: 'Unknown device type',
  });
  t.is(
    (explainMissingType(refused, 'vxlan', 'modprobe vxlan') as Error).message,
    'cannot create link tulle.84: EOPNOTSUPP (this kernel has no links of the type vxlan: Unknown device type; modprobe vxlan)',
  );
  const other = new KernelError({ code: 'EPERM', operation: 'create', object: 'link tulle.84' });
  t.is(explainMissingType(other, 'vxlan', 'modprobe vxlan'), other);
});
