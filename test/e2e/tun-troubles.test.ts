/** What can be wrong with the tunnel of the agent: each trouble is named where a person looks, and its end is noticed. */
import { randomBytes } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { AgentStatus } from '../../agent/agent-status.ts';
import { output, run, shIn, tulle } from '../support/lab.ts';
import { NODES, useLiveLab } from '../support/live-lab.ts';
import { hasPeer, isAgreed, untilStatus } from '../support/tun-lab.ts';

const live = useLiveLab('backend: tun');
const { lab, directory, choose, allIsWell, untilGone } = live;

const on = (name: string, ...lines: readonly string[]) => output(shIn(lab().node(name), lines.join('\n')));
const doctor = async (name: string, ...args: readonly string[]) =>
  (await tulle(lab().node(name), 'doctor', ...args)).stdout;
const statusText = async (name: string) => (await tulle(lab().node(name), 'status')).stdout;

/** What the doctor has to be told where no agent runs. */
const ALONE = ['--node-name', 'node-1', '--kubeconfig', '/run/lab-node/kubeconfig', '--backend', 'tun'];

const sealed = (file: string) => `backend: tun\ntun: { encryption: aes-gcm, secretFile: ${join(directory, file)} }`;
/** More than is needed: one byte in 256 is a line end, which counts for nothing at the end. */
const writeSecret = (file: string) => writeFileSync(join(directory, file), randomBytes(48));

async function restart(name: string): Promise<void> {
  await lab().control.stopAgent(name);
  await lab().control.startAgent(name);
}

const fails = (key: string, error: RegExp) => (status: AgentStatus) =>
  status.kernel.failing.some((each) => each.key === key && error.test(each.error));

test.serial('a healthy tunnel is healthy, for the doctor too', async (t) => {
  await allIsWell(t, 'tun');
  for (const name of NODES) {
    await untilStatus(live, name, 'an agreement', isAgreed);
    const { exitCode, stdout } = await tulle(lab().node(name), 'doctor');
    t.is(exitCode, 0, stdout);
    t.regex(stdout, /^ok +tunnel-device +tulle-tun, UDP port 8285, MTU 1460$/m);
    t.regex(stdout, /^ok +mtu +pods 1460 bytes; 3 of 3 ways to 1 peers proved with full packets$/m);
  }
});

test.serial('one side is sealed and the other is not: both say so', async (t) => {
  writeSecret('secret');
  choose(sealed('secret'));
  await restart('node-1');
  await untilStatus(live, 'node-1', 'a mismatch', hasPeer('mismatch', /node-2 has tun\.encryption none.*aes-gcm/));
  await untilStatus(live, 'node-2', 'a mismatch', hasPeer('mismatch', /node-1 has tun\.encryption aes-gcm.*none/));
  t.regex(await statusText('node-2'), /^problem {3}Node node-1 has tun\.encryption aes-gcm/m);
  t.regex(await doctor('node-2'), /node-1, the agent says: Node node-1 has tun\.encryption aes-gcm/);
  await restart('node-2');
  await allIsWell(t, 'sealed');
});

test.serial('another secret at one side, and one that is missing: packets pass again once it is right', async (t) => {
  writeSecret('other');
  choose(sealed('other'));
  await restart('node-1');
  for (const name of NODES) await untilStatus(live, name, 'a mismatch', hasPeer('mismatch', /has another secret/));
  rmSync(join(directory, 'other'));
  choose(sealed('other'));
  await restart('node-1');
  const missing = /other: expected a file of 32 to 4096 bytes, got ENOENT/;
  const told = await untilStatus(live, 'node-1', 'no tunnel', fails('tun-path tulle-tun', missing));
  t.false(told.readiness.ready, 'its pods would reach nobody');
  t.is(told.tunnel?.path, undefined, 'nothing is sent in the clear instead');
  t.regex(await doctor('node-1'), missing);
  writeSecret('other');
  await untilStatus(live, 'node-1', 'another secret', hasPeer('mismatch', /has another secret/));
  choose(sealed('secret'));
  await restart('node-1');
  await allIsWell(t, 'the same secret');
});

test.serial('a program that has the port, and a link that has the name: both are named, and waited out', async (t) => {
  await lab().control.stopAgent('node-1');
  // Ends by itself should this test not come to its end.
  const program = `const s = require("dgram").createSocket("udp4"); s.bind(8285, () => console.log("bound")); setTimeout(() => process.exit(), 60000)`;
  await on(
    'node-1',
    `setsid ${process.execPath} -e '${program}' >/run/bound 2>&1 </dev/null & echo $! >/run/holder; until grep -q bound /run/bound; do :; done`,
    'ip link del tulle-tun; ip link add tulle-tun type bridge',
  );
  const alone = await doctor('node-1', ...ALONE);
  t.regex(alone, /a program holds UDP port 8285/);
  t.regex(alone, /a link tulle-tun exists that is not Tulle's/);
  await lab().control.startAgent('node-1');
  await untilStatus(live, 'node-1', 'a link that fails', fails('link tulle-tun', /exists and is not Tulle's/));
  await on('node-1', 'ip link del tulle-tun');
  const told = await untilStatus(live, 'node-1', 'a port that is taken', fails('tun-path tulle-tun', /EADDRINUSE/));
  t.false(told.readiness.ready);
  t.regex(await doctor('node-1'), /a program holds UDP port 8285/);
  await on('node-1', 'kill $(cat /run/holder)');
  await untilStatus(live, 'node-1', 'an agreement', isAgreed);
  await allIsWell(t, 'the port is free');
});

test.serial('uninstall takes the device and what was saved', async (t) => {
  await lab().control.stopAgent('node-1');
  const before = await on('node-1', 'ls /run/tulle; ip link show tulle-tun');
  t.regex(before, /tun\.json/);
  const { exitCode, stdout, stderr } = await tulle(lab().node('node-1'), 'uninstall', '--force');
  t.is(exitCode, 0, stderr);
  t.regex(stdout, /^- link tulle-tun$/m);
  t.regex(stdout, /^- file \/run\/tulle\/tun\.json$/m);
  await untilGone('node-1', /tulle-tun|8285/);
  t.not((await run(shIn(lab().node('node-1'), 'ls /run/tulle'))).exitCode, 0);
  await untilStatus(live, 'node-2', 'a peer that refuses', hasPeer('refused', /node-1 refuses the tunnel/));
});

test.serial('settings that cannot be are refused at once, with the remedy', async (t) => {
  const asked = ['agent', '--node-name', 'x', '--tun-encryption', 'aes-gcm'];
  const { exitCode, stderr } = await tulle(lab().node('node-1'), ...asked);
  t.is(exitCode, 78);
  t.regex(stderr, /tun\.secretFile: expected a file, since tun\.encryption is aes-gcm, got nothing; mount a Secret/);
});
