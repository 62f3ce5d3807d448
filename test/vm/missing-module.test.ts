/** What is said when the kernel's module is not installed. Only in the guest, which may lose one: its files are its own. */
import { existsSync, readFileSync, renameSync } from 'node:fs';
import { release } from 'node:os';
import { basename, join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { execa } from 'execa';
import { isUnsupported } from '../../agent/kernel/errors.ts';
import { probeKernel } from '../../agent/kernel/features.ts';
import { type IpAddress, parseIp } from '../../agent/model/ip.ts';
import type { VxlanLink } from '../../agent/model/items.ts';
import { macOf } from '../../agent/model/mac.ts';
import { create, holds, hosts } from '../support/netlink-host.ts';

const isGuest = readFileSync('/proc/cmdline', 'latin1').split(/\s/).includes('tulle.vm');
const ELSEWHERE = 'expected the guest of `npm run test:vm`, got a machine whose modules are its own';

/** Has a module not be installed until the end of the test, or of what is returned. */
async function withdraw(t: ExecutionContext, path: string): Promise<() => void> {
  const file = join('/lib/modules', release(), 'kernel', path);
  // Not loaded is as good.
  await execa('busybox', ['rmmod', basename(path, '.ko')], { reject: false });
  renameSync(file, `${file}.away`);
  const giveBack = () => existsSync(`${file}.away`) && renameSync(`${file}.away`, file);
  t.teardown(giveBack);
  return giveBack;
}

const missingFeatures = async (): Promise<readonly string[]> =>
  (await probeKernel()).filter(({ state }) => state !== 'supported').map(({ name, state }) => `${name}: ${state}`);

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

test.serial(
  'a module that is not installed is named with the remedy, and loaded by the kernel once it is there',
  async (t) => {
    if (!isGuest) return t.fail(ELSEWHERE);
    const { drivers } = await hosts.kernel(t);
    const giveBack = await withdraw(t, 'drivers/net/vxlan/vxlan.ko');
    t.deepEqual(await missingFeatures(), ['VXLAN links: missing']);
    const error = await t.throwsAsync(create(drivers.link, vxlan));
    t.true(isUnsupported(error), String(error));
    t.is(
      error.message.replace(/: E?[A-Z]+ /, ' '),
      'cannot create link tulle.84 (this kernel has no links of the type vxlan: Unknown device type; modprobe vxlan, or set backend to host-gw)',
    );

    giveBack();
    await create(drivers.link, vxlan);
    t.true(await holds(drivers.link, vxlan));
  },
);

test.serial('what lists and destroys datagram sockets is a module, too', async (t) => {
  if (!isGuest) return t.fail(ELSEWHERE);
  const giveBack = await withdraw(t, 'net/ipv4/udp_diag.ko');
  t.deepEqual(await missingFeatures(), ['destruction of datagram sockets: missing']);
  giveBack();
  t.deepEqual(await missingFeatures(), []);
});
