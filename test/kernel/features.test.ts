/** The questions that features.ts asks of a kernel, asked of this one. */
import { readlinkSync } from 'node:fs';
import test from 'ava';
import { execa } from 'execa';
import { probeKernel } from '../../agent/kernel/features.ts';
import { RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { type IpAddress, parseIp } from '../../agent/model/ip.ts';
import type { Link } from '../../agent/model/items.ts';
import { macOf } from '../../agent/model/mac.ts';
import type { FakeNetns } from '../support/fake-netlink.ts';
import { create, holds, hosts } from '../support/netlink-host.ts';

const outside = async () => [readlinkSync('/proc/self/ns/net'), (await execa('ip', ['-o', 'link'])).stdout];

test('a kernel that runs these tests has every feature, and trying leaves this namespace as it was', async (t) => {
  const before = await outside();
  const features = await probeKernel();
  t.deepEqual(
    features.filter(({ state }) => state !== 'supported'),
    [],
  );
  t.deepEqual(await outside(), before);
});

/** Those that rtnetlink makes. */
const LINKS: Readonly<Record<Exclude<Link['type'], 'tun'>, Link>> = {
  vxlan: {
    type: 'vxlan',
    name: 'tulle.84',
    alias: 'tulle:vxlan',
    mac: macOf('vtep/a'),
    mtuBytes: 1450,
    vni: 84,
    port: 8472,
    local: parseIp('192.0.2.1') as IpAddress,
    txChecksumOffload: true,
  },
  bridge: { type: 'bridge', name: 'tulle0', alias: 'tulle:bridge', mac: macOf('bridge'), mtuBytes: 1450 },
};

for (const [type, value] of Object.entries(LINKS)) {
  test(`fake: a kernel without links of the type ${type}: the error says what to load`, async (t) => {
    const { drivers, fake } = await hosts.fake(t);
    (fake as FakeNetns).failNext(RTM.NEWLINK, 'EOPNOTSUPP');
    await t.throwsAsync(create(drivers.link, value), {
      code: 'EOPNOTSUPP',
      message: new RegExp(`modprobe ${type}, or set`),
    });
    await create(drivers.link, value);
    t.true(await holds(drivers.link, value), 'once it is loaded');
  });
}
