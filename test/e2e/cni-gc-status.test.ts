/** What a runtime may ask of the whole node: STATUS and GC; and what the agent collects where nobody asks. */
import test from 'ava';
import { apiPath } from '../../lab/api-writer.ts';
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
import { output, run, shIn, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';
import { recreateNode } from '../support/recreate-node.ts';

const lab = useLab({ nodes: 1 });
const node = () => lab().node('node-1');
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 20 };

const status = async (): Promise<string> => {
  const { code, message } = await cni({ node: node(), containerId: 'none', netns: 'none', ifName: 'none' }, 'STATUS');
  return code === 0 ? 'ok' : `${code} ${message}`;
};
const untilStatus = (expected: RegExp) =>
  until(async () => expected.test(await status()), { describe: `STATUS to be ${expected}`, ...WAIT });

const addressesOf = ({ result }: CniAnswer): readonly string[] =>
  (result['ips'] as readonly { readonly address: string }[]).map(({ address }) => address.split('/')[0] as string);

const answers = async (address: string): Promise<boolean> =>
  (await run(inNode(node(), ['ping', '-n', '-c', '1', '-W', '1', address]))).exitCode === 0;

async function remove(pod: TestPod): Promise<void> {
  await cni(pod, 'DEL');
  await removeNetns(pod);
}

/** A shell under the name of a runtime, which calls the executable as its child. */
async function runtime(name: string): Promise<readonly string[]> {
  await output(shIn(node(), `[ -e /run/${name} ] || cp /bin/sh /run/${name}`));
  return [`/run/${name}`, '-c', '"$@"; exit $?', name];
}

test.serial('GC leaves alone what another runtime has in the same network', async (t) => {
  const [mine, listed, foreign] = [await createPod(node()), await createPod(node()), await createPod(node())];
  const [own, other] = [await runtime('first-runtime'), await runtime('second-runtime')];
  const added = [
    await cni(mine, 'ADD', { through: own }),
    await cni(listed, 'ADD', { through: own }),
    await cni(foreign, 'ADD', { through: other }),
  ];
  const [gone = '', kept = '', others = ''] = added.map((answer) => addressesOf(answer)[0]);
  const config = { 'cni.dev/valid-attachments': [{ containerID: listed.containerId, ifname: listed.ifName }] };
  t.is((await cni(mine, 'GC', { through: own, config })).code, 0);
  t.deepEqual(await Promise.all([gone, kept, others].map(answers)), [false, true, true]);
  t.is((await cni(mine, 'GC', { through: other, config: { 'cni.dev/valid-attachments': [] } })).code, 0);
  t.deepEqual(await Promise.all([kept, others].map(answers)), [true, false]);
  for (const pod of [mine, listed, foreign]) await remove(pod);
});

test.serial('a pod whose namespace vanishes without a DEL is released by the agent itself', async (t) => {
  const before = await readHost(node());
  const pod = await createPod(node());
  const added = await cni(pod, 'ADD');
  await removeNetns(pod);
  const isReleased = async () => differences(before, await readHost(node())).length === 0;
  const startMs = performance.now();
  await until(isReleased, { describe: 'the node to be as before', ...WAIT });
  t.log(`after ${(performance.now() - startMs).toFixed(0)} ms`);
  await untilSettled(node());
  t.is((await cni(pod, 'CHECK', { config: { prevResult: added.result } })).code, 3);
  t.deepEqual([(await cni(pod, 'DEL')).code], [0]);
});

test.serial('STATUS is 51 while what the node needs cannot be in the kernel, and names it', async (t) => {
  t.is(await status(), 'ok');
  // Without its mark the device is somebody else's, whatever its name.
  await output(shIn(node(), 'ip link set tulle.84 alias mine'));
  await untilStatus(/^51 .*link tulle\.84 exists and is not Tulle's/);
  t.is((await tulle(node(), 'status')).exitCode, 1);
  await output(shIn(node(), 'ip link delete tulle.84'));
  await untilStatus(/^ok$/);
  t.pass();
});

test.serial('STATUS is 51 while the Node is away, and pods that run go on', async (t) => {
  const pod = await createPod(node());
  const [address = ''] = addressesOf(await cni(pod, 'ADD'));
  const { control } = lab();
  const { metadata, spec, status: state } = await control.callApi({ method: 'GET', path: apiPath.node('node-1') });
  await control.callApi({ method: 'DELETE', path: apiPath.node('node-1') });
  await untilStatus(/^51 .*no Node named node-1/);
  t.true(await answers(address));
  const object = { apiVersion: 'v1', kind: 'Node', metadata: { name: metadata.name }, spec };
  await control.callApi({ method: 'POST', path: apiPath.nodes, object });
  await control.callApi({ method: 'PATCH', path: `${apiPath.node('node-1')}/status`, object: { status: state } });
  await untilStatus(/^ok$/);
  await remove(pod);
});

test.serial(
  'a node without a free address is available; the ADD that finds none says so, as tulle status does',
  async (t) => {
    await recreateNode(lab(), 'node-1', ['10.84.240.0/30', 'fd84:0:0:f0::/64']);
    const fits = async () => (await tulle(node(), 'status')).stdout.includes('podCIDR 10.84.240.0/30');
    await until(fits, { describe: 'the new podCIDR', ...WAIT });
    await untilStatus(/^ok$/);
    const pod = await createPod(node());
    const [address = ''] = addressesOf(await cni(pod, 'ADD'));
    t.is(address, '10.84.240.2');
    t.is(await status(), 'ok');
    t.regex((await tulle(node(), 'status')).stdout, /^addresses ipv4: 1 used, 0 resting, 0 free$/m);
    const next = await createPod(node());
    const refused = await cni(next, 'ADD');
    t.is(refused.code, 11);
    t.regex(refused.message, /^no free address in podCIDR 10\.84\.240\.0\/30: all 1 are in use; delete pods or /);
    t.true(await answers(address));
    await remove(pod);
    const [again = ''] = addressesOf(await cni(next, 'ADD'));
    t.is(again, address);
    await remove(next);
  },
);

test.serial('STATUS is 50 where there is no agent', async (t) => {
  await lab().control.stopAgent('node-1');
  t.regex(await status(), /^50 cannot STATUS: the tulle agent is not running on this node/);
  await lab().control.startAgent('node-1');
  await untilStatus(/^ok$/);
});
