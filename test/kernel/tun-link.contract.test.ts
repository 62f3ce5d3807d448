/** What the link type `tun` promises, held by the fake kernel and by a real one alike; and what only a real one can show. */
import { closeSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { nested, text, u32 } from '../../agent/kernel/netlink/attributes.ts';
import { readLink } from '../../agent/kernel/netlink/links.ts';
import { type NetlinkClient, NLM } from '../../agent/kernel/netlink/message.ts';
import { AF, IFF_UP, IFLA, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { attachTun } from '../../agent/kernel/netlink/tun.ts';
import { defaultMetric, type Route, type TunLink } from '../../agent/model/items.ts';
import { TUN_LINK_NAME } from '../../agent/model/kernel-names.ts';
import { cidr, ip } from '../support/cluster-values.ts';
import { create, holds, hosts, list, type NetlinkHost, remove, update } from '../support/netlink-host.ts';

const tun: TunLink = { type: 'tun', name: TUN_LINK_NAME, alias: 'tulle:tun', mtuBytes: 1460 };
const link = tun.name;

const addresses = [
  { link, ip: ip('10.84.0.1'), prefixLength: 32 },
  { link, ip: ip('fd84::1'), prefixLength: 128 },
] as const;
const routes: readonly Route[] = [
  { destination: cidr('10.84.1.0/24'), metric: 0, type: 'unicast', link, source: ip('10.84.0.1') },
  {
    destination: cidr('fd84:0:0:1::/64'),
    metric: defaultMetric(cidr('fd84:0:0:1::/64')),
    type: 'unicast',
    link,
    source: ip('fd84::1'),
  },
];

async function createAll({ drivers }: NetlinkHost): Promise<void> {
  await create(drivers.link, tun);
  for (const address of addresses) await create(drivers.address, address);
  for (const route of routes) await create(drivers.route, route);
}

async function assertAll(t: ExecutionContext, { drivers }: NetlinkHost, when: string): Promise<void> {
  t.true(await holds(drivers.address, ...addresses), `addresses ${when}`);
  t.true(await holds(drivers.route, ...routes), `routes ${when}`);
}

for (const [kernel, open] of Object.entries(hosts)) {
  const contract = (name: string, run: (t: ExecutionContext, host: NetlinkHost) => Promise<void>) =>
    test(`${kernel}: ${name}`, async (t) => run(t, await open(t)));

  contract('tun: nothing at first, then what was created, then nothing', async (t, { drivers }) => {
    t.true(await holds(drivers.link));
    await create(drivers.link, tun);
    t.true(await holds(drivers.link, tun));
    await create(drivers.link, tun);
    t.true(await holds(drivers.link, tun), 'creating again changes nothing');
    await remove(drivers.link, tun);
    t.true(await holds(drivers.link));
    await t.notThrowsAsync(remove(drivers.link, tun), 'what is gone is removed');
  });

  const inPlace: Readonly<Record<string, Partial<TunLink>>> = { MTU: { mtuBytes: 1400 }, alias: { alias: 'tulle:x' } };
  for (const [what, change] of Object.entries(inPlace)) {
    contract(`tun: another ${what} keeps device, addresses and routes`, async (t, host) => {
      const { drivers, client } = host;
      await createAll(host);
      const before = await readLink(client, link);
      const wanted = { ...tun, ...change };
      await update(drivers.link, wanted, tun);
      t.true(await holds(drivers.link, wanted));
      t.is((await readLink(client, link))?.ifindex, before?.ifindex);
      await assertAll(t, host, 'after it');
    });
  }

  contract('tun: set down by somebody, it comes up again in place', async (t, { drivers, client }) => {
    await create(drivers.link, tun);
    const before = await readLink(client, link);
    await disturb(client, RTM.SETLINK, linkHeader({ ifindex: before?.ifindex ?? 0, change: IFF_UP }));
    t.false(await holds(drivers.link, tun));
    await update(drivers.link, tun, tun);
    t.true(await holds(drivers.link, tun));
    t.is((await readLink(client, link))?.ifindex, before?.ifindex);
  });

  contract('tun: one that forwards nothing is cured in place', async (t, { drivers, client }) => {
    await create(drivers.link, tun);
    const { ifindex = 0 } = (await readLink(client, link)) ?? {};
    const closed = nested(IFLA.AF_SPEC, nested(AF.INET, nested(IFLA.INET_CONF, u32(1, 0))));
    await disturb(client, RTM.SETLINK, linkHeader({ ifindex }), closed);
    t.false(await holds(drivers.link, tun));
    await update(drivers.link, tun, tun);
    t.true(await holds(drivers.link, tun));
  });

  contract(
    'tun: a link of another type with the name is neither listed nor touched',
    async (t, { drivers, client }) => {
      const info = nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'bridge'));
      await disturb(client, RTM.NEWLINK, linkHeader(), text(IFLA.IFNAME, link), info);
      t.true(await holds(drivers.link));
      const error = await t.throwsAsync(create(drivers.link, tun), { instanceOf: KernelError, code: 'EEXIST' });
      t.regex(error.message, /tulle-tun exists and is not Tulle's.*remove it/);
      await remove(drivers.link, tun);
      t.is((await readLink(client, link))?.kind, 'bridge');
    },
  );

  contract('tun: one that a crash left without its mark is taken up', async (t, { drivers, client }) => {
    await create(drivers.link, tun);
    const { ifindex = 0 } = (await readLink(client, link)) ?? {};
    await disturb(client, RTM.SETLINK, linkHeader({ ifindex }), text(IFLA.IFALIAS, ''));
    t.true(await holds(drivers.link));
    await create(drivers.link, tun);
    t.true(await holds(drivers.link, tun));
  });

  contract('tun: what it takes along when it goes', async (t, host) => {
    await createAll(host);
    await assertAll(t, host, 'at first');
    await remove(host.drivers.link, tun);
    t.true(await holds(host.drivers.address));
    t.true(await holds(host.drivers.route));
  });
}

/** Attached as the agent is, in the namespace of the host. */
function attach(t: ExecutionContext, { inside }: NetlinkHost): () => void {
  const fd = inside?.(() => attachTun(link)) as number;
  let isOpen = true;
  const detach = (): void => {
    if (isOpen) closeSync(fd);
    isOpen = false;
  };
  t.teardown(detach);
  return detach;
}

test('kernel: addresses and routes of both families outlive whoever has the device open', async (t) => {
  const host = await hosts.kernel(t);
  await createAll(host);
  const detach = attach(t, host);
  await assertAll(t, host, 'while it is open');
  detach();
  await assertAll(t, host, 'after it was closed');
  t.true(await holds(host.drivers.link, tun), 'without a carrier it is not down');
  attach(t, host)();
  await assertAll(t, host, 'after it was opened again');
});

test('kernel: MTU, alias and addresses change while somebody has the device open; it is taken away from him', async (t) => {
  const host = await hosts.kernel(t);
  await createAll(host);
  attach(t, host);
  const wanted = { ...tun, mtuBytes: 1280, alias: 'tulle:other' };
  await update(host.drivers.link, wanted, tun);
  t.true(await holds(host.drivers.link, wanted));
  await remove(host.drivers.address, addresses[0]);
  t.is((await list(host.drivers.address)).length, 1);
  await remove(host.drivers.link, wanted);
  t.true(await holds(host.drivers.link));
});

test('kernel: a second one that opens the device is told that it is busy', async (t) => {
  const host = await hosts.kernel(t);
  await create(host.drivers.link, tun);
  attach(t, host);
  t.throws(() => attach(t, host), { instanceOf: KernelError, code: 'EBUSY', message: /another process has it open/ });
});

test('kernel: to open a device that is not there makes none', async (t) => {
  const host = await hosts.kernel(t);
  t.throws(() => attach(t, host), { instanceOf: KernelError, code: 'ENODEV', message: /no persistent TUN device/ });
  t.is(await readLink(host.client, link), undefined);
});

/** Devices that another program makes with the name, by `ip tuntap`. */
const STRANGERS: Readonly<Record<string, readonly string[]>> = {
  'a TAP device': ['mode', 'tap', 'user', '0'],
  'may be opened by others than root': ['mode', 'tun'],
  'has several queues': ['mode', 'tun', 'user', '0', 'multi_queue'],
};
for (const [altered, args] of Object.entries(STRANGERS)) {
  test(`kernel: with its name, what ${altered}: a stranger's stays, one with the mark is made anew`, async (t) => {
    const { drivers, client, inside } = await hosts.kernel(t);
    const { execaSync } = await import('execa');
    inside?.(() => execaSync('ip', ['tuntap', 'add', 'dev', link, ...args]));
    t.true(await holds(drivers.link));
    await t.throwsAsync(create(drivers.link, tun), { code: 'EEXIST', message: /is not Tulle's/ });
    const { ifindex = 0 } = (await readLink(client, link)) ?? {};
    await disturb(client, RTM.SETLINK, linkHeader({ ifindex }), text(IFLA.IFALIAS, tun.alias));
    const [found] = await list(drivers.link);
    t.regex((found as { altered?: string }).altered ?? '', new RegExp(altered));
    await update(drivers.link, tun, tun);
    t.true(await holds(drivers.link, tun));
    t.not((await readLink(client, link))?.ifindex, ifindex);
  });
}

async function disturb(client: NetlinkClient, type: number, ...parts: readonly Buffer[]): Promise<void> {
  const flags = type === RTM.NEWLINK && parts[0]?.readInt32LE(4) === 0 ? NLM.CREATE | NLM.EXCL : 0;
  await client.request({ type, flags, payload: Buffer.concat(parts), operation: 'disturb', object: 'a test' });
}
