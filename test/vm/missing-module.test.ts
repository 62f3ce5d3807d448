/** What is said when the kernel's module is not installed. Only in the guest, which may lose one: its files are its own. */
import { existsSync, readFileSync, renameSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { execa } from 'execa';
import { isUnsupported } from '../../agent/kernel/errors.ts';
import { probeKernel } from '../../agent/kernel/features.ts';
import { type IpAddress, parseIp } from '../../agent/model/ip.ts';
import type { VxlanLink } from '../../agent/model/items.ts';
import { macOf } from '../../agent/model/mac.ts';
import { create, holds, hosts } from '../support/netlink-host.ts';

const isGuest = readFileSync('/proc/cmdline', 'latin1').split(/\s/).includes('tulle.vm');

const MODULE = join('/lib/modules', release(), 'kernel/drivers/net/vxlan/vxlan.ko');
const AWAY = `${MODULE}.away`;

const vxlan: VxlanLink = {
  type: 'vxlan',
  name: 'tulle.84',
  alias: 'tulle:vxlan',
  mac: macOf('vtep/a'),
  mtuBytes: 1450,
  vni: 84,
  port: 8472,
  local: parseIp('192.0.2.1') as IpAddress,
  txChecksumOffload: true,
};

test('a module that is not installed is named with the remedy, and loaded by the kernel once it is there', async (t) => {
  if (!isGuest) return t.fail('expected the guest of `npm run test:vm`, got a machine whose modules are its own');
  const { drivers } = await hosts.kernel(t);
  // Not loaded is as good.
  await execa('busybox', ['rmmod', 'vxlan'], { reject: false });
  renameSync(MODULE, AWAY);
  t.teardown(() => existsSync(AWAY) && renameSync(AWAY, MODULE));

  const missing = (await probeKernel()).filter(({ state }) => state !== 'supported');
  t.deepEqual(
    missing.map(({ name, state }) => `${name}: ${state}`),
    ['VXLAN links: missing'],
  );
  const error = await t.throwsAsync(create(drivers.link, vxlan));
  t.true(isUnsupported(error), String(error));
  t.is(
    error.message.replace(/: E?[A-Z]+ /, ' '),
    'cannot create link tulle.84 (this kernel has no links of the type vxlan: Unknown device type; modprobe vxlan, or set backend to host-gw)',
  );

  renameSync(AWAY, MODULE);
  await create(drivers.link, vxlan);
  t.true(await holds(drivers.link, vxlan));
});
