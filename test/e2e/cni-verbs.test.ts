/** The CNI verbs as runtimes of every age use them: the installed executable, a running agent, real namespaces. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import test from 'ava';
import { supportedVersions } from '../../cni/versions.ts';
import { inNode } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import {
  type CniAnswer,
  cni,
  createPod,
  differences,
  readHost,
  removeNetns,
  type TestPod,
} from '../support/cni-calls.ts';
import { output, run, shIn, shInNetns, TIMEOUT_MS, useLab } from '../support/lab.ts';

const lab = useLab({ nodes: 1 });
const node = () => lab().node('node-1');
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };

interface LinkJson {
  readonly ifindex: number;
  /** Index of the other end. */
  readonly link_index: number;
  readonly ifname: string;
  readonly address: string;
  readonly mtu: number;
  readonly addr_info: readonly { readonly local: string; readonly prefixlen: number; readonly scope: string }[];
}

/** What the kernel says of both ends of a pod's link. */
async function readLinks({ netns, ifName }: TestPod): Promise<{ readonly pod: LinkJson; readonly host: LinkJson }> {
  const ask = async (argv: readonly string[]) => JSON.parse(await output(argv)) as readonly LinkJson[];
  const [pod] = await ask(shInNetns(node(), netns, `ip -j address show dev ${ifName}`));
  const host = (await ask(shIn(node(), 'ip -j address'))).find(({ ifindex }) => ifindex === pod?.link_index);
  if (pod && host) return { pod, host };
  throw new Error(`no link between the node and ${netns}`);
}

interface DefaultRouteJson {
  readonly gateway: string;
  readonly metrics: readonly [{ readonly mtu: number }];
}

/** Of IPv4 and of IPv6, inside the pod. */
async function readDefaultRoutes({ netns }: TestPod): Promise<readonly DefaultRouteJson[]> {
  const ask = async (flag: string) =>
    JSON.parse(await output(shInNetns(node(), netns, `ip -j ${flag} route show default`))) as DefaultRouteJson[];
  return [...(await ask('-4')), ...(await ask('-6'))];
}

const addressesOf = ({ result }: CniAnswer): readonly string[] =>
  (result['ips'] as readonly { readonly address: string }[]).map(({ address }) => address.split('/')[0] as string);

const ping = async (address: string): Promise<number | undefined> =>
  (await run(inNode(node(), ['ping', '-n', '-c', '1', '-W', '5', address]))).exitCode;

/** Waits until the node is as it was; says what differs if it does not become so. */
async function untilAsBefore(before: readonly string[]): Promise<void> {
  let different: readonly string[] = [];
  const isEqual = async () => {
    different = differences(before, await readHost(node()));
    return different.length === 0;
  };
  await until(isEqual, { describe: 'the node to be as before', ...WAIT }).catch((cause: unknown) => {
    throw new Error(`the node is not as before:\n${different.join('\n')}`, { cause });
  });
}

/** The result that a runtime of that version must be able to read, told by the kernel. */
async function expectedResult(pod: TestPod, version: string): Promise<object> {
  const links = await readLinks(pod);
  const [v1, v11] = [version >= '1.0.0', version >= '1.1.0'];
  const interfaces = [links.host, links.pod].map(({ ifname, address, mtu }) => ({
    name: ifname,
    mac: address,
    ...(v11 && { mtu }),
  }));
  const ips = links.pod.addr_info
    .filter(({ scope }) => scope === 'global')
    .map(({ local, prefixlen }) => ({
      ...(!v1 && { version: local.includes(':') ? '6' : '4' }),
      interface: 1,
      address: `${local}/${prefixlen}`,
      gateway: local.includes(':') ? 'fe80::1' : '169.254.1.1',
    }));
  return {
    cniVersion: version,
    interfaces: [interfaces[0], { ...interfaces[1], sandbox: `/run/netns/${pod.netns}` }],
    ips,
    routes: (await readDefaultRoutes(pod)).map(({ gateway, metrics: [{ mtu }] }) => ({
      dst: gateway.includes(':') ? '::/0' : '0.0.0.0/0',
      gw: gateway,
      ...(v11 && { mtu }),
    })),
    dns: {},
  };
}

for (const version of supportedVersions) {
  test.serial(`ADD, CHECK, DEL at ${version}`, async (t) => {
    const before = await readHost(node());
    const pod = await createPod(node());
    const added = await cni(pod, 'ADD', { config: { cniVersion: version } });
    t.is(added.code, 0, added.stdout);
    t.deepEqual(added.result, await expectedResult(pod, version));
    t.is(addressesOf(added).length, 2);
    for (const address of addressesOf(added)) t.is(await ping(address), 0, address);

    const config = { cniVersion: version, prevResult: added.result };
    const checked = await cni(pod, 'CHECK', { config });
    t.is(checked.code, version >= '0.4.0' ? 0 : 1, checked.stdout);
    if (version >= '0.4.0') t.is(checked.stdout, '');
    else t.regex(checked.message, /cniVersion: expected 0\.4\.0 or later for CHECK, got "0\.3\.\d"/);

    const deleted = await cni(pod, 'DEL', { config });
    t.deepEqual([deleted.code, deleted.stdout], [0, '']);
    for (const address of addressesOf(added)) t.not(await ping(address), 0, `${address} answers after DEL`);
    await removeNetns(pod);
    const again = await cni(pod, 'DEL', { config: { cniVersion: version }, env: { CNI_NETNS: '' } });
    t.deepEqual([again.code, again.stdout], [0, '']);
    await untilAsBefore(before);
  });

  test.serial(`STATUS, GC and VERSION at ${version}`, async (t) => {
    const pod = await createPod(node());
    const config = { cniVersion: version, 'cni.dev/valid-attachments': [] };
    for (const verb of ['STATUS', 'GC']) {
      const { code, message, stdout } = await cni(pod, verb, { config });
      t.is(code, version >= '1.1.0' ? 0 : 1, `${verb}: ${stdout}`);
      if (code !== 0) t.regex(message, new RegExp(`cniVersion: expected 1\\.1\\.0 or later for ${verb}`));
    }
    const { result } = await cni(pod, 'VERSION', { config });
    t.deepEqual(result, { cniVersion: version, supportedVersions: [...supportedVersions] });
    await removeNetns(pod);
  });
}

test.serial('GC removes what the runtime does not list, and nothing of another network', async (t) => {
  const before = await readHost(node());
  const pods = [await createPod(node()), await createPod(node())] as const;
  const [kept, lost] = pods;
  const added = await Promise.all(pods.map((pod) => cni(pod, 'ADD')));
  const [keptAddresses = [], lostAddresses = []] = added.map(addressesOf);
  const valid = [{ containerID: kept.containerId, ifname: kept.ifName }];

  const noList = await cni(kept, 'GC');
  t.is(noList.code, 7);
  t.regex(noList.message, /cni\.dev\/valid-attachments: expected a list, got nothing/);
  t.is((await cni(kept, 'GC', { config: { name: 'other', 'cni.dev/valid-attachments': [] } })).code, 0);
  for (const address of [...keptAddresses, ...lostAddresses]) t.is(await ping(address), 0, address);

  t.is((await cni(kept, 'GC', { config: { 'cni.dev/valid-attachments': valid } })).code, 0);
  for (const address of keptAddresses) t.is(await ping(address), 0, address);
  for (const address of lostAddresses) t.not(await ping(address), 0, address);
  t.is((await cni(lost, 'CHECK', { config: { prevResult: added[1]?.result } })).code, 3);
  for (const pod of pods) {
    t.is((await cni(pod, 'DEL')).code, 0);
    await removeNetns(pod);
  }
  await untilAsBefore(before);
});

test.serial('several ADDs and DELs at once get addresses of their own and leave nothing', async (t) => {
  const before = await readHost(node());
  const pods = await Promise.all(Array.from({ length: 12 }, () => createPod(node())));
  const added = await Promise.all(pods.map((pod) => cni(pod, 'ADD')));
  t.deepEqual(
    added.map(({ stdout, code }) => (code === 0 ? 0 : stdout)),
    pods.map(() => 0),
  );
  const addresses = added.flatMap(addressesOf);
  t.is(new Set(addresses).size, 24);
  t.deepEqual(
    await Promise.all(addresses.map(ping)),
    addresses.map(() => 0),
  );
  const deleted = await Promise.all(pods.map((pod) => cni(pod, 'DEL')));
  t.true(deleted.every(({ code }) => code === 0));
  await Promise.all(pods.map(removeNetns));
  await untilAsBefore(before);
});

test.serial('a namespace can be given to another container as soon as the first has left it', async (t) => {
  const before = await readHost(node());
  const first = await createPod(node());
  t.is((await cni(first, 'ADD')).code, 0);
  t.is((await cni(first, 'DEL')).code, 0);
  const second = { ...first, containerId: `${first.containerId.slice(0, -4)}next` };
  const added = await cni(second, 'ADD');
  t.is(added.code, 0, added.stdout);
  for (const address of addressesOf(added)) t.is(await ping(address), 0, address);
  t.is((await cni(second, 'DEL')).code, 0);
  await removeNetns(second);
  await untilAsBefore(before);
});

test.serial('a second interface of a pod has addresses that answer; the first stays the way out', async (t) => {
  const before = await readHost(node());
  const pod = await createPod(node());
  const second = { ...pod, ifName: 'net1' };
  const answers = [await cni(pod, 'ADD'), await cni(second, 'ADD')] as const;
  t.deepEqual(
    answers.map(({ code, stdout }) => (code === 0 ? 0 : stdout)),
    [0, 0],
  );
  const inside = (line: string) => output(shInNetns(node(), pod.netns, line));
  const isWhole = async (what: string) => {
    for (const address of answers.flatMap(addressesOf)) t.is(await ping(address), 0, `${what}: ${address}`);
    for (const [i, each] of [pod, second].entries()) {
      const { code, stdout } = await cni(each, 'CHECK', { config: { prevResult: answers[i]?.result } });
      t.deepEqual([code, stdout], [0, ''], what);
    }
    t.regex(await inside('ip route get 192.0.2.1'), / dev eth0 /, what);
    t.regex(await inside('ip route get 2001:db8::1'), / dev eth0 /, what);
  };
  await isWhole('made');
  const [ip4] = addressesOf(answers[1]);
  await inside(`ip rule del from ${ip4}`);
  const { details } = await cni(second, 'CHECK', { config: { prevResult: answers[1].result } });
  t.regex(details, new RegExp(`^pod: the rule from ${ip4} to the table \\d+ is missing$`));
  t.is((await cni(second, 'DEL')).code, 0);
  for (const address of addressesOf(answers[0])) t.is(await ping(address), 0, address);
  t.is((await cni(pod, 'DEL')).code, 0);
  await removeNetns(pod);
  await untilAsBefore(before);
});

/** In the pod, before it has an address: echoes datagrams. In the node: asks once a millisecond until it is answered. */
const ECHO = `const s = require('dgram').createSocket('udp6'); s.on('message', (m, r) => s.send(m, r.port, r.address));
s.bind(7777, '::', () => console.log('ready'));`;
const ASK = `const s = require('dgram').createSocket('udp6'); s.on('error', () => {});
s.bind(0, '::', () => console.log('ready'));
s.on('message', () => { console.log('answered'); process.exit(); });
process.stdin.once('data', (a) => setInterval(() => s.send('?', 7777, String(a).trim(), () => {}), 1));`;

/** A program that has said it is ready, and its next line. */
async function startProgram(argv: readonly string[]) {
  const [file = '', ...args] = argv;
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout, signal: AbortSignal.timeout(TIMEOUT_MS) });
  const nextLine = async () => String((await once(lines, 'line', { signal: AbortSignal.timeout(TIMEOUT_MS) }))[0]);
  const said = await nextLine();
  if (said !== 'ready') throw new Error(`expected a program that is ready, got ${said}`);
  return { child, nextLine };
}

test.serial('a pod answers over IPv6 right after ADD', async (t) => {
  const pod = await createPod(node());
  const inPod = ['ip', 'netns', 'exec', pod.netns, process.execPath, '-e', ECHO];
  const echo = await startProgram(inNode(node(), inPod));
  const ask = await startProgram(inNode(node(), [process.execPath, '-e', ASK]));
  t.teardown(() => {
    echo.child.kill('SIGKILL');
    ask.child.kill('SIGKILL');
  });
  const added = await cni(pod, 'ADD');
  const endMs = performance.now();
  const address = addressesOf(added).find((text) => text.includes(':'));
  const answered = ask.nextLine();
  ask.child.stdin.write(`${address}\n`);
  t.is(await answered, 'answered');
  const durationMs = performance.now() - endMs;
  t.log(`the first answer came ${durationMs.toFixed(1)} ms after the end of ADD`);
  t.true(durationMs < 500, 'duplicate address detection alone takes a second');
  await cni(pod, 'DEL');
});

test.serial('with the agent away DEL is queued and everything else says so; the agent carries it out', async (t) => {
  const before = await readHost(node());
  const [staying, leaving, late] = [await createPod(node()), await createPod(node()), await createPod(node())];
  const stays = await cni(staying, 'ADD');
  const leaves = await cni(leaving, 'ADD');
  await lab().control.stopAgent('node-1');

  const added = await cni(late, 'ADD');
  t.is(added.code, 11, added.stdout);
  t.regex(added.message, /cannot ADD: the tulle agent is not running on this node/);
  t.is((await cni(staying, 'CHECK', { config: { prevResult: stays.result } })).code, 11);
  t.is((await cni(staying, 'STATUS')).code, 50);
  t.is((await cni(staying, 'GC', { config: { 'cni.dev/valid-attachments': [] } })).code, 0);
  for (const address of addressesOf(stays)) t.is(await ping(address), 0, `${address} without the agent`);

  const queue = () => output(shIn(node(), 'ls /run/tulle/delete-queue'));
  const deleted = await cni(leaving, 'DEL', { config: { prevResult: leaves.result } });
  t.deepEqual([deleted.code, deleted.stdout], [0, '']);
  await removeNetns(leaving);
  t.is((await cni(leaving, 'DEL', { env: { CNI_NETNS: '' } })).code, 0);
  t.regex(await queue(), /^[0-9a-f]{16}$/);

  await lab().control.startAgent('node-1');
  await until(async () => (await cni(staying, 'STATUS')).code === 0, { describe: 'STATUS to succeed', ...WAIT });
  t.is(await queue(), '');
  t.is((await cni(staying, 'CHECK', { config: { prevResult: stays.result } })).code, 0);
  t.is((await cni(leaving, 'CHECK', { config: { prevResult: leaves.result } })).code, 3);
  t.is((await cni(late, 'ADD')).code, 0);
  for (const pod of [staying, late]) {
    t.is((await cni(pod, 'DEL')).code, 0);
    await removeNetns(pod);
  }
  await untilAsBefore(before);
});
