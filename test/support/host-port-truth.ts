/** The tests of what host ports mean, for whatever serves them. */
import test, { type ExecutionContext } from 'ava';
import { familyOf, type IpAddress } from '../../agent/model/ip.ts';
import type { PortMapping } from '../../agent/model/port-mapping.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { inNode, inPod } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { addPod, removePod } from '../../lab/runtime.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from './agent-status.ts';
import { type Caller, type OpenCaller, openCaller } from './caller.ts';
import { output, shIn, TIMEOUT_MS, untilSettled, useLab } from './lab.ts';
import type { ServicesMode } from './service-lab.ts';
import type { Answer, Call } from './socket-caller.ts';

/** `self` is the pod that the ports lead to, on node-1; `idle` others beside it and on node-2; `fabric` is no node. */
const CLIENTS = ['fabric', 'host-1', 'host-2', 'idle-1', 'idle-2', 'self'] as const;
type Client = (typeof CLIENTS)[number];

/**
 * Whom the pod takes for its client: `own`, its real address; `node-1` and `node-2`, one of that node. Tulle with iptables shows
 * the node of local clients, as for Services; what a pod sends to another node leaves its own with the address of that.
 */
const SOURCES: Readonly<Record<ServicesMode, Readonly<Record<Client, 'own' | 'node-1' | 'node-2'>>>> = {
  iptables: {
    fabric: 'own',
    'host-1': 'node-1',
    'host-2': 'own',
    'idle-1': 'node-1',
    'idle-2': 'node-2',
    self: 'node-1',
  },
  ebpf: { fabric: 'own', 'host-1': 'node-1', 'host-2': 'own', 'idle-1': 'own', 'idle-2': 'node-2', self: 'own' },
};

const BOTH = (hostPort: number, hostIp?: string): readonly PortMapping[] =>
  (['TCP', 'UDP'] as const).map((protocol) => ({
    hostPort,
    containerPort: 80,
    protocol,
    ...(hostIp !== undefined && { hostIp: hostIp as IpAddress }),
  }));
/** In the pod network, the first address of the node. */
const POD_NETWORK = { 'node-1': ['10.84.0.1', 'fd84::1'], 'node-2': ['10.84.1.1', 'fd84:0:0:1::1'] } as const;

/** Call once, at the top of a file. */
export function hostPortTruth(mode: ServicesMode): void {
  const callers = new Map<Client, OpenCaller>();
  const pods = new Map<string, PodStatus>();
  const caller = (client: Client): Caller => callers.get(client) as Caller;
  const lab = useLab({ nodes: 2, agentArgs: ['--services-mode', mode] }, prepare);
  const node = (name = 'node-1') => lab().node(name);
  test.after.always(() => Promise.all([...callers.values()].map((each) => each.end())));

  const serve = (name: string, hostPorts: readonly PortMapping[]): Promise<PodStatus> =>
    lab().control.runPod({ namespace: 'default', name, node: 'node-1', serve: [{ port: 80 }], hostPorts });
  const remove = (name: string) => lab().control.removePod('default', name);
  const callTo = (how: Call['how'], ip: string, port: number): Call => ({ how, ip, port, deadlineMs: 10_000 });

  async function prepare(): Promise<void> {
    pods.set('web', await serve('web', BOTH(8080)));
    for (const i of [1, 2]) pods.set(`idle-${i}`, await lab().runPod(`idle-${i}`, `node-${i}`));
    const inside = (name: string) => {
      const pod = pods.get(name) as PodStatus;
      return inPod(node(pod.node), pod.netns, []);
    };
    const { supervisorPid } = await lab().control.status();
    const places: Readonly<Record<Client, readonly [string, ...string[]]>> = {
      fabric: ['nsenter', '--target', `${supervisorPid}`, '--net', '--'],
      'host-1': inNode(node(), []),
      'host-2': inNode(node('node-2'), []),
      'idle-1': inside('idle-1'),
      'idle-2': inside('idle-2'),
      self: inside('web'),
    };
    for (const client of CLIENTS) callers.set(client, await openCaller(places[client]));
  }

  function sourcesOf(client: Client): readonly string[] {
    const source = SOURCES[mode][client];
    if (source !== 'own') return [...node(source).addresses, ...POD_NETWORK[source]];
    if (client === 'fabric') return ['172.30.0.1', 'fd30::1'];
    if (client === 'host-2') return node('node-2').addresses;
    return pods.get(client === 'self' ? 'web' : client)?.addresses ?? [];
  }

  /** Waits for this answer of each client, and says what came instead. */
  async function untilAnswered(t: ExecutionContext, calls: readonly Call[], expected: string): Promise<void> {
    for (const client of ['fabric', 'host-1', 'idle-1'] as const) {
      let last: readonly string[] = [];
      const isSo = async () => {
        last = (await caller(client).callAll(calls.map((call) => ({ ...call, deadlineMs: 2000 })))).map(wordOf);
        return last.every((each) => each === expected);
      };
      await until(isSo, { describe: expected, deadlineMs: TIMEOUT_MS, intervalMs: 50 }).catch(() => undefined);
      t.deepEqual(new Set(last), new Set([expected]), `${client}: ${JSON.stringify(calls)}`);
    }
  }
  async function untilReady(): Promise<void> {
    const isReady = async () => (await agentStatus(node()))?.readiness.ready === true;
    await until(isReady, { describe: 'the next agent', deadlineMs: TIMEOUT_MS, intervalMs: 50 });
    await untilSettled(node());
  }
  const everywhere = (port: number, how: Call['how'] = 'tcp') => node().addresses.map((ip) => callTo(how, ip, port));

  test.serial(`${mode}: a host port leads to its pod from everywhere, and shows who comes from outside`, async (t) => {
    const ways = node().addresses.flatMap((ip) =>
      (['tcp', 'udp', 'udp-connected'] as const).map((how) => callTo(how, ip, 8080)),
    );
    for (const client of CLIENTS) {
      const answers = await caller(client).callAll(ways);
      for (const [i, { from, error, peer }] of answers.entries()) {
        const { how, ip, port } = ways[i] as Call;
        const [name, source = ''] = (from ?? '').split(' ');
        t.is(name, 'web', `${client} ${how} ${ip}: ${error}`);
        t.true(sourcesOf(client).includes(source), `${client} ${how} ${ip}: the pod sees ${source}`);
        t.is(familyOf(source as IpAddress), familyOf(ip as IpAddress));
        if (how !== 'tcp') t.is(peer, `${ip} ${port}`, `${client} ${how}: the answer comes from where it was asked`);
      }
    }
  });

  test.serial(`${mode}: other ports, and other addresses, are not touched`, async (t) => {
    await untilAnswered(t, [...everywhere(8081), ...everywhere(80)], 'ECONNREFUSED');
    const others = node('node-2').addresses.map((ip) => callTo('tcp', ip, 8080));
    await untilAnswered(t, others, 'ECONNREFUSED');
    const loopback = await caller('host-1').callAll(['127.0.0.1', '::1'].map((ip) => callTo('tcp', ip, 8080)));
    t.deepEqual(loopback.map(wordOf), ['ECONNREFUSED', 'ECONNREFUSED']);
  });

  test.serial(`${mode}: a hostIP narrows it down, and is followed when the node gets it`, async (t) => {
    const [ipv4 = '', ipv6 = ''] = node().addresses;
    const later = '172.30.0.99';
    await serve('narrow', [...BOTH(8082, ipv4), ...BOTH(8083, later), ...BOTH(8084, '::')]);
    await untilAnswered(t, [callTo('tcp', ipv4, 8082), callTo('tcp', ipv6, 8084)], 'narrow');
    await untilAnswered(
      t,
      [callTo('tcp', ipv6, 8082), callTo('tcp', ipv4, 8083), callTo('tcp', ipv4, 8084)],
      'ECONNREFUSED',
    );
    t.regex(await problems(), /host port 172\.30\.0\.99:8083\/TCP: this node has no such address/);
    await output(shIn(node(), `ip address add ${later}/24 dev eth0`));
    await untilAnswered(t, [callTo('tcp', later, 8083), callTo('udp', later, 8083)], 'narrow');
    t.notRegex(await problems(), /8083/);
    await output(shIn(node(), `ip address del ${later}/24 dev eth0`));
    await remove('narrow');
  });

  test.serial(`${mode}: a port that is taken fails the ADD, and is free when its pod has gone`, async (t) => {
    const refused = await t.throwsAsync(serve('second', BOTH(8080)));
    t.regex(refused?.message ?? '', /cannot give default\/second the host port 8080\/TCP: .* default\/web has/);
    t.false((await lab().control.status()).pods.some(({ name }) => name === 'second'));
    await serve('elsewhere', BOTH(8085, node().addresses[0]));
    await t.throwsAsync(serve('second', BOTH(8085)), { message: /8085\/TCP: .* default\/elsewhere has/ });
    await serve('second', BOTH(8085, node().addresses[1]));
    const [ipv4 = '', ipv6 = ''] = node().addresses;
    await untilAnswered(t, [callTo('tcp', ipv4, 8085)], 'elsewhere');
    await untilAnswered(t, [callTo('tcp', ipv6, 8085)], 'second');
    await remove('elsewhere');
    await remove('second');
    await untilAnswered(t, everywhere(8085), 'ECONNREFUSED');
    await serve('second', BOTH(8085));
    await untilAnswered(t, [...everywhere(8085), ...everywhere(8085, 'udp')], 'second');
    await remove('second');
  });

  test.serial(`${mode}: a pod that is made again has its ports at once, also while the old one is there`, async (t) => {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    const request = { namespace: 'default', name: 'again', uid: 'again', hostPorts: BOTH(8086) };
    const [first, second] = [await addPod(node(), request, signal), await addPod(node(), request, signal)];
    t.regex(await problems(), /8086\/TCP: at .*, default\/again, which came later, has it/);
    const inFirst = await openCaller(inPod(node(), first.netns, []));
    const inSecond = await openCaller(inPod(node(), second.netns, []));
    const listen = (netns: string, name: string) =>
      shIn(node(), `ip netns exec ${netns} setsid '${process.execPath}' '${POD_SERVER}' ${name} 80 >/dev/null 2>&1 &`);
    await output(listen(first.netns, 'old'));
    await output(listen(second.netns, 'new'));
    await untilAnswered(t, [...everywhere(8086), ...everywhere(8086, 'udp')], 'new');
    await removePod(node(), first, signal);
    await untilAnswered(t, everywhere(8086), 'new');
    t.notRegex(await problems(), /8086/);
    await removePod(node(), second, signal);
    await Promise.all([inFirst.end(), inSecond.end()]);
    await untilAnswered(t, everywhere(8086), 'ECONNREFUSED');
  });

  test.serial(`${mode}: a datagram socket moves on to the pod that has the port now`, async (t) => {
    await serve('dns-1', BOTH(8087));
    const calls = node().addresses.flatMap((ip) =>
      (['udp', 'udp-connected'] as const).map((how) => ({ ...callTo(how, ip, 8087), socket: `${how} ${ip}` })),
    );
    const ask = async (client: Client) => (await caller(client).callAll(calls)).map(wordOf);
    t.deepEqual(new Set(await ask('fabric')), new Set(['dns-1']));
    await remove('dns-1');
    await serve('dns-2', BOTH(8087));
    t.deepEqual(new Set(await ask('fabric')), new Set(['dns-2']));
    await remove('dns-2');
  });

  test.serial(
    `${mode}: of a Service's node port and a host port the older has the place, the other is reported`,
    async (t) => {
      const ports = [{ name: 'tcp', protocol: 'TCP', port: 80, targetPort: 80, nodePort: 31_000 }];
      const spec = { type: 'NodePort', selector: { app: 'web' }, ports, ipFamilyPolicy: 'PreferDualStack' };
      const object = { apiVersion: 'v1', kind: 'Service', metadata: { namespace: 'default', name: 'web' }, spec };
      await lab().control.callApi({ method: 'POST', path: apiPath.services('default'), object });
      await untilAnswered(t, everywhere(31_000), 'web');
      await serve('late', BOTH(31_000));
      await untilAnswered(t, everywhere(31_000, 'udp'), 'late');
      await untilAnswered(t, everywhere(31_000), 'web');
      t.regex(await problems(), /default\/late: .*but service default\/web has the older one/);
      await lab().control.callApi({ method: 'DELETE', path: apiPath.service('default', 'web') });
      await untilAnswered(t, everywhere(31_000), 'late');
      await remove('late');
      await untilAnswered(t, everywhere(31_000), 'ECONNREFUSED');
    },
  );

  test.serial(
    `${mode}: an agent that is killed keeps the ports; one that was away takes back those of deleted pods`,
    async (t) => {
      await serve('gone', BOTH(8088));
      const loads = (['fabric', 'host-1', 'idle-1'] as const).map((client) =>
        caller(client).load({ ip: node().addresses[0] as string, port: 8080, perSecond: 200 }),
      );
      await lab().control.killAgent('node-1');
      await untilReady();
      for (const load of loads) {
        const { answers = {}, errors } = await load.stop();
        t.deepEqual(errors, {});
        t.true(Object.values(answers).reduce((sum, each) => sum + each, 0) > 50);
      }
      await t.throwsAsync(serve('second', BOTH(8080)), { message: /default\/web has/ }, 'it knows whose they are');
      await lab().control.stopAgent('node-1');
      await remove('gone');
      t.regex(await placesInKernel(8088), /8088/, 'nobody was there to take them back');
      await lab().control.startAgent('node-1');
      await untilReady();
      t.is(await placesInKernel(8088), '');
      await untilAnswered(t, everywhere(8088), 'ECONNREFUSED');
      await untilAnswered(t, everywhere(8080), 'web');
    },
  );

  test.serial(`${mode}: bad port mappings are refused one by one, and leave nothing`, async (t) => {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    for (const [mapping, message] of [
      [{ HostPort: 70_000, ContainerPort: 80 }, /portMappings\[0\]\.hostPort: expected an integer from 0 to 65535/],
      [{ HostPort: 81, ContainerPort: 0 }, /portMappings\[0\]\.containerPort: expected an integer from 1 to 65535/],
      [{ HostPort: 81, ContainerPort: 80, Protocol: 'dccp' }, /portMappings\[0\]\.protocol: expected tcp, udp or sctp/],
      [{ HostPort: 81, ContainerPort: 80, HostIP: 'eth0' }, /portMappings\[0\]\.hostIP: expected an IP address/],
    ] as const) {
      const pod = { namespace: 'default', name: 'bad', uid: 'bad', runtimeConfig: { portMappings: [mapping] } };
      await t.throwsAsync(addPod(node(), pod, signal), { message });
    }
    t.deepEqual((await agentStatus(node()))?.attachments.map(({ podName }) => podName).toSorted(), ['idle-1', 'web']);
  });

  test.serial(`${mode}: the last pod with a host port leaves nothing in the kernel`, async (t) => {
    t.regex(await placesInKernel(8080), /8080/);
    await callers.get('self')?.end();
    await remove('web');
    await untilSettled(node());
    t.is(await placesInKernel(8080), '');
  });

  /** Lines of rules and sets that name the port. */
  const placesInKernel = async (port: number): Promise<string> => {
    const rules = 'iptables-save -t nat; ip6tables-save -t nat; ipset save';
    const lines = (await output(shIn(node(), rules))).split('\n');
    return lines.filter((line) => new RegExp(`[^0-9]${port}([^0-9]|$)`).test(line)).join('\n');
  };

  const problems = async (): Promise<string> => {
    const status = await agentStatus(node());
    return (status?.kernel.problems ?? []).map(({ cause, problem }) => `${cause}: ${problem}`).join('\n');
  };
}

const POD_SERVER = new URL('../../lab/pod-server.ts', import.meta.url).pathname;

/** The name of who answered, or the errno. */
const wordOf = ({ from, error }: Answer): string => from?.split(' ')[0] ?? error ?? '';
