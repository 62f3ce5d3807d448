/** What Services have from an agent that starts again: with another scope, without its Node. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { families, type IpAddress } from '../../agent/model/ip.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { inNode, inPod } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { agentStatus, isInCharge } from '../support/agent-status.ts';
import { type OpenCaller, openCaller } from '../support/caller.ts';
import { output, shIn, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import { type ServiceApi, type ServiceObject, serviceApi, TCP_AND_UDP } from '../support/service-api.ts';
import type { Answer, Call } from '../support/socket-caller.ts';

const directory = mkdtempSync(join(tmpdir(), 'tulle-test-restarts-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const configFile = join(directory, 'config.yaml');
const choose = (services: string) => writeFileSync(configFile, `services: ${services}\n`);
choose('{ mode: ebpf }');

const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };
const opened: OpenCaller[] = [];
let inside: readonly OpenCaller[];
let pod: OpenCaller;
let neighbour: OpenCaller;
let api: ServiceApi;
let web: ServiceObject;
const lab = useLab({ nodes: 2, agentArgs: ['--config', configFile] }, async () => {
  const { control } = lab();
  const open = async (argv: readonly [string, ...string[]]) => {
    const caller = await openCaller(argv);
    opened.push(caller);
    return caller;
  };
  const serving = await control.runPod({
    namespace: 'default',
    name: 'web-1',
    node: 'node-1',
    serve: [{ port: 8080 }],
  });
  const idle = await lab().runPod('idle', 'node-1');
  pod = await open(inPod(node(), idle.netns, []));
  inside = [pod, await open(inNode(node(), []))];
  neighbour = await open(inNode(lab().node('node-2'), []));
  api = serviceApi(control, new Map([['web-1', serving]]));
  web = await api.createService('web', { type: 'NodePort', ports: TCP_AND_UDP });
  for (const { family } of families) await api.createSlice({ of: 'web', family, endpoints: '1' });
  const isServed = async () => (await ask({ how: 'tcp' })).every((each) => each === 'web-1');
  await until(isServed, { describe: 'the Service', ...WAIT });
});
test.after.always(() => Promise.all(opened.map((caller) => caller.end())));

const node = () => lab().node('node-1');
const serverOf = ({ from, error }: Answer): string => from?.split(' ')[0] ?? error ?? '';
/** What a pod and the host get at each address of the Service; by the same sockets under the same name. */
async function ask({ how, name }: { readonly how: Call['how']; readonly name?: string }): Promise<readonly string[]> {
  const calls = web.clusterIps.map(
    (ip): Call => ({ how, ip, port: 80, deadlineMs: 2000, ...(name !== undefined && { socket: `${name} ${ip}` }) }),
  );
  return (await Promise.all(inside.map((caller) => caller.callAll(calls)))).flat().map(serverOf);
}
const EVERYBODY = ['web-1', 'web-1', 'web-1', 'web-1'];
/** The agent again, with these settings. */
async function restart(services: string): Promise<void> {
  await lab().control.stopAgent('node-1');
  choose(services);
  await lab().control.startAgent('node-1');
  await until(() => isInCharge(node()), { describe: 'the agent to be in charge', ...WAIT });
  await untilSettled(node());
}

for (const { family } of families) {
  test.serial(`${family}: from scope all to scope host, and back, no connection of a pod fails`, async (t) => {
    const ip = web.clusterIps.find((each) => each.includes(':') === (family === 'ipv6')) as IpAddress;
    const load = pod.load({ ip, port: 80, perSecond: 100 });
    await restart('{ mode: ebpf, ebpf: { scope: host } }');
    await restart('{ mode: ebpf }');
    const { answers, errors } = await load.stop();
    t.deepEqual(errors, {});
    t.true((answers?.['web-1'] ?? 0) > 100);
  });
}

test.serial(
  'from scope host to scope all: sockets of pods that rules translated are destroyed, and no others',
  async (t) => {
    await restart('{ mode: ebpf, ebpf: { scope: host } }');
    t.deepEqual(await ask({ how: 'udp-connected', name: 'scope' }), EVERYBODY);
    await restart('{ mode: ebpf }');
    const ofPod = async () => (await ask({ how: 'udp-connected', name: 'scope' })).slice(0, 2);
    const isDestroyed = async () => (await ofPod()).every((each) => !/^(web-1|ECONNREFUSED)$/.test(each));
    await until(isDestroyed, { describe: 'the sockets to be destroyed', ...WAIT });
    t.deepEqual((await ask({ how: 'udp-connected', name: 'scope' })).slice(2), ['web-1', 'web-1'], 'those of the host');
    t.deepEqual(await ask({ how: 'udp-connected', name: 'anew' }), EVERYBODY);
  },
);

test.serial('from sockets to packets: sockets that programs connected are destroyed, and no others', async (t) => {
  const { pods } = await lab().control.status();
  const to = pods.find(({ name }) => name === 'web-1')?.addresses[0] as IpAddress;
  const direct = () => pod.call({ how: 'udp-connected', ip: to, port: 8080, socket: 'direct' });
  t.deepEqual(await ask({ how: 'udp-connected', name: 'mode' }), EVERYBODY);
  t.is(serverOf(await direct()), 'web-1');
  await restart('{ mode: iptables }');
  const isDestroyed = async () =>
    (await ask({ how: 'udp-connected', name: 'mode' })).every((each) => !/^(web-1|ECONNREFUSED)$/.test(each));
  await until(isDestroyed, { describe: 'the sockets to be destroyed', ...WAIT });
  t.is(serverOf(await direct()), 'web-1');
  t.deepEqual(await ask({ how: 'udp-connected', name: 'packets' }), EVERYBODY);
  const programs = () => output(shIn(node(), 'bpftool cgroup show /sys/fs/cgroup | grep -c tulle_ || true'));
  await until(async () => (await programs()).trim() === '0', { describe: 'the programs to go', ...WAIT });
});

/** A bpftool that does everything but attach. */
const LOADER = `
  cp /usr/sbin/bpftool /run/bpftool
  printf '#!/bin/sh\\n[ "$3" = attach ] && exit 1\\nexec /run/bpftool "$@"\\n' >/run/loader
  chmod +x /run/loader
  mount --bind /run/loader /usr/sbin/bpftool`;

test.serial('from packets to sockets: packets go on to be served while no program can be attached', async (t) => {
  t.deepEqual(await ask({ how: 'tcp' }), EVERYBODY);
  await lab().control.stopAgent('node-1');
  await output(shIn(node(), LOADER));
  choose('{ mode: ebpf }');
  await lab().control.startAgent('node-1');
  const isFailing = async () =>
    ((await agentStatus(node()))?.kernel.failing ?? []).some(
      ({ key, attempts }) => key.startsWith('attachment ') && attempts > 3,
    );
  await until(isFailing, { describe: 'attachments to fail', ...WAIT });
  t.deepEqual(await ask({ how: 'tcp' }), EVERYBODY);
  await output(shIn(node(), 'umount /usr/sbin/bpftool'));
  const rules = () => output(shIn(node(), `iptables-save -t nat | grep -c -e '-d ${web.clusterIps[0]}' || true`));
  await until(async () => (await rules()).trim() === '0', { describe: 'rules to go', ...WAIT, deadlineMs: 60_000 });
  t.deepEqual(await ask({ how: 'tcp' }), EVERYBODY);
});

test.serial('node ports are at the addresses that the settings name, and follow them', async (t) => {
  const port = web.ports[0]?.nodePort as number;
  const [ipv4 = '', ipv6 = ''] = node().addresses;
  // Beside those that the node has: one in the range that comes and goes, and one that nobody named.
  const [named, unnamed] = ['198.51.100.7', '198.51.101.7'];
  const link = (line: string) => output(shIn(node(), line));
  const routes = [named, unnamed].map((ip) => `ip route add ${ip} via ${ipv4}`).join('; ');
  await output(shIn(lab().node('node-2'), routes));
  const servers = async () =>
    (
      await neighbour.callAll(
        [ipv4, ipv6, named, unnamed].map((ip): Call => ({ how: 'tcp', ip, port, deadlineMs: 1000 })),
      )
    ).map((answer) => (serverOf(answer) === 'web-1' ? 'served' : 'not'));
  const untilServers = async (...expected: readonly string[]) => {
    const isSo = async () => (await servers()).join() === expected.join();
    await until(isSo, { describe: `${expected}`, ...WAIT });
    await untilSettled(node());
    t.deepEqual(await servers(), expected);
  };
  await link(`ip address add ${unnamed}/32 dev lo`);
  await untilServers('served', 'served', 'not', 'not');
  await restart('{ mode: ebpf, nodePortAddresses: [172.30.0.0/24, 198.51.100.0/24] }');
  await untilServers('served', 'not', 'not', 'not');
  await link(`ip address add ${named}/32 dev lo`);
  await untilServers('served', 'not', 'served', 'not');
  await link(`ip address del ${named}/32 dev lo; ip address del ${unnamed}/32 dev lo`);
  await untilServers('served', 'not', 'not', 'not');
  await restart('{ mode: ebpf }');
  await untilServers('served', 'served', 'not', 'not');
});

test.serial('node ports go on while the Node is away, also over a restart', async (t) => {
  const port = web.ports[0]?.nodePort as number;
  const atNode = async () =>
    (await neighbour.callAll(node().addresses.map((ip): Call => ({ how: 'tcp', ip, port, deadlineMs: 2000 })))).map(
      serverOf,
    );
  t.deepEqual(await atNode(), ['web-1', 'web-1']);
  await lab().control.callApi({ method: 'DELETE', path: apiPath.node('node-1') });
  const isAway = async () => (await agentStatus(node()))?.underlay?.suspended === true;
  await until(isAway, { describe: 'the agent to miss its Node', ...WAIT });
  await untilSettled(node());
  t.deepEqual(await atNode(), ['web-1', 'web-1']);
  await lab().control.stopAgent('node-1');
  await lab().control.startAgent('node-1');
  await until(isAway, { describe: 'the agent to miss its Node again', ...WAIT });
  await untilSettled(node());
  t.deepEqual(await atNode(), ['web-1', 'web-1']);
});

test.serial("kube-proxy's rules are found, though the agent has the port by which it is known", async (t) => {
  const chains = 'iptables-nft -t nat -N KUBE-SERVICES; iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES';
  await output(shIn(lab().node('node-2'), `ss -Hltn | grep -q :10256; ${chains}`));
  const { stdout } = await tulle(lab().node('node-2'), 'doctor');
  t.regex(stdout, /kube-proxy has left things on this node[\s\S]*nat: chains KUBE-SERVICES/);
});
