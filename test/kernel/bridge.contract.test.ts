/** What drivers promise of the bridge and of the links of bridged pods, held by the fake kernel and by a real one alike. */
import test, { type ExecutionContext } from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { attribute, nested, text, u32 } from '../../agent/kernel/netlink/attributes.ts';
import { readLink } from '../../agent/kernel/netlink/links.ts';
import { type NetlinkClient, NLM } from '../../agent/kernel/netlink/message.ts';
import { IFLA, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { type IpAddress, parseIp } from '../../agent/model/ip.ts';
import type { BridgeLink, PodBridge, PodLink } from '../../agent/model/items.ts';
import { bridgeMac } from '../../agent/model/kernel-names.ts';
import { macBytes, macOf } from '../../agent/model/mac.ts';
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
  hostMac: bridge.mac,
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

  contract(
    'bridged pod link: the bridge may come and go, and has no port of it',
    async (t, { drivers, newPod, client, describe }) => {
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      await create(drivers.link, bridge);
      t.is((await readLink(client, value.name))?.masterIfindex, 0);
      await remove(drivers.link, bridge);
      t.true(await holds(drivers['pod-link'], value));
      t.deepEqual(await describe(value), []);
    },
  );

  contract(
    'bridged pod link: one that is a port, as an earlier version made it, is taken off in place',
    async (t, { drivers, newPod, client, describe }) => {
      await create(drivers.link, bridge);
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      const [link, master] = [await readLink(client, value.name), await readLink(client, bridge.name)];
      const header = linkHeader({ ifindex: link?.ifindex ?? 0 });
      const mac = attribute(IFLA.ADDRESS, macBytes(macOf('host')));
      await request(client, RTM.SETLINK, header, mac, u32(IFLA.MASTER, master?.ifindex ?? 0));
      t.like((await list(drivers['pod-link']))[0], { altered: 'is a port of another link' });
      t.true((await describe(value)).includes(`host: interface ${value.name} is a port of another link`));
      await update(drivers['pod-link'], value, value);
      t.true(await holds(drivers['pod-link'], value));
      t.deepEqual(await describe(value), []);
      t.is((await readLink(client, value.name))?.ifindex, link?.ifindex);
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
}

async function request(client: NetlinkClient, type: number, ...parts: readonly Buffer[]): Promise<void> {
  const flags = type === RTM.NEWLINK && parts[0]?.readInt32LE(4) === 0 ? NLM.CREATE | NLM.EXCL : 0;
  await client.request({ type, flags, payload: Buffer.concat(parts), operation: 'disturb', object: 'a test' });
}
