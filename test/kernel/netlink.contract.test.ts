/** What netlink drivers promise, held by the fake kernel and by a real one alike. */
import test, { type ExecutionContext } from 'ava';
import { isNotFound, KernelError } from '../../agent/kernel/errors.ts';
import { nested, text, u32 } from '../../agent/kernel/netlink/attributes.ts';
import { deleteLinks } from '../../agent/kernel/netlink/group-deletion.ts';
import { dumpLinks, readLink } from '../../agent/kernel/netlink/links.ts';
import { type NetlinkClient, NLM } from '../../agent/kernel/netlink/message.ts';
import { neighbourPayload } from '../../agent/kernel/netlink/neighbour.ts';
import { routePayload } from '../../agent/kernel/netlink/route.ts';
import { AF, IFF_UP, IFLA, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { type Cidr, hostCidr, type IpAddress, parseCidr, parseIp } from '../../agent/model/ip.ts';
import { defaultMetric, type Fdb, type Neighbour, type Route, type VxlanLink } from '../../agent/model/items.ts';
import { type MacAddress, macOf, parseMac } from '../../agent/model/mac.ts';
import { vxlanData } from '../support/fake-links.ts';
import { fdbPayload } from '../support/fake-neighbours.ts';
import { create, holds, hosts, list, type NetlinkHost, remove, update } from '../support/netlink-host.ts';

const ip = (value: string) => parseIp(value) as IpAddress;
const cidr = (value: string) => parseCidr(value) as Cidr;

const vxlan: VxlanLink = {
  type: 'vxlan',
  name: 'tulle.84',
  alias: 'tulle:vxlan',
  mac: macOf('vtep/a'),
  mtuBytes: 1450,
  vni: 84,
  port: 8472,
  local: ip('192.0.2.1'),
  txChecksumOffload: true,
};

/** The same objects in either family. */
const FAMILY_CASES = [
  {
    own: ip('10.244.0.1'),
    peer: ip('10.244.1.1'),
    peerCidr: cidr('10.244.1.0/24'),
    ownCidr: cidr('10.244.0.0/24'),
    end: ip('192.0.2.2'),
    otherEnd: ip('192.0.2.3'),
  },
  {
    own: ip('fd00::1'),
    peer: ip('fd00:1::1'),
    peerCidr: cidr('fd00:1::/64'),
    ownCidr: cidr('fd00::/64'),
    end: ip('2001:db8::2'),
    otherEnd: ip('2001:db8::3'),
  },
] as const;

for (const [kernel, open] of Object.entries(hosts)) {
  const contract = (name: string, run: (t: ExecutionContext, host: NetlinkHost) => Promise<void>) =>
    test(`${kernel}: ${name}`, async (t) => run(t, await open(t)));

  contract(
    'link: nothing is listed at first, then what was created, then nothing',
    async (t, { drivers: { link } }) => {
      t.true(await holds(link));
      await create(link, vxlan);
      t.true(await holds(link, vxlan));
      await create(link, vxlan);
      t.true(await holds(link, vxlan), 'creating again changes nothing');
      await remove(link, vxlan);
      t.true(await holds(link));
      await t.notThrowsAsync(remove(link, vxlan), 'what is gone is removed');
    },
  );

  const inPlace: Readonly<Record<string, Partial<VxlanLink>>> = {
    MTU: { mtuBytes: 1400 },
    'hardware address': { mac: macOf('vtep/b') },
    alias: { alias: 'tulle:other' },
    'local address': { local: ip('192.0.2.9') },
    'checksum offload': { txChecksumOffload: false },
  };
  for (const [what, change] of Object.entries(inPlace)) {
    contract(`link: another ${what} keeps the device`, async (t, { drivers: { link }, client }) => {
      await create(link, vxlan);
      const before = await readLink(client, vxlan.name);
      const wanted = { ...vxlan, ...change };
      await update(link, wanted, vxlan);
      t.true(await holds(link, wanted));
      t.is((await readLink(client, vxlan.name))?.ifindex, before?.ifindex);
    });
  }

  const replaced: Readonly<Record<string, Partial<VxlanLink>>> = {
    VNI: { vni: 85 },
    port: { port: 4789 },
    'family of the tunnel': { local: ip('2001:db8::1') },
  };
  for (const [what, change] of Object.entries(replaced)) {
    contract(`link: another ${what} makes another device`, async (t, { drivers: { link }, client }) => {
      await create(link, vxlan);
      const before = await readLink(client, vxlan.name);
      const wanted = { ...vxlan, ...change };
      await update(link, wanted, vxlan);
      t.true(await holds(link, wanted));
      t.not((await readLink(client, vxlan.name))?.ifindex, before?.ifindex);
    });
  }

  contract(
    'link: one that somebody set down is not what is wanted, and comes up again',
    async (t, { drivers: { link }, client }) => {
      await create(link, vxlan);
      await setDown(client, vxlan.name);
      t.false(await holds(link, vxlan));
      await update(link, vxlan, vxlan);
      t.true(await holds(link, vxlan));
    },
  );

  contract('link: one that forwards nothing is cured in place', async (t, { drivers: { link }, client }) => {
    await create(link, vxlan);
    const ifindex = await ifindexOf(client, vxlan.name);
    const closed = nested(IFLA.AF_SPEC, nested(AF.INET, nested(IFLA.INET_CONF, u32(1, 0))));
    const payload = Buffer.concat([linkHeader({ ifindex }), closed]);
    await client.request({ type: RTM.SETLINK, payload, operation: 'configure', object: vxlan.name });
    t.false(await holds(link, vxlan));
    await update(link, vxlan, vxlan);
    t.true(await holds(link, vxlan));
    t.is(await ifindexOf(client, vxlan.name), ifindex);
  });

  contract('link: a stranger with the name is neither listed nor touched', async (t, { drivers: { link }, client }) => {
    await makeVxlan(client, vxlan.name, 7, 4789);
    t.true(await holds(link));
    const error = await t.throwsAsync(create(link, vxlan), { instanceOf: KernelError });
    t.is(error.code, 'EEXIST');
    t.regex(error.message, /tulle\.84 exists and is not Tulle's.*remove it, or set another VNI/);
    await remove(link, vxlan);
    t.is((await readLink(client, vxlan.name))?.alias, '');
  });

  contract('link: a stranger with the VNI and port is named', async (t, { drivers: { link }, client }) => {
    await makeVxlan(client, 'flannel.84', vxlan.vni, vxlan.port);
    const error = await t.throwsAsync(create(link, vxlan), { instanceOf: KernelError });
    t.is(error.code, 'EEXIST');
    t.regex(error.message, /flannel\.84 has VNI 84 and port 8472 already/);
    t.is(await readLink(client, vxlan.name), undefined);
  });

  contract('link: one that a crash left without its mark is taken up', async (t, { drivers: { link }, client }) => {
    await create(link, vxlan);
    await setAlias(client, vxlan.name, '');
    t.true(await holds(link));
    await create(link, vxlan);
    t.true(await holds(link, vxlan));
  });

  for (const { own, peer, peerCidr, ownCidr, end, otherEnd } of FAMILY_CASES) {
    const family = own.includes(':') ? 'IPv6' : 'IPv4';
    const address = { link: vxlan.name, ip: own, prefixLength: own.includes(':') ? 128 : 32 };
    const neighbour: Neighbour = { link: vxlan.name, ip: peer, mac: macOf('vtep/b') };
    const fdb: Fdb = { link: vxlan.name, mac: macOf('vtep/b'), destination: end };
    const metric = defaultMetric(peerCidr);
    const route: Route = {
      destination: peerCidr,
      metric,
      type: 'unicast',
      link: vxlan.name,
      gateway: peer,
      onlink: true,
      source: own,
    };
    const localEnd = own.includes(':') ? ip('2001:db8::1') : vxlan.local;
    const device = { ...vxlan, local: localEnd };

    contract(`address ${family}: create, change, remove`, async (t, { drivers }) => {
      await create(drivers.link, device);
      await create(drivers.address, address);
      await create(drivers.address, address);
      t.true(await holds(drivers.address, address));
      const wider = { ...address, prefixLength: address.prefixLength - 8 };
      await update(drivers.address, wider, address);
      t.true(await holds(drivers.address, wider), 'the prefix length changes');
      await remove(drivers.address, wider);
      t.true(await holds(drivers.address));
      await t.notThrowsAsync(remove(drivers.address, wider));
    });

    contract(`address ${family}: those of other links are nobody's business`, async (t, { drivers, client }) => {
      await makeVxlan(client, 'other', 7, 4789);
      await t.notThrowsAsync(create(drivers.address, { ...address, link: 'other' }));
      t.true(await holds(drivers.address));
    });

    contract(`neighbour ${family}: create, change, remove`, async (t, { drivers }) => {
      await create(drivers.link, device);
      await create(drivers.neighbour, neighbour);
      await create(drivers.neighbour, neighbour);
      t.true(await holds(drivers.neighbour, neighbour));
      const moved = { ...neighbour, mac: macOf('vtep/c') };
      await update(drivers.neighbour, moved, neighbour);
      t.true(await holds(drivers.neighbour, moved));
      await remove(drivers.neighbour, moved);
      t.true(await holds(drivers.neighbour));
      await t.notThrowsAsync(remove(drivers.neighbour, moved));
    });

    contract(`fdb ${family}: create, change, remove`, async (t, { drivers }) => {
      await create(drivers.link, device);
      await create(drivers.fdb, fdb);
      await create(drivers.fdb, fdb);
      t.true(await holds(drivers.fdb, fdb));
      const moved = { ...fdb, destination: otherEnd };
      await update(drivers.fdb, moved, fdb);
      t.true(await holds(drivers.fdb, moved));
      await remove(drivers.fdb, moved);
      t.true(await holds(drivers.fdb));
      await t.notThrowsAsync(remove(drivers.fdb, moved));
    });

    contract(`fdb ${family}: a stranger's default destination is seen and removed`, async (t, { drivers, client }) => {
      await create(drivers.link, device);
      const ifindex = (await readLink(client, vxlan.name))?.ifindex ?? 0;
      const zero = parseMac('00:00:00:00:00:00') as MacAddress;
      const flags = NLM.CREATE;
      await client.request({
        type: RTM.NEWNEIGH,
        flags,
        payload: fdbPayload(ifindex, zero, end),
        operation: 'create',
        object: 'stranger',
      });
      const [found] = await list(drivers.fdb);
      t.is(found?.mac, zero);
      await remove(drivers.fdb, found as Fdb);
      t.true(await holds(drivers.fdb));
    });

    contract(`route ${family}: create, change in place, remove`, async (t, { drivers }) => {
      await create(drivers.link, device);
      await create(drivers.address, address);
      await create(drivers.route, route);
      await create(drivers.route, route);
      t.true(await holds(drivers.route, route));
      for (const type of ['unreachable', 'blackhole'] as const) {
        const deadEnd: Route = { destination: peerCidr, metric, type };
        await update(drivers.route, deadEnd, route);
        t.true(await holds(drivers.route, deadEnd), type);
        await update(drivers.route, route, deadEnd);
        t.true(await holds(drivers.route, route), `from ${type}`);
      }
      await remove(drivers.route, route);
      t.true(await holds(drivers.route));
      await t.notThrowsAsync(remove(drivers.route, route));
    });

    contract(`route ${family}: two metrics are two routes`, async (t, { drivers }) => {
      await create(drivers.link, device);
      const near: Route = { destination: peerCidr, metric, type: 'unicast', link: vxlan.name };
      const far: Route = { destination: peerCidr, metric: 4_000_000_000, type: 'unreachable' };
      await create(drivers.route, near);
      await create(drivers.route, far);
      t.true(await holds(drivers.route, near, far));
      await remove(drivers.route, near);
      t.true(await holds(drivers.route, far));
      await remove(drivers.route, near);
      t.true(await holds(drivers.route, far), 'removing again takes no other');
    });

    contract(
      `route ${family}: a stranger's of the same destination and metric stays`,
      async (t, { drivers, client }) => {
        await create(drivers.link, device);
        const own: Route = { destination: ownCidr, metric: 77, type: 'blackhole' };
        const payload = routePayload(own, () => 0);
        payload.writeUInt8(3, 5);
        const stranger = {
          type: RTM.NEWROUTE,
          flags: NLM.CREATE | NLM.EXCL,
          payload,
          operation: 'create',
          object: 'stranger',
        };
        await client.request(stranger);
        t.true(await holds(drivers.route));
        const error = await t.throwsAsync(create(drivers.route, own), { instanceOf: KernelError });
        t.is(error.code, 'EEXIST');
        t.regex(error.message, /is not Tulle's/);
        await remove(drivers.route, own);
        t.is(
          (await t.throwsAsync(client.request(stranger), { instanceOf: KernelError })).code,
          'EEXIST',
          'it is still there',
        );
      },
    );

    contract(`route ${family}: what it depends on is missing`, async (t, { drivers }) => {
      const noLink = await t.throwsAsync(create(drivers.route, route), { instanceOf: KernelError });
      t.is(noLink.code, 'ENODEV');
      await create(drivers.link, device);
      const noSource = await t.throwsAsync(create(drivers.route, route), { instanceOf: KernelError });
      t.is(noSource.code, 'EINVAL');
      const offLink = await t.throwsAsync(
        create(drivers.route, {
          ...route,
          onlink: false,
          destination: hostCidr(ip(own.includes(':') ? 'fd09::9' : '10.9.9.9')),
        }),
      );
      t.true(offLink instanceof KernelError);
    });

    contract(`${family}: what a link takes along when it goes down or away`, async (t, { drivers, client }) => {
      await create(drivers.link, device);
      await create(drivers.address, address);
      await create(drivers.fdb, fdb);
      await create(drivers.neighbour, neighbour);
      await create(drivers.route, route);
      await setDown(client, vxlan.name);
      t.true(await holds(drivers.fdb, fdb), 'forwarding entries stay');
      t.true(await holds(drivers.neighbour));
      t.true(await holds(drivers.route));
      t.is((await list(drivers.address)).length, family === 'IPv4' ? 1 : 0);
      await remove(drivers.link, device);
      t.true(await holds(drivers.fdb));
      t.true(await holds(drivers.address));
    });

    contract(`${family}: another MTU takes nothing along`, async (t, { drivers }) => {
      await create(drivers.link, device);
      await create(drivers.address, address);
      await create(drivers.neighbour, neighbour);
      await create(drivers.route, route);
      await update(drivers.link, { ...device, mtuBytes: 1400 }, device);
      t.true(await holds(drivers.address, address));
      t.true(await holds(drivers.neighbour, neighbour));
      t.true(await holds(drivers.route, route));
    });

    contract(`${family}: what goes with an address`, async (t, { drivers }) => {
      const other: Route = {
        destination: cidr(own.includes(':') ? 'fd00:9::/64' : '10.9.0.0/16'),
        metric,
        type: 'unicast',
        link: vxlan.name,
      };
      await create(drivers.link, device);
      await create(drivers.address, address);
      await create(drivers.neighbour, neighbour);
      await create(drivers.route, route);
      await create(drivers.route, other);
      await remove(drivers.address, address);
      const { source: _, ...withoutSource } = route;
      t.true(await (family === 'IPv4' ? holds(drivers.route) : holds(drivers.route, withoutSource, other)));
      t.true(await (family === 'IPv4' ? holds(drivers.neighbour) : holds(drivers.neighbour, neighbour)));
    });

    contract(`${family}: a whole batch, of which one fails`, async (t, { drivers }) => {
      await create(drivers.link, device);
      const wanted = Array.from(
        { length: 200 },
        (_, n): Neighbour => ({
          link: vxlan.name,
          ip: ip(own.includes(':') ? `fd00::${n + 2}` : `10.0.0.${n + 2}`),
          mac: macOf(String(n)),
        }),
      );
      const batch = [...wanted.slice(0, 100), { ...neighbour, link: 'tl0123456789ab' }, ...wanted.slice(100)];
      const changes = batch.map(
        (value) =>
          ({
            action: 'create',
            kind: 'neighbour',
            key: `neighbour ${value.link} ${value.ip}`,
            item: { kind: 'neighbour', key: `neighbour ${value.link} ${value.ip}`, value, needs: [] },
          }) as const,
      );
      const failures = await drivers.neighbour.apply(changes, AbortSignal.timeout(60_000));
      t.deepEqual([...failures.keys()], [`neighbour tl0123456789ab ${neighbour.ip}`]);
      t.true(isNotFound([...failures.values()][0]));
      t.true(await holds(drivers.neighbour, ...wanted));
    });
  }

  contract(
    'neighbour: a device that was replaced meanwhile is found by its new index',
    async (t, { drivers, client }) => {
      const neighbour: Neighbour = { link: vxlan.name, ip: ip('10.244.1.1'), mac: macOf('vtep/b') };
      await create(drivers.link, vxlan);
      await create(drivers.neighbour, neighbour);
      const payload = linkHeader({ ifindex: await ifindexOf(client, vxlan.name) });
      await client.request({ type: RTM.DELLINK, payload, operation: 'delete', object: vxlan.name });
      await create(drivers.link, vxlan);
      await create(drivers.neighbour, neighbour);
      t.true(await holds(drivers.neighbour, neighbour));
    },
  );

  contract('neighbour: only permanent ones on own links are listed', async (t, { drivers, client }) => {
    await makeVxlan(client, 'other', 7, 4789);
    const ifindex = (await readLink(client, 'other'))?.ifindex ?? 0;
    const payload = neighbourPayload(ip('10.0.0.1'), macOf('x'), ifindex);
    await client.request({ type: RTM.NEWNEIGH, flags: NLM.CREATE, payload, operation: 'create', object: 'stranger' });
    await create(drivers.link, vxlan);
    t.true(await holds(drivers.neighbour));
  });

  contract('links: a group that a stranger is in is not deleted', async (t, host) => {
    const { client } = host;
    for (const [n, name] of ['one', 'two', 'stranger'].entries()) await makeVxlan(client, name, n + 1, 4789);
    const [one, two, stranger] = (await dumpLinks(client)).filter(({ kind }) => kind === 'vxlan');
    await setGroup(client, stranger?.ifindex ?? 0, 4711);
    const numbers = [4711, 4712];
    await deleteLinks(client, [one, two] as never, () => numbers.shift() ?? 0);
    t.deepEqual(numbers, [], 'the first number was refused');
    t.deepEqual(
      (await dumpLinks(client)).filter(({ kind }) => kind === 'vxlan').map(({ name }) => name),
      ['stranger'],
    );
  });

  contract('links: a stranger that joins the group in the last moment is spared', async (t, { client }) => {
    for (const [n, name] of ['one', 'two', 'stranger'].entries()) await makeVxlan(client, name, n + 1, 4789);
    const [one, two, stranger] = await vxlans(client);
    const numbers = [4711, 4712];
    const joining: NetlinkClient = {
      request: (request) => client.request(request),
      dump: (request) => client.dump(request),
      async batch(requests) {
        if (numbers.length === 1) await setGroup(client, stranger?.ifindex ?? 0, 4711);
        return client.batch(requests);
      },
      close: () => {},
    };
    await deleteLinks(joining, [one, two] as never, () => numbers.shift() ?? 0);
    t.deepEqual(
      (await vxlans(client)).map(({ name }) => name),
      ['stranger'],
    );
  });

  contract('links: one that was replaced since is not deleted', async (t, { client }) => {
    await makeVxlan(client, 'one', 1, 4789);
    const facts = await readLink(client, 'one');
    if (!facts) return t.fail();
    await deleteLinks(client, [
      { ...facts, alias: 'tulle:pod:default/web' },
      { ...facts, ifindex: facts.ifindex + 1 },
    ]);
    t.truthy(await readLink(client, 'one'));
  });
}

const vxlans = async (client: NetlinkClient) => (await dumpLinks(client)).filter(({ kind }) => kind === 'vxlan');

async function makeVxlan(client: NetlinkClient, name: string, vni: number, port: number): Promise<void> {
  const info = nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'vxlan'), vxlanData(vni, port));
  const payload = Buffer.concat([linkHeader({ flags: IFF_UP, change: IFF_UP }), text(IFLA.IFNAME, name), info]);
  await client.request({ type: RTM.NEWLINK, flags: NLM.CREATE | NLM.EXCL, payload, operation: 'create', object: name });
}

const change = async (client: NetlinkClient, payload: Uint8Array): Promise<void> => {
  await client.request({ type: RTM.SETLINK, payload, operation: 'change', object: 'a link' });
};
const ifindexOf = async (client: NetlinkClient, name: string): Promise<number> =>
  (await readLink(client, name))?.ifindex ?? 0;

const setDown = async (client: NetlinkClient, name: string): Promise<void> =>
  change(client, linkHeader({ ifindex: await ifindexOf(client, name), change: IFF_UP }));
const setAlias = async (client: NetlinkClient, name: string, alias: string): Promise<void> =>
  change(client, Buffer.concat([linkHeader({ ifindex: await ifindexOf(client, name) }), text(IFLA.IFALIAS, alias)]));
const setGroup = (client: NetlinkClient, ifindex: number, group: number): Promise<void> =>
  change(client, Buffer.concat([linkHeader({ ifindex }), u32(IFLA.GROUP, group)]));
