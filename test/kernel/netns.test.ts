import { existsSync, readdirSync } from 'node:fs';
import test from 'ava';
import { capture, connect, createNetns, TEST_PREFIX, waitFor } from '../support/netns.ts';

const linksOf = (stdout: string) => stdout.split('\n').map((line) => line.split(/[ @]/)[0]);

test('createNetns makes an empty namespace with its loopback up, and this one stays as it is', async (t) => {
  const before = readdirSync('/sys/class/net');
  const netns = await createNetns(t, 'empty');
  t.true(netns.name.startsWith(TEST_PREFIX));
  t.true(existsSync(netns.path));
  t.regex((await netns.run('ip', '-brief', 'link')).stdout, /^lo .*LOOPBACK,UP/);
  t.deepEqual((await netns.run('ls', '/sys/class/net')).stdout, 'lo');
  t.deepEqual(readdirSync('/sys/class/net'), before);
});

test('run rejects with what the program said', async (t) => {
  const netns = await createNetns(t);
  await t.throwsAsync(netns.run('ip', 'link', 'show', 'nothing'), { message: /Device "nothing" does not exist/ });
});

test('connect joins two namespaces, and capture sees what crosses', async (t) => {
  const [a, b] = await Promise.all([createNetns(t, 'a'), createNetns(t, 'b')]);
  await connect(
    { netns: a, link: 'left', addresses: ['192.0.2.1/24', '2001:db8::1/64'] },
    { netns: b, link: 'right', addresses: ['192.0.2.2/24', '2001:db8::2/64'] },
    { mtuBytes: 1400 },
  );
  t.deepEqual(linksOf((await b.run('ip', '-brief', 'link')).stdout).sort(), ['lo', 'right']);
  t.regex((await b.run('ip', 'link', 'show', 'right')).stdout, /mtu 1400/);
  const seen = await capture(b, 'right', 'icmp[icmptype] = icmp-echo or icmp6[icmp6type] = icmp6-echo');
  await a.run('ping', '-c', '1', '-W', '5', '192.0.2.2');
  await a.run('ping', '-c', '1', '-W', '5', '2001:db8::2');
  await waitFor(() => seen.lines.length === 2, { describe: 'both requests in the capture' });
  const lines = await seen.stop();
  t.regex(lines[0] ?? '', /192\.0\.2\.1 > 192\.0\.2\.2: ICMP echo request/);
  t.regex(lines[1] ?? '', /2001:db8::1 > 2001:db8::2: .*ICMP6, echo request/);
});

test('capture says why it cannot start', async (t) => {
  const netns = await createNetns(t);
  await t.throwsAsync(capture(netns, 'nothing', 'ip'), { message: /cannot capture on nothing .*No such device/ });
});

test('waitFor gives up with its description', async (t) => {
  await t.throwsAsync(
    waitFor(() => false, { describe: 'pigs to fly', timeoutMs: 20 }),
    { message: /pigs to fly/ },
  );
});
