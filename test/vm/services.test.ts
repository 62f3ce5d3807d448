/** That sockets serve Services on this kernel: the verifier takes the programs, and each way to call one works. */
import test from 'ava';
import { families, familyOf } from '../../agent/model/ip.ts';
import { inNode, inPod } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from '../support/agent-status.ts';
import { type OpenCaller, openCaller } from '../support/caller.ts';
import { TIMEOUT_MS, untilSettled, useLab } from '../support/lab.ts';
import { type ServiceApi, type ServiceObject, serviceApi, TCP_AND_UDP } from '../support/service-api.ts';
import type { Answer, Call } from '../support/socket-caller.ts';

const HOWS = ['tcp', 'udp', 'udp-connected'] as const;
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 100 };

const callers = new Map<'pod' | 'host', OpenCaller>();
let api: ServiceApi;
let web: ServiceObject;
const lab = useLab({ nodes: 1, agentArgs: ['--services-mode', 'auto'] }, async () => {
  const pods: PodStatus[] = [];
  for (const name of ['web-1', 'web-2'])
    pods.push(await lab().control.runPod({ namespace: 'default', name, node: 'node-1', serve: [{ port: 8080 }] }));
  const idle = await lab().runPod('idle', 'node-1');
  callers.set('pod', await openCaller(inPod(node(), idle.netns, [])));
  callers.set('host', await openCaller(inNode(node(), [])));
  api = serviceApi(lab().control, new Map(pods.map((pod) => [pod.name, pod])));
  web = await api.createService('web', { ports: TCP_AND_UDP });
  for (const { family } of families) await api.createSlice({ of: 'web', family, endpoints: '1' });
  await untilAll(calls('tcp'), (answer) => serverOf(answer) === 'web-1');
  await untilSettled(node());
});
test.after.always(() => Promise.all(callers.values().map((caller) => caller.end())));

const node = () => lab().node('node-1');
const serverOf = ({ from, error }: Answer): string => from?.split(' ')[0] ?? error ?? '';
const calls = (how: Call['how'], port = 80, ips = web.clusterIps): readonly Call[] =>
  ips.map((ip) => ({ how, ip, port }));

/** What each caller gets, by its name. */
async function ask(asked: readonly Call[]): Promise<ReadonlyMap<string, readonly Answer[]>> {
  const answers = new Map<string, readonly Answer[]>();
  for (const [name, caller] of callers) answers.set(name, await caller.callAll(asked));
  return answers;
}

async function untilAll(asked: readonly Call[], isSo: (answer: Answer) => boolean): Promise<void> {
  let last: readonly Answer[] = [];
  const areAll = async () => {
    last = [...(await ask(asked)).values()].flat();
    return last.every(isSo);
  };
  await until(areAll, { describe: 'an answer', ...WAIT }).catch((cause: unknown) => {
    throw new Error(`the last answers are ${JSON.stringify(last)}`, { cause });
  });
}

test.serial('services.mode auto is served at sockets, and the status lacks nothing', async (t) => {
  const status = await agentStatus(node());
  t.is(status?.services?.mode, 'ebpf', status?.services?.reason);
  t.deepEqual(
    status?.host.features.filter(({ state }) => state !== 'supported'),
    [],
  );
  t.deepEqual([status?.problems, status?.kernel.failing], [[], []]);
});

test.serial(
  'pods and the host reach a Service over TCP and UDP, both families, and see it as their peer',
  async (t) => {
    t.deepEqual(web.clusterIps.map((ip) => familyOf(ip)).sort(), ['ipv4', 'ipv6']);
    for (const how of HOWS) {
      for (const [name, answers] of await ask(calls(how))) {
        const seen = answers.map((answer) => [serverOf(answer), answer.peer]);
        t.deepEqual(
          seen,
          web.clusterIps.map((ip) => ['web-1', `${ip} 80`]),
          `${how} from ${name}`,
        );
      }
    }
  },
);

test.serial('an unknown port and a Service without endpoints are refused as such', async (t) => {
  const idle = await api.createService('idle', { ports: TCP_AND_UDP });
  await untilAll(calls('tcp', 80, idle.clusterIps), ({ error }) => error === 'ECONNREFUSED');
  for (const how of HOWS) {
    const asked = [...calls(how, 81), ...calls(how, 80, idle.clusterIps)];
    for (const [name, answers] of await ask(asked))
      t.deepEqual(
        answers.map(serverOf),
        asked.map(() => 'ECONNREFUSED'),
        `${how} from ${name}`,
      );
  }
});

test.serial('datagram sockets whose backend is gone are destroyed, and no others', async (t) => {
  const { pods } = await lab().control.status();
  const [web1] = pods.filter(({ name }) => name === 'web-1') as [PodStatus];
  const direct = web1.addresses.map((ip): Call => ({ how: 'udp-connected', ip, port: 8080, socket: `direct ${ip}` }));
  const kept = calls('udp-connected').map((call): Call => ({ ...call, socket: call.ip }));
  await untilAll([...direct, ...kept], (answer) => serverOf(answer) === 'web-1');
  for (const { family } of families) await api.setEndpoints({ of: 'web', family, endpoints: '2' });
  await untilAll(kept, ({ error }) => error === 'ECONNABORTED' || error === 'EDESTADDRREQ');
  await untilAll(calls('udp-connected'), (answer) => serverOf(answer) === 'web-2');
  for (const [name, answers] of await ask(direct))
    t.deepEqual(
      answers.map(serverOf),
      direct.map(() => 'web-1'),
      name,
    );
});
