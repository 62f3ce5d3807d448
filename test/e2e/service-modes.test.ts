/** How a running node comes to serve Services in another way, and what it does where sockets cannot be had. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { AgentStatus } from '../../agent/agent-status.ts';
import type { CheckReport } from '../../agent/doctor/doctor.ts';
import { families, type IpAddress } from '../../agent/model/ip.ts';
import { inNode, inPod, pathOnHost } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { agentStatus, isInCharge } from '../support/agent-status.ts';
import { type OpenCaller, openCaller } from '../support/caller.ts';
import { output, shIn, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import { type ServiceApi, type ServiceObject, serviceApi, TCP_AND_UDP } from '../support/service-api.ts';
import type { Answer, Call } from '../support/socket-caller.ts';

const directory = mkdtempSync(join(tmpdir(), 'tulle-test-modes-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const configFile = join(directory, 'config.yaml');
const choose = (...settings: readonly string[]) => writeFileSync(configFile, `${settings.join('\n')}\n`);
choose('services: { mode: iptables }');

const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };
const callers = new Map<'pod' | 'host', OpenCaller>();
let api: ServiceApi;
let web: ServiceObject;
const lab = useLab({ nodes: 1, agentArgs: ['--config', configFile] }, async () => {
  const { control } = lab();
  const serve = [{ port: 8080 }];
  const names = ['web-1', 'web-2'];
  const pods: PodStatus[] = [];
  for (const name of names) pods.push(await control.runPod({ namespace: 'default', name, node: 'node-1', serve }));
  const idle = await lab().runPod('idle', 'node-1');
  callers.set('pod', await openCaller(inPod(lab().node('node-1'), idle.netns, [])));
  callers.set('host', await openCaller(inNode(lab().node('node-1'), [])));
  api = serviceApi(control, new Map(pods.map((pod) => [pod.name, pod])));
  web = await api.createService('web', { type: 'NodePort', ports: TCP_AND_UDP });
  await setBackends('1', 'create');
});
test.after.always(() => Promise.all(callers.values().map((caller) => caller.end())));

async function setBackends(endpoints: string, how: 'create' | 'set' = 'set'): Promise<void> {
  for (const { family } of families) {
    const slice = { of: 'web', family, endpoints };
    await (how === 'create' ? api.createSlice(slice) : api.setEndpoints(slice));
  }
}

const node = () => lab().node('node-1');
const at = (ip: IpAddress, how: Call['how'], socket = `${how} ${ip}`): Call => ({ how, ip, port: 80, socket });
const serverOf = ({ from, error }: Answer): string => from?.split(' ')[0] ?? error ?? '';
/** What everybody gets at each address of the Service. */
const ask = async (how: Call['how']): Promise<readonly string[]> =>
  (
    await Promise.all(
      callers
        .values()
        .map((caller) => caller.callAll(web.clusterIps.map((ip) => ({ ...at(ip, how), deadlineMs: 2000 })))),
    )
  )
    .flat()
    .map(serverOf);

async function untilServed(by: string, how: Call['how'] = 'tcp'): Promise<void> {
  let last: readonly string[] = [];
  const isSo = async () => {
    last = await ask(how);
    return last.every((each) => each === by);
  };
  await until(isSo, { describe: `${how} to ${by}`, ...WAIT }).catch((cause: unknown) => {
    throw new Error(`${how} gets ${last} instead of ${by}`, { cause });
  });
}

/** The agent again, with the settings of the moment; says how it serves Services then. */
async function restart(whileAway: () => Promise<void> = async () => {}) {
  await lab().control.stopAgent('node-1');
  await whileAway();
  await lab().control.startAgent('node-1');
  await until(() => isInCharge(node()), { describe: 'the agent to be in charge', ...WAIT });
  await untilSettled(node());
  return said();
}

/** By the agent. */
async function said(): Promise<AgentStatus> {
  const status = await agentStatus(node());
  if (status) return status;
  throw new Error('the agent does not answer');
}

/** What of Services is in the kernel, in words. */
async function traces(): Promise<readonly string[]> {
  const questions = {
    programs: 'bpftool cgroup show /sys/fs/cgroup | grep tulle_',
    pins: 'ls /sys/fs/bpf/tulle',
    chains: 'iptables-save | grep -E "^:TULLE-SVC|^:TULLE-SERVICES"',
    sets: 'ipset list -n | grep tulle-svc',
  };
  const found: string[] = [];
  for (const [name, question] of Object.entries(questions))
    if ((await output(shIn(node(), `${question} 2>/dev/null || true`))) !== '') found.push(name);
  return found;
}

for (const [from, to] of [
  ['iptables', 'ebpf'],
  ['ebpf', 'iptables'],
] as const) {
  test.serial(`from ${from} to ${to}: no connection fails, open ones go on, nothing is left behind`, async (t) => {
    await untilServed('web-1');
    const open = await ask('tcp-open');
    t.deepEqual(new Set(open), new Set(['web-1']));
    const [ip] = web.clusterIps as readonly [IpAddress];
    const loads = [...callers.values()].map((caller) => caller.load({ ip, port: 80, perSecond: 100 }));
    choose(`services: { mode: ${to} }`);
    const status = await restart();
    const results = await Promise.all(loads.map((load) => load.stop()));
    for (const { answers, errors } of results) {
      t.deepEqual(errors, {});
      t.true(Object.values(answers ?? {}).reduce((sum, count) => sum + count, 0) > 20);
    }
    t.is(status.services?.mode, to);
    t.deepEqual(await ask('tcp-open'), open);
    const expected = to === 'ebpf' ? 'programs pins chains sets' : 'chains sets';
    await until(async () => (await traces()).join(' ') === expected, { describe: `${expected} to be there`, ...WAIT });
  });
}

test.serial('datagram sockets that no program saw are destroyed when programs come, and no others', async (t) => {
  await untilServed('web-1', 'udp-connected');
  const direct = (name: string): Call => ({ how: 'udp-connected', ip: podIp, port: 8080, socket: name });
  const { pods } = await lab().control.status();
  const podIp = pods.find(({ name }) => name === 'web-1')?.addresses[0] as IpAddress;
  for (const caller of callers.values()) t.is(serverOf(await caller.call(direct('direct'))), 'web-1');
  choose('services: { mode: ebpf }');
  await restart();
  const isDestroyed = async () => (await ask('udp-connected')).every((each) => /ECONNABORTED|EDESTADDRREQ/.test(each));
  await until(isDestroyed, { describe: 'the sockets to be destroyed', ...WAIT });
  for (const caller of callers.values()) t.is(serverOf(await caller.call(direct('direct'))), 'web-1');
  for (const caller of callers.values()) {
    const anew = web.clusterIps.map((ip) => at(ip, 'udp-connected', `anew ${ip}`));
    t.deepEqual((await caller.callAll(anew)).map(serverOf), ['web-1', 'web-1']);
  }
});

test.serial(
  'datagram sockets whose backend is gone are destroyed, also if it went while the agent was away',
  async (t) => {
    const anew = (name: string) => web.clusterIps.map((ip) => at(ip, 'udp-connected', `${name} ${ip}`));
    const all = async (name: string) =>
      (await Promise.all(callers.values().map((caller) => caller.callAll(anew(name))))).flat().map(serverOf);
    t.deepEqual(new Set(await all('one')), new Set(['web-1']));
    await setBackends('2');
    await untilServed('web-2');
    await until(async () => (await all('one')).every((each) => /ECONNABORTED|EDESTADDRREQ/.test(each)), {
      describe: 'the sockets to web-1 to be destroyed',
      ...WAIT,
    });
    t.deepEqual(new Set(await all('two')), new Set(['web-2']));
    await restart(() => setBackends('1'));
    await untilServed('web-1');
    await until(async () => (await all('two')).every((each) => /ECONNABORTED|EDESTADDRREQ/.test(each)), {
      describe: 'the sockets to web-2 to be destroyed',
      ...WAIT,
    });
  },
);

test.serial('who calls a Service where no program sees it is refused, and the doctor says so', async (t) => {
  const services = async () => {
    const { stdout } = await tulle(node(), 'doctor', '--json');
    const { checks } = JSON.parse(stdout) as { checks: readonly CheckReport[] };
    return checks.find(({ check }) => check === 'services');
  };
  await untilServed('web-1');
  const before = await services();
  t.is(before?.state, 'ok', before?.findings[0]?.evidence.join());
  // As a virtual machine in the pod: in its network, and not below the node's cgroup.
  const idle = (await lab().control.status()).pods.find(({ name }) => name === 'idle');
  const netns = pathOnHost(node(), `/run/netns/${idle?.netns}`);
  const stranger = await openCaller(['nsenter', `--net=${netns}`, '--']);
  const calls = web.clusterIps.flatMap((ip) => Array.from({ length: 25 }, (): Call => ({ how: 'tcp', ip, port: 80 })));
  const answers = await stranger.callAll(calls);
  await stranger.end();
  t.deepEqual(new Set(answers.map(serverOf)), new Set(['ECONNREFUSED']));
  const after = await services();
  t.is(after?.findings[0]?.evidence.length, 2, 'one rule a family');
  t.regex(after?.findings[0]?.summary ?? '', /^packets to cluster addresses were refused/);
});

test.serial('a full map is told, with the setting, and what is in it goes on', async (t) => {
  choose('services: { mode: ebpf, ebpf: { maxFrontends: 64 } }');
  await restart();
  for (let i = 0; i < 20; i++) await api.createService(`filler-${i}`, { ports: TCP_AND_UDP });
  const complaints = async () => {
    const { problems, kernel } = await said();
    const failing = kernel.failing.filter(({ key }) => key.startsWith('frontend '));
    return { problems: problems.join(), failing: failing.length, error: failing[0]?.error ?? '' };
  };
  await until(async () => (await complaints()).failing > 0, { describe: 'a frontend that does not fit', ...WAIT });
  const { problems, error } = await complaints();
  t.regex(problems, /the map of frontends holds 6\d of at most 64: set services\.ebpf\.maxFrontends higher/);
  t.regex(error, /full|E2BIG/);
  const page = await output(inNode(node(), ['curl', '-sS', '--max-time', '10', 'http://127.0.0.1:9440/metrics']));
  t.regex(page, /^tulle_services_map_entries\{map="frontends"\} 6\d$/m);
  t.regex(page, /^tulle_services_map_max_entries\{map="frontends"\} 64$/m);
  await untilServed('web-1');
  choose('services: { mode: ebpf }');
  const wider = await restart();
  t.deepEqual(wider.kernel.failing, []);
  await untilServed('web-1');
  for (let i = 0; i < 20; i++) await api.deleteService(`filler-${i}`);
});

for (const [what, settings, break_, repair, reason] of [
  [
    'no cgroup v2',
    'cgroupRoot: /proc',
    '',
    '',
    /cgroup v2: .*expected cgroup v2 at \/proc or \/proc\/unified, got none/,
  ],
  [
    'a loader that fails',
    '',
    'mount --bind /bin/false /usr/sbin/bpftool; rm -r /sys/fs/bpf/tulle',
    'umount /usr/sbin/bpftool',
    /bpftool/,
  ],
] as const) {
  test.serial(`${what}: packets serve instead, and the reason is told`, async (t) => {
    choose('services: { mode: auto }', settings);
    const auto = await restart(() => breakNode(break_));
    t.is(auto.services?.mode, 'iptables');
    t.regex(auto.services?.reason ?? '', reason);
    t.deepEqual(auto.problems, []);
    await untilServed('web-1');
    choose('services: { mode: ebpf }', settings);
    const ebpf = await restart();
    t.is(ebpf.services?.mode, 'iptables');
    t.regex(ebpf.problems.join(), /^services\.mode is ebpf, but Services are served by iptables: /);
    await untilServed('web-1');
    await breakNode(repair);
    choose('services: { mode: auto }');
    t.is((await restart()).services?.mode, 'ebpf');
    await untilServed('web-1');
  });
}

const breakNode = async (line: string): Promise<void> => void (line && (await output(shIn(node(), line))));

test.serial('scope host: sockets of the host are translated, those of pods are left to packets', async (t) => {
  choose('services: { mode: ebpf, ebpf: { scope: host } }');
  await restart();
  await untilServed('web-1');
  for (const [who, caller] of callers) {
    for (const ip of web.clusterIps) {
      // getpeername is translated back, so that only who counts it tells.
      const before = await outcomes();
      const { from } = await caller.call({ how: 'tcp', ip, port: 80 });
      const after = await outcomes();
      const more = (outcome: string) => (after[outcome] ?? 0) - (before[outcome] ?? 0);
      t.is(from?.split(' ')[0], 'web-1');
      t.true(more(who === 'host' ? 'translated' : 'other-netns') > 0, `${who} to ${ip}`);
    }
    const unknown = await caller.callAll(web.clusterIps.map((ip) => ({ how: 'tcp', ip, port: 81 })));
    t.deepEqual(
      unknown.map(({ error }) => error),
      ['ECONNREFUSED', 'ECONNREFUSED'],
      who,
    );
  }
});

const outcomes = async () => (await said()).services?.sockets?.counters ?? {};

test.serial('off: nothing of Services is left', async (t: ExecutionContext) => {
  choose('services: { mode: off }');
  const status = await restart();
  t.is(status.services, undefined);
  const isGone = async () => (await traces()).length === 0;
  await until(isGone, { describe: 'everything of Services to go', ...WAIT });
});
