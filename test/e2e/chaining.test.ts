/** Debian's reference plugins after Tulle in one network: they get what they need, and leave nothing. */
import { readFile, writeFile } from 'node:fs/promises';
import test from 'ava';
import { POD_LINK_NAME } from '../../agent/model/kernel-names.ts';
import { inNode, inPod, pathOnHost } from '../../lab/node.ts';
import { addPod, checkPod, removePod, type Sandbox } from '../../lab/runtime.ts';
import { until } from '../../lab/until.ts';
import { differences, readHost } from '../support/cni-calls.ts';
import { output, run, shIn, shInNetns, TIMEOUT_MS, untilSettled, useLab } from '../support/lab.ts';

const PLUGINS = ['portmap', 'bandwidth', 'tuning'];
const TUNING = { type: 'tuning', sysctl: { 'net.core.somaxconn': '777' } };
const HOST_PORT = 8080;
const RATE_BITS = 8_000_000;

const lab = useLab({ nodes: 2, agentArgs: ['--cni-chain', 'portmap,bandwidth'] }, prepare);
const node = () => lab().node('node-1');
const signal = () => AbortSignal.timeout(TIMEOUT_MS);
/** IPv4 and IPv6, as part of a URL. */
const urlHosts = () => node().addresses.map((address) => (address.includes(':') ? `[${address}]` : address));

/** Tuning needs a configuration of its own, so the administrator writes a list that sorts before the agent's. */
async function prepare(): Promise<void> {
  await output(shIn(node(), PLUGINS.map((name) => `cp /usr/lib/cni/${name} /opt/cni/bin/`).join('; ')));
  const own = JSON.parse(await readFile(pathOnHost(node(), '/etc/cni/net.d/10-tulle.conflist'), 'utf8'));
  const list = { ...own, plugins: [...own.plugins, TUNING] };
  await writeFile(pathOnHost(node(), '/etc/cni/net.d/05-chain.conflist'), JSON.stringify(list));
  await untilNeighbourIsWired();
}

/** What the node is compared with later has the other node in it, however late that one told of its tunnel. */
async function untilNeighbourIsWired(): Promise<void> {
  const { podCidrs } = lab().node('node-2');
  const isWired = async () => {
    const routes = await output(shIn(node(), 'ip route; ip -6 route'));
    return podCidrs.every((podCidr) => routes.includes(`${podCidr} via `));
  };
  await until(isWired, { describe: 'the routes to node-2', deadlineMs: TIMEOUT_MS, intervalMs: 50 });
  await untilSettled(node());
}

/** With the argument names that containerd 1.6 uses. */
const add = (name: string): Promise<Sandbox> =>
  addPod(
    node(),
    {
      namespace: 'default',
      name,
      uid: `uid-${name}`,
      runtimeConfig: {
        portMappings: [{ HostPort: HOST_PORT, ContainerPort: 80, Protocol: 'tcp', HostIP: '' }],
        bandwidth: { IngressRate: RATE_BITS, IngressBurst: 80_000, EgressRate: RATE_BITS, EgressBurst: 80_000 },
      },
    },
    signal(),
  );

const SERVER = `require('http').createServer((q, a) => a.end(process.argv[1] + ' ' + q.socket.remoteAddress))
  .listen(80, '::')`;
const serve = (pod: Sandbox) =>
  shIn(node(), `ip netns exec ${pod.netns} setsid '${process.execPath}' -e "${SERVER}" ${pod.name} >/dev/null 2>&1 &`);
const curl = (host: string, port: number) => `curl -sS --max-time 5 http://${host}:${port}/`;

test.serial('hostPort, bandwidth and a sysctl work behind Tulle, and DEL leaves nothing', async (t) => {
  const before = await readState();
  const pod = await add('web');
  t.is(await output(shInNetns(node(), pod.netns, 'cat /proc/sys/net/core/somaxconn')), '777');
  await output(serve(pod));
  const inside = `http://127.0.0.1:80/`;
  const listens = async () => (await run(inPod(node(), pod.netns, ['curl', '-sS', inside]))).exitCode === 0;
  await until(listens, { describe: 'the server in the pod', deadlineMs: TIMEOUT_MS, intervalMs: 50 });

  for (const [index, host] of urlHosts().entries()) {
    const outside = lab().node('node-2');
    t.is(
      await output(shIn(outside, curl(host, HOST_PORT))),
      `web ${index === 0 ? '::ffff:' : ''}${outside.addresses[index]}`,
      'from outside, with the address of who asks',
    );
    t.regex(await output(shIn(node(), curl(host, HOST_PORT))), /^web /, 'from the node itself');
    t.regex(await output(shInNetns(node(), pod.netns, curl(host, HOST_PORT))), /^web /, 'from the pod itself');
  }

  const names = (pod.result['interfaces'] as readonly { readonly name: string }[]).map(({ name }) => name);
  const link = names.find((name) => POD_LINK_NAME.test(name));
  t.regex(await output(shIn(node(), `tc qdisc show dev ${link}`)), /qdisc tbf .* rate 8Mbit/);
  t.is((await output(shIn(node(), 'tc qdisc show'))).match(/qdisc tbf/g)?.length, 2, 'one a direction');
  await checkPod(node(), withoutPortmap(pod), signal());

  await removePod(node(), pod, signal());
  const isClean = async () => differences(before, await readState()).length === 0;
  await until(isClean, { describe: 'the node to be as before', deadlineMs: TIMEOUT_MS, intervalMs: 50 }).catch(
    async (cause: unknown) => {
      throw new Error(differences(before, await readState()).join('\n'), { cause });
    },
  );
});

test.serial('a pod that is made again has the port again', async (t) => {
  const pods = [await add('first')];
  await removePod(node(), pods[0] as Sandbox, signal());
  const pod = await add('second');
  await output(serve(pod));
  const answers = async () => {
    const { stdout } = await run(shIn(lab().node('node-2'), curl(urlHosts()[0] as string, HOST_PORT)));
    return /^second /.test(stdout);
  };
  await until(answers, { describe: 'the new pod to answer', deadlineMs: TIMEOUT_MS, intervalMs: 50 });
  await removePod(node(), pod, signal());
  t.pass();
});

/** Version 1.1.1 looks for the rules of both families in IPv6's table: its own CHECK fails in every dual-stack cluster. */
const withoutPortmap = (pod: Sandbox): Sandbox => ({
  ...pod,
  network: { ...pod.network, plugins: pod.network.plugins.filter(({ type }) => type !== 'portmap') },
});

/** With the qdiscs; without what portmap keeps from its first pod on. */
async function readState(): Promise<readonly string[]> {
  const qdiscs = (await output(inNode(node(), ['tc', 'qdisc', 'show']))).split('\n');
  const isPods = (line: string) => / dev tl[0-9a-f]{12} /.test(line);
  return [...(await readHost(node())), ...qdiscs.filter((line) => !isPods(line))].filter(
    (line) => !/CNI-HOSTPORT-|^\*|^COMMIT/.test(line),
  );
}
