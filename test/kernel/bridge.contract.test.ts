/** What drivers promise of the bridge and of pod links that are its ports, held by the fake kernel and by a real one alike. */
import test, { type ExecutionContext } from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { nested, text, u8, u32 } from '../../agent/kernel/netlink/attributes.ts';
import { readLink } from '../../agent/kernel/netlink/links.ts';
import { type NetlinkClient, NLM } from '../../agent/kernel/netlink/message.ts';
import { IFF_UP, IFLA, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { type IpAddress, parseIp } from '../../agent/model/ip.ts';
import type { BridgeLink, Fdb, PodBridge, PodLink } from '../../agent/model/items.ts';
import { bridgeMac } from '../../agent/model/kernel-names.ts';
import { macOf } from '../../agent/model/mac.ts';
import { create, holds, hosts, list, type NetlinkHost, remove, update } from '../support/netlink-host.ts';

const ip = (value: string) => parseIp(value) as IpAddress;

const bridge: BridgeLink = {
  type: 'bridge',
  name: 'tulle0',
  alias: 'tulle:bridge',
  mac: bridgeMac('a'),
  mtuBytes: 1450,
};

const seen: PodBridge = {
  name: bridge.name,
  mac: bridge.mac,
  gateways: [
    { ip: ip('10.244.0.1'), prefixLength: 24 },
    { ip: ip('fd00::1'), prefixLength: 64 },
  ],
};

const podLink = (netns: PodLink['netns'], fields: Partial<PodLink> = {}): PodLink => ({
  name: 'tl0123456789ab',
  alias: 'tulle:pod:default/web',
  hostMac: macOf('host'),
  podMac: macOf('pod'),
  mtuBytes: 1500,
  routeMtuBytes: 1450,
  ifName: 'eth0',
  netns,
  ips: [ip('10.244.0.2'), ip('fd00::2')],
  bridge: seen,
  ...fields,
});

for (const [kernel, open] of Object.entries(hosts)) {
  const contract = (name: string, run: (t: ExecutionContext, host: NetlinkHost) => Promise<void>) =>
    test(`${kernel}: ${name}`, async (t) => run(t, await open(t)));

  contract('bridge: created, listed, created again, removed', async (t, { drivers: { link } }) => {
    await create(link, bridge);
    t.true(await holds(link, bridge));
    await create(link, bridge);
    t.true(await holds(link, bridge), 'creating again changes nothing');
    await remove(link, bridge);
    t.true(await holds(link));
    await t.notThrowsAsync(remove(link, bridge));
  });

  const inPlace: Readonly<Record<string, Partial<BridgeLink>>> = {
    MTU: { mtuBytes: 1400 },
    'hardware address': { mac: bridgeMac('b') },
    alias: { alias: 'tulle:other' },
  };
  for (const [what, change] of Object.entries(inPlace)) {
    contract(`bridge: another ${what} keeps the device`, async (t, { drivers: { link }, client }) => {
      await create(link, bridge);
      const before = await readLink(client, bridge.name);
      const wanted = { ...bridge, ...change };
      await update(link, wanted, bridge);
      t.true(await holds(link, wanted));
      t.is((await readLink(client, bridge.name))?.ifindex, before?.ifindex);
    });
  }

  const settings: Readonly<Record<string, Buffer>> = { stp_state: u32(5, 1), mcast_snooping: u8(23, 1) };
  for (const [name, setting] of Object.entries(settings)) {
    contract(`bridge: ${name} that somebody switched on is cured in place`, async (t, { drivers, client }) => {
      await create(drivers.link, bridge);
      const before = await readLink(client, bridge.name);
      const info = nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'bridge'), nested(IFLA.INFO_DATA, setting));
      await request(client, RTM.NEWLINK, linkHeader({ ifindex: before?.ifindex ?? 0 }), info);
      t.like((await list(drivers.link))[0], { altered: `has ${name} on` });
      await update(drivers.link, bridge, bridge);
      t.true(await holds(drivers.link, bridge));
      t.is((await readLink(client, bridge.name))?.ifindex, before?.ifindex);
    });
  }

  contract(
    'bridge: a stranger with the name is neither listed nor touched',
    async (t, { drivers: { link }, client }) => {
      const info = nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'bridge'));
      await request(client, RTM.NEWLINK, linkHeader(), text(IFLA.IFNAME, bridge.name), info);
      t.true(await holds(link));
      const error = await t.throwsAsync(create(link, bridge), { instanceOf: KernelError });
      t.regex(error.message, /tulle0 exists and is not Tulle's.*remove it, or set podLink to routed/);
      await remove(link, bridge);
      t.is((await readLink(client, bridge.name))?.kind, 'bridge');
    },
  );

  const IPS = { IPv4: [ip('10.244.0.2')], IPv6: [ip('fd00::2')], dual: [ip('10.244.0.2'), ip('fd00::2')] };
  for (const [families, ips] of Object.entries(IPS)) {
    contract(`bridged pod link: ${families}: created, both ends are as CHECK wants them`, async (t, host) => {
      const { drivers, describe, newPod, client } = host;
      await create(drivers.link, bridge);
      const value = podLink(await newPod(), { ips });
      await create(drivers['pod-link'], value);
      t.true(await holds(drivers['pod-link'], value));
      t.deepEqual(await describe(value), []);
      const before = await readLink(client, value.name);
      await create(drivers['pod-link'], value);
      t.is((await readLink(client, value.name))?.ifindex, before?.ifindex, 'creating again changes nothing');
    });
  }

  contract('bridged pod link: without the bridge there is none', async (t, { drivers, newPod, client }) => {
    const value = podLink(await newPod());
    const error = await t.throwsAsync(create(drivers['pod-link'], value), { instanceOf: KernelError });
    t.is(error.code, 'ENODEV');
    t.regex(error.message, /bridge tulle0/);
    t.is(await readLink(client, value.name), undefined, 'nothing is left');
  });

  contract(
    'bridged pod link: off the bridge it is not what is wanted, and goes back in place',
    async (t, { drivers, newPod, client, describe }) => {
      await create(drivers.link, bridge);
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      const before = await readLink(client, value.name);
      await request(client, RTM.SETLINK, linkHeader({ ifindex: before?.ifindex ?? 0 }), u32(IFLA.MASTER, 0));
      t.false(await holds(drivers['pod-link'], value));
      t.deepEqual(await describe(value), [`host: interface ${value.name} is no port of tulle0`]);
      await update(drivers['pod-link'], value, value);
      t.true(await holds(drivers['pod-link'], value));
      t.is((await readLink(client, value.name))?.ifindex, before?.ifindex);
      t.deepEqual(await describe(value), []);
    },
  );

  contract('bridged pod link: it outlives its bridge, and joins the next', async (t, { drivers, newPod, describe }) => {
    await create(drivers.link, bridge);
    const value = podLink(await newPod());
    await create(drivers['pod-link'], value);
    await remove(drivers.link, bridge);
    t.false(await holds(drivers['pod-link'], value));
    await create(drivers.link, bridge);
    await update(drivers['pod-link'], value, value);
    t.true(await holds(drivers['pod-link'], value));
    t.deepEqual(await describe(value), []);
  });

  contract(
    'a routed pod link that somebody made a port is taken off',
    async (t, { drivers, newPod, client, describe }) => {
      await create(drivers.link, bridge);
      const { bridge: _, ...value } = podLink(await newPod());
      await create(drivers['pod-link'], value);
      const [port, master] = [await readLink(client, value.name), await readLink(client, bridge.name)];
      const attribute = u32(IFLA.MASTER, master?.ifindex ?? 0);
      await request(client, RTM.SETLINK, linkHeader({ ifindex: port?.ifindex ?? 0 }), attribute);
      t.false(await holds(drivers['pod-link'], value));
      t.true((await describe(value)).includes(`host: interface ${value.name} is a port of a bridge`));
      await update(drivers['pod-link'], value, value);
      t.true(await holds(drivers['pod-link'], value));
      t.deepEqual(await describe(value), []);
    },
  );

  const portSettings: Readonly<Record<string, readonly [type: number, value: number]>> = {
    'hairpin 0': [4, 0],
    'learning 1': [8, 1],
    'flood 1': [9, 1],
    'proxy_arp 1': [10, 1],
    'mcast_flood 1': [27, 1],
    'bcast_flood 1': [30, 1],
    'isolated 0': [33, 0],
    'locked 0': [39, 0],
  };
  contract(
    'bridged pod link: each setting of its port is seen and cured',
    async (t, { drivers, newPod, client, describe }) => {
      await create(drivers.link, bridge);
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      const { ifindex = 0 } = (await readLink(client, value.name)) ?? {};
      for (const [altered, [type, setting]] of Object.entries(portSettings)) {
        const slave = [text(IFLA.INFO_SLAVE_KIND, 'bridge'), nested(IFLA.INFO_SLAVE_DATA, u8(type, setting))];
        await request(client, RTM.NEWLINK, linkHeader({ ifindex }), nested(IFLA.LINKINFO, ...slave));
        t.like((await list(drivers['pod-link']))[0], { altered: `has ${altered}` });
        t.deepEqual(await describe(value), [`host: interface ${value.name} has ${altered}`]);
        await update(drivers['pod-link'], value, value);
        t.true(await holds(drivers['pod-link'], value), altered);
      }
    },
  );

  contract('bridged pod link: removed, it is gone at once', async (t, { drivers, newPod, client, reaper }) => {
    await create(drivers.link, bridge);
    const value = podLink(await newPod());
    await create(drivers['pod-link'], value);
    await remove(drivers['pod-link'], value);
    t.true(await holds(drivers['pod-link']));
    t.false((await readLink(client, value.name))?.up);
    await reaper.reap();
    t.is(await readLink(client, value.name), undefined);
    t.true(await holds(drivers.link, bridge), 'the bridge stays as it is, its MTU too');
  });

  contract(
    'fdb entry of a port: create, remove, and what goes with the port',
    async (t, { drivers, newPod, client }) => {
      await create(drivers.link, bridge);
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      t.true(await holds(drivers.fdb), "the kernel's own entries are nobody's business");
      const entry: Fdb = { link: value.name, mac: value.podMac };
      await create(drivers.fdb, entry);
      await create(drivers.fdb, entry);
      t.true(await holds(drivers.fdb, entry));
      await remove(drivers.fdb, entry);
      t.true(await holds(drivers.fdb));
      await t.notThrowsAsync(remove(drivers.fdb, entry));
      await create(drivers.fdb, entry);
      const { ifindex = 0 } = (await readLink(client, value.name)) ?? {};
      await request(client, RTM.SETLINK, linkHeader({ ifindex, change: IFF_UP }));
      t.true(await holds(drivers.fdb, entry), 'it survives a link that goes down');
      await request(client, RTM.SETLINK, linkHeader({ ifindex }), u32(IFLA.MASTER, 0));
      t.true(await holds(drivers.fdb), 'it goes when the port leaves the bridge');
    },
  );
}

async function request(client: NetlinkClient, type: number, ...parts: readonly Buffer[]): Promise<void> {
  const flags = type === RTM.NEWLINK && parts[0]?.readInt32LE(4) === 0 ? NLM.CREATE | NLM.EXCL : 0;
  await client.request({ type, flags, payload: Buffer.concat(parts), operation: 'disturb', object: 'a test' });
}
