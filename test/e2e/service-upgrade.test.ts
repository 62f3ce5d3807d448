/** Services at sockets while an agent with other maps takes over: a value has another form there, and so have the programs. */
import test from 'ava';
import { SOCKET_HOOKS } from '../../agent/model/items.ts';
import { until } from '../../lab/until.ts';
import { agentStatus, isInCharge } from '../support/agent-status.ts';
import { createBuilds } from '../support/builds.ts';
import { output, shIn, TIMEOUT_MS, untilSettled } from '../support/lab.ts';
import { TCP_AND_UDP } from '../support/service-api.ts';
import { killAgents, underLoad } from '../support/service-changes.ts';
import { useServiceLab } from '../support/service-lab.ts';
import type { Answer, Call } from '../support/socket-caller.ts';

const [OLD, NEW] = ['1.0.0', '1.1.0'] as const;
/** Not those who make the load. */
const WITNESSES = ['self-1', 'host-1'] as const;
const NODES = ['node-1', 'node-3'] as const;

/** The newer one has a word more in each backend, and counts its frontends as another layout, too. */
const builds = await createBuilds([
  { version: OLD },
  {
    version: NEW,
    edits: [
      { file: 'ebpf/types.h', from: '\tstruct endpoint at;\n', to: '\tstruct endpoint at;\n\t__u32 weight;\n' },
      { file: 'ebpf/types.h', from: 'sizeof(struct backend) == 24', to: 'sizeof(struct backend) == 28' },
      {
        file: 'agent/kernel/bpf/layout.ts',
        from: 'backend: { bytes: 24, fields: { at: field(0, 20), seal: field(20, 4) } }',
        to: 'backend: { bytes: 28, fields: { at: field(0, 20), weight: field(20, 4), seal: field(24, 4) } }',
      },
      ...['frontends', 'backends'].map((map) => ({
        file: 'agent/kernel/bpf/store.ts',
        from: `(sizes) => sizes.${map}, BPF_F_NO_PREALLOC)`,
        to: `(sizes) => sizes.${map}, BPF_F_NO_PREALLOC, 2)`,
      })),
    ],
  },
]);
test.after.always(() => builds.remove());
const lab = useServiceLab('ebpf', { agentCommand: [builds.tulle, 'agent'] });

/** Sockets that stay open, and a client with affinity: by one call each, whenever it is asked. */
async function openCalls(): Promise<readonly Call[]> {
  const { api, written } = lab();
  const kept = await api.createService('kept', { ports: TCP_AND_UDP });
  const sticky = await api.createService('sticky', { ports: TCP_AND_UDP, sessionAffinity: 'ClientIP' });
  for (const name of ['kept', 'sticky'])
    for (const family of ['ipv4', 'ipv6'] as const) await api.createSlice({ of: name, family, endpoints: '1 2 3' });
  await written();
  const at = { port: 80, deadlineMs: TIMEOUT_MS };
  return [
    ...kept.clusterIps.flatMap((ip): Call[] => [
      { how: 'tcp-open', socket: `open ${ip}`, ip, ...at },
      { how: 'udp-connected', socket: `connected ${ip}`, ip, ...at },
      { how: 'udp', socket: `free ${ip}`, ip, ...at },
    ]),
    ...sticky.clusterIps.flatMap((ip) => Array.from({ length: 4 }, (): Call => ({ how: 'tcp', ip, ...at }))),
  ];
}

/** Whom it answers and whom the socket takes for its peer; the client's own address and port are of no matter. */
const shortly = ({ from = '', peer, error }: Answer): string => error ?? `${from.split(' ')[0]} as ${peer}`;

async function pinsOf(name: string): Promise<readonly string[]> {
  const pins = await output(shIn(lab().lab.node(name), 'ls /sys/fs/bpf/tulle/maps'));
  return pins.split('\n').filter((pin) => /^tulle_(?:frontends|backends)-/.test(pin));
}

for (const [from, to, layout] of [
  [OLD, NEW, 'v2'],
  [NEW, OLD, 'v1'],
] as const) {
  test.serial(`from ${from} to ${to} under load: nothing fails or goes astray, and what was stays`, async (t) => {
    t.timeout(180_000);
    const { api, caller } = lab();
    const calls = await openCalls();
    const askAll = async () =>
      (await Promise.all(WITNESSES.map((client) => caller(client).callAll(calls)))).flat().map(shortly);
    const before = await askAll();
    t.true(
      before.every((each) => /^web-\d as /.test(each)),
      before.join(),
    );
    await underLoad(t, lab(), async (changeEndpoints) => {
      builds.switchTo(to);
      const changing = changeEndpoints();
      await killAgents(lab());
      await changing;
      for (const name of NODES) {
        const node = lab().lab.node(name);
        t.is((await agentStatus(node))?.version, to);
        const wait = { deadlineMs: TIMEOUT_MS, intervalMs: 100 };
        await until(() => isInCharge(node), { describe: `${to} to be in charge of ${name}`, ...wait });
        const areNew = async () => (await pinsOf(name)).every((pin) => pin.includes(`-${layout}-`));
        await until(areNew, { describe: `pins of the other layout to go from ${name}`, ...wait });
        await untilSettled(node);
        t.is((await pinsOf(name)).length, 2);
        const programs = await output(shIn(node, 'bpftool cgroup show /sys/fs/cgroup | grep -c tulle_'));
        t.is(Number(programs), SOCKET_HOOKS.length);
      }
      t.deepEqual(await askAll(), before);
      await changeEndpoints();
    });
    for (const name of ['kept', 'sticky', 'loaded', 'other']) {
      await api.deleteService(name);
      for (const family of ['ipv4', 'ipv6'] as const) await api.deleteSlice(name, family);
    }
  });
}
