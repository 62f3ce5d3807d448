/** What the driver of pod links promises, held by the fake kernel and by a real one alike. */
import test, { type ExecutionContext } from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { addressPayload } from '../../agent/kernel/netlink/address.ts';
import { nested, parseAttributes, text, u32Of } from '../../agent/kernel/netlink/attributes.ts';
import { dumpLinks, readLink } from '../../agent/kernel/netlink/links.ts';
import { type NetlinkClient, type NetlinkMessage, NLM } from '../../agent/kernel/netlink/message.ts';
import {
  HOST_LINK_LOCAL,
  renderLinkDown,
  renderMtu,
  renderPair,
} from '../../agent/kernel/netlink/pod-link-requests.ts';
import { readStaleRules } from '../../agent/kernel/netlink/pod-routes.ts';
import { IFLA, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { type IpAddress, parseIp } from '../../agent/model/ip.ts';
import type { PodLink } from '../../agent/model/items.ts';
import { macOf } from '../../agent/model/mac.ts';
import { vxlanData } from '../support/fake-links.ts';
import type { FakeNetns } from '../support/fake-netlink.ts';
import { create, holds, hosts, list, type NetlinkHost, remove, update } from '../support/netlink-host.ts';

const ip = (value: string) => parseIp(value) as IpAddress;

const IPS = { IPv4: [ip('10.244.0.2')], IPv6: [ip('fd00::2')], dual: [ip('10.244.0.2'), ip('fd00::2')] } as const;

const podLink = (netns: PodLink['netns'], fields: Partial<PodLink> = {}): PodLink => ({
  name: 'tl0123456789ab',
  alias: 'tulle:pod:default/web',
  hostMac: macOf('host'),
  podMac: macOf('pod'),
  mtuBytes: 1500,
  routeMtuBytes: 1450,
  ifName: 'eth0',
  netns,
  ips: IPS.dual,
  ...fields,
});

const names = async (client: NetlinkClient): Promise<readonly string[]> =>
  (await dumpLinks(client)).map(({ name }) => name);

for (const [kernel, open] of Object.entries(hosts)) {
  const contract = (name: string, run: (t: ExecutionContext, host: NetlinkHost) => Promise<void>) =>
    test(`${kernel}: pod link: ${name}`, async (t) => run(t, await open(t)));

  for (const [families, ips] of Object.entries(IPS)) {
    contract(`${families}: created, both ends are as CHECK wants them`, async (t, host) => {
      const { drivers, describe, newPod, client } = host;
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
    'removed, it is gone at once, and soon in both namespaces',
    async (t, { drivers, newPod, client, reaper, openPod }) => {
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      await remove(drivers['pod-link'], value);
      t.true(await holds(drivers['pod-link']));
      t.false((await readLink(client, value.name))?.up, 'nothing passes any more');
      await reaper.reap();
      t.deepEqual(await names(client), ['lo']);
      t.deepEqual(await names(openPod(value.netns).client), ['lo']);
      await t.notThrowsAsync(remove(drivers['pod-link'], value));
    },
  );

  contract(
    'created again while the former pair awaits its destruction',
    async (t, { drivers, newPod, reaper, describe }) => {
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      await remove(drivers['pod-link'], value);
      await create(drivers['pod-link'], value);
      await reaper.reap();
      t.true(await holds(drivers['pod-link'], value), 'the new pair outlives the old one');
      t.deepEqual(await describe(value), []);
    },
  );

  contract(
    'in a namespace that another attachment has just left, it takes the place of the former pair',
    async (t, { drivers, newPod, reaper, describe, openPod }) => {
      const former = podLink(await newPod());
      await create(drivers['pod-link'], former);
      await remove(drivers['pod-link'], former);
      const value = podLink(former.netns, { name: 'tlfedcba987654', hostMac: macOf('h2'), podMac: macOf('p2') });
      await create(drivers['pod-link'], value);
      await reaper.reap();
      t.true(await holds(drivers['pod-link'], value));
      t.deepEqual(await describe(value), []);
      t.deepEqual(await names(openPod(value.netns).client), ['lo', 'eth0']);
    },
  );

  for (const [families, ips] of Object.entries(IPS)) {
    contract(
      `${families}: a second interface of a pod has routes of its own, and follows the MTU`,
      async (t, { drivers, newPod, describe }) => {
        const first = podLink(await newPod());
        const second = podLink(first.netns, {
          name: 'tlfedcba987654',
          ifName: 'net1',
          hostMac: macOf('h2'),
          podMac: macOf('p2'),
          ips: ips.map((each) => ip(each.replace(/2$/, '3'))),
        });
        await create(drivers['pod-link'], first);
        await create(drivers['pod-link'], second);
        t.deepEqual([await describe(first), await describe(second)], [[], []]);
        const wanted = { ...second, mtuBytes: 1400, routeMtuBytes: 1350 };
        await update(drivers['pod-link'], wanted, second);
        t.deepEqual([await describe(first), await describe(wanted)], [[], []]);
      },
    );

    contract(
      `${families}: what an interface that is gone has left goes when the next one comes`,
      async (t, { drivers, newPod, reaper, describe, openPod }) => {
        const first = podLink(await newPod());
        const further = (last: number, name: string) =>
          podLink(first.netns, {
            name,
            ifName: 'net1',
            hostMac: macOf(`h${last}`),
            podMac: macOf(`p${last}`),
            ips: ips.map((each) => ip(each.replace(/2$/, `${last}`))),
          });
        const [second, third] = [further(3, 'tlfedcba987654'), further(4, 'tlfedcba987655')];
        await create(drivers['pod-link'], first);
        await create(drivers['pod-link'], second);
        await remove(drivers['pod-link'], second);
        await reaper.reap();
        await create(drivers['pod-link'], third);
        const { client } = openPod(first.netns);
        const rules = [];
        for (const family of ['ipv4', 'ipv6'] as const)
          rules.push(...(await readStaleRules(client, new Set(), family)));
        t.deepEqual(
          rules.map((rule) => rule.ip),
          third.ips,
        );
        t.deepEqual([await describe(first), await describe(third)], [[], []]);
      },
    );
  }

  contract('an interface of that name in the pod stays as it is', async (t, { drivers, newPod, openPod, client }) => {
    const value = podLink(await newPod());
    const pod = openPod(value.netns);
    await makeVxlan(pod.client, 'eth0');
    const error = await t.throwsAsync(create(drivers['pod-link'], value), { instanceOf: KernelError });
    t.is(error.code, 'EEXIST');
    t.regex(error.message, /interface eth0 in .* has an interface of that name already/);
    t.deepEqual(await names(client), ['lo']);
    t.is((await readLink(pod.client, 'eth0'))?.kind, 'vxlan');
  });

  contract('a link of that name on the host stays as it is', async (t, { drivers, newPod, openPod, client }) => {
    const value = podLink(await newPod());
    await makeVxlan(client, value.name);
    const error = await t.throwsAsync(create(drivers['pod-link'], value), { instanceOf: KernelError });
    t.is(error.code, 'EEXIST');
    t.regex(error.message, /tl0123456789ab exists and is not Tulle's/);
    await t.throwsAsync(update(drivers['pod-link'], value, value), { instanceOf: KernelError });
    await remove(drivers['pod-link'], value);
    t.is((await readLink(client, value.name))?.kind, 'vxlan');
    t.deepEqual(await names(openPod(value.netns).client), ['lo']);
  });

  contract(
    'a pair that a crash left without its mark is made anew',
    async (t, { drivers, newPod, openPod, client, describe }) => {
      const value = podLink(await newPod());
      const pod = openPod(value.netns);
      await client.request(renderPair(value, pod.fd));
      t.true(await holds(drivers['pod-link']), "it is nobody's");
      await create(drivers['pod-link'], value);
      t.deepEqual(await describe(value), []);
    },
  );

  contract('another MTU reaches both ends', async (t, { drivers, newPod, openPod, describe, client }) => {
    const value = podLink(await newPod());
    await create(drivers['pod-link'], value);
    const before = await readLink(client, value.name);
    const neighbour = { link: value.name, ip: ip('10.244.0.2'), mac: value.podMac };
    await create(drivers.neighbour, neighbour);
    const wanted = { ...value, mtuBytes: 1400, routeMtuBytes: 1350 };
    await update(drivers['pod-link'], wanted, value);
    t.true(await holds(drivers['pod-link'], wanted));
    t.false(await holds(drivers['pod-link'], { ...wanted, routeMtuBytes: 1400 }), 'the host side tells of the routes');
    t.is((await readLink(openPod(value.netns).client, 'eth0'))?.mtuBytes, 1400);
    t.is((await readLink(client, value.name))?.ifindex, before?.ifindex);
    t.deepEqual(await describe(wanted), []);
    t.true(await holds(drivers.neighbour, neighbour), 'the neighbours stay');
  });

  contract('an MTU too small for IPv6 is good enough for IPv4', async (t, { drivers, newPod, describe }) => {
    const value = podLink(await newPod(), { ips: IPS.IPv4, mtuBytes: 1000 });
    await create(drivers['pod-link'], value);
    t.deepEqual(await describe(value), []);
    const wanted = { ...value, mtuBytes: 1450 };
    await update(drivers['pod-link'], wanted, value);
    t.deepEqual(await describe(wanted), []);
    await update(drivers['pod-link'], value, wanted);
    t.deepEqual(await describe(value), []);
  });

  contract('what IPv6 lost to a small MTU comes back', async (t, { drivers, newPod, openPod, describe, client }) => {
    const value = podLink(await newPod());
    await create(drivers['pod-link'], value);
    const small = { ...value, mtuBytes: 1000 };
    const pod = openPod(value.netns).client;
    await client.request(renderMtu(small, (await readLink(client, value.name))?.ifindex ?? 0));
    await pod.request(renderMtu(small, (await readLink(pod, value.ifName))?.ifindex ?? 0));
    const [found] = await list(drivers['pod-link']);
    await update(drivers['pod-link'], value, found as PodLink);
    t.deepEqual(await describe(value), []);
  });

  contract(
    'set down by somebody, it is not what is wanted, and comes up in place',
    async (t, { drivers, newPod, describe, client }) => {
      const value = podLink(await newPod());
      await create(drivers['pod-link'], value);
      const before = await readLink(client, value.name);
      await client.request(renderLinkDown(value, before?.ifindex ?? 0));
      t.false(await holds(drivers['pod-link'], value));
      await update(drivers['pod-link'], value, value);
      t.true(await holds(drivers['pod-link'], value));
      t.is((await readLink(client, value.name))?.ifindex, before?.ifindex);
      t.deepEqual(await describe(value), []);
    },
  );

  contract('opened to advertisements or redirects, it is closed again', async (t, { drivers, newPod, sysctls }) => {
    const value = podLink(await newPod());
    await create(drivers['pod-link'], value);
    for (const setting of ['accept_ra', 'accept_redirects']) {
      sysctls.write(`net/ipv6/conf/${value.name}/${setting}`, '1');
      t.false(await holds(drivers['pod-link'], value));
      await update(drivers['pod-link'], value, value);
      t.true(await holds(drivers['pod-link'], value));
    }
  });

  contract('without fe80::1 it is not what is wanted, and gets it back', async (t, { drivers, newPod, client }) => {
    const value = podLink(await newPod());
    await create(drivers['pod-link'], value);
    const ifindex = (await readLink(client, value.name))?.ifindex ?? 0;
    const payload = addressPayload(HOST_LINK_LOCAL, ifindex, 0);
    await client.request({ type: RTM.DELADDR, payload, operation: 'delete', object: 'fe80::1' });
    t.false(await holds(drivers['pod-link'], value));
    await update(drivers['pod-link'], value, value);
    t.true(await holds(drivers['pod-link'], value));
  });

  contract('lost with everything inside, it is made anew', async (t, { drivers, newPod, describe, client }) => {
    const value = podLink(await newPod());
    await create(drivers['pod-link'], value);
    const facts = await readLink(client, value.name);
    const payload = linkHeader({ ifindex: facts?.ifindex ?? 0 });
    await client.request({ type: RTM.DELLINK, payload, operation: 'delete', object: value.name });
    t.true(await holds(drivers['pod-link']));
    await update(drivers['pod-link'], value, value);
    t.deepEqual(await describe(value), []);
  });

  contract('the longest names of a pod fit', async (t, { drivers, newPod, describe }) => {
    const value = podLink(await newPod(), { alias: `tulle:pod:${'n'.repeat(63)}/${'p'.repeat(253)}` });
    await create(drivers['pod-link'], value);
    t.true(await holds(drivers['pod-link'], value));
    t.deepEqual(await describe(value), []);
  });

  contract('many go in one group, and others stay', async (t, { drivers, newPod, client, reaper }) => {
    const netns = await newPod();
    const values = Array.from({ length: 50 }, (_, n) =>
      podLink(netns, {
        name: `tl0000000000${String(n).padStart(2, '0')}`,
        ifName: `eth${n}`,
        hostMac: macOf(`h${n}`),
        podMac: macOf(`p${n}`),
        ips: [],
      }),
    );
    for (const value of values) await create(drivers['pod-link'], value);
    const [kept, ...removed] = values as [PodLink, ...PodLink[]];
    for (const value of removed) await remove(drivers['pod-link'], value);
    await reaper.reap();
    t.true(await holds(drivers['pod-link'], kept));
    t.deepEqual(await names(client), ['lo', kept.name]);
  });

  contract('what is missing is said', async (t, { drivers, newPod, describe }) => {
    const value = podLink(await newPod());
    t.deepEqual(await describe(value), ['host: interface tl0123456789ab is missing', 'pod: interface eth0 is missing']);
    await create(drivers['pod-link'], value);
    t.deepEqual(await describe({ ...value, ips: [...value.ips, ip('10.244.0.3')] }), [
      'pod: address 10.244.0.3/32 is missing on eth0',
    ]);
    t.is((await list(drivers['pod-link'])).length, 1);
  });
}

test('kernel: pod link: either end has room for one queue each way, whatever the number of CPUs', async (t) => {
  const { drivers, newPod, client, openPod } = await hosts.kernel(t);
  const value = podLink(await newPod());
  await create(drivers['pod-link'], value);
  const ends = [
    [client, value.name],
    [openPod(value.netns).client, value.ifName],
  ] as const;
  for (const [of, name] of ends) {
    const payload = Buffer.concat([linkHeader(), text(IFLA.IFNAME, name)]);
    const [link] = await of.request({ type: RTM.GETLINK, payload, operation: 'read', object: name });
    const attributes = parseAttributes((link as NetlinkMessage).payload, 16);
    const queues = [IFLA.NUM_TX_QUEUES, IFLA.NUM_RX_QUEUES].map((type) => u32Of(attributes.get(type)));
    t.deepEqual(queues, [1, 1], name);
  }
});

for (const [families, ips] of Object.entries(IPS)) {
  const [right, wrong] = families === 'IPv4' ? ['1', '0'] : ['0', '1'];
  test(`kernel: pod link: ${families}: with disable_ipv6 ${wrong} it is not what is wanted`, async (t) => {
    const { drivers, newPod, sysctls, describe } = await hosts.kernel(t);
    const value = podLink(await newPod(), { ips });
    await create(drivers['pod-link'], value);
    const path = `net/ipv6/conf/${value.name}/disable_ipv6`;
    sysctls.write(path, wrong);
    t.false(await holds(drivers['pod-link'], value));
    await update(drivers['pod-link'], value, value);
    t.is(sysctls.read(path), right);
    t.true(await holds(drivers['pod-link'], value));
    t.deepEqual(await describe(value), []);
  });
}

const STEPS = {
  NEWLINK: 'host',
  GETLINK: 'host',
  SETLINK: 'host',
  NEWADDR: 'pod',
  NEWNEIGH: 'pod',
  NEWROUTE: 'pod',
} as const;
for (const [step, where] of Object.entries(STEPS)) {
  test(`fake: pod link: a failure of ${step} in the ${where}'s namespace leaves nothing behind`, async (t) => {
    const { drivers, newPod, fake, openPod, describe } = await hosts.fake(t);
    const value = podLink(await newPod());
    const pod = openPod(value.netns).client as FakeNetns;
    const target = where === 'host' ? (fake as FakeNetns) : pod;
    target.failNext(RTM[step as keyof typeof STEPS], 'ENOBUFS');
    const error = await t.throwsAsync(create(drivers['pod-link'], value), { instanceOf: KernelError });
    t.is(error.code, 'ENOBUFS');
    t.deepEqual([await names(fake as FakeNetns), await names(pod)], [['lo'], ['lo']]);
    await create(drivers['pod-link'], value);
    t.deepEqual(await describe(value), []);
  });
}

test('fake: pod link: one whose removal failed half-way is not taken for a good one', async (t) => {
  const { drivers, newPod, fake, reaper } = await hosts.fake(t);
  const value = podLink(await newPod());
  await create(drivers['pod-link'], value);
  (fake as FakeNetns).failNext(RTM.SETLINK, 'ETIMEDOUT');
  await t.throwsAsync(remove(drivers['pod-link'], value), { instanceOf: KernelError });
  await create(drivers['pod-link'], value);
  await reaper.reap();
  t.true(await holds(drivers['pod-link'], value));
});

test('fake: pod link: a former pair that vanishes while it is looked for is not in the way', async (t) => {
  const { drivers, newPod, fake, describe } = await hosts.fake(t);
  const value = podLink(await newPod());
  (fake as FakeNetns).failNext(RTM.NEWLINK, 'EEXIST');
  await create(drivers['pod-link'], value);
  t.deepEqual(await describe(value), []);
});

async function makeVxlan(client: NetlinkClient, name: string): Promise<void> {
  const info = nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'vxlan'), vxlanData(7, 4789));
  const payload = Buffer.concat([linkHeader(), text(IFLA.IFNAME, name), info]);
  await client.request({ type: RTM.NEWLINK, flags: NLM.CREATE | NLM.EXCL, payload, operation: 'create', object: name });
}
