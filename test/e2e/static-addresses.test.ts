/** Pods that ask for their addresses: real Pod objects, the installed executable, packets from another node. */
import test from 'ava';
import { addressAt, type Cidr } from '../../agent/model/ip.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { inNode, type NodeRef } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { type CniAnswer, cni, createPod, removeNetns, type TestPod } from '../support/cni-calls.ts';
import { run, TIMEOUT_MS, tulle, useLab } from '../support/lab.ts';

const lab = useLab({ nodes: 2, agentArgs: ['--ipam-static-namespaces', 'fixed,other'] }, prepare);
const node = () => lab().node('node-1');

/** Addresses of the node's podCIDRs by their place, IPv4 and IPv6. */
const at = (offset: number): readonly string[] => node().podCidrs.map((cidr) => addressAt(cidr as Cidr, offset));
const [v4, v6] = [(offset: number) => at(offset)[0] as string, (offset: number) => at(offset)[1] as string];

async function prepare(): Promise<void> {
  for (const name of ['fixed', 'other']) {
    const object = { apiVersion: 'v1', kind: 'Namespace', metadata: { name } };
    await lab().control.callApi({ method: 'POST', path: '/api/v1/namespaces', object });
  }
}

interface PodObject {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly creationTimestamp?: string;
}

async function createObject(
  name: string,
  ips?: string,
  { namespace = 'fixed', annotations = {} } = {},
): Promise<PodObject> {
  const metadata = {
    namespace,
    name,
    annotations: { ...annotations, ...(ips !== undefined && { 'tulle.dev/ips': ips }) },
  };
  const spec = { nodeName: 'node-1', containers: [{ name: 'main', image: 'lab' }] };
  const object = { apiVersion: 'v1', kind: 'Pod', metadata, spec };
  const created = await lab().control.callApi({ method: 'POST', path: apiPath.pods(namespace), object });
  const { uid, creationTimestamp } = created.metadata;
  return { namespace, name, uid, creationTimestamp: String(creationTimestamp) };
}

const removeObject = ({ namespace, name }: Pick<PodObject, 'namespace' | 'name'>) =>
  lab().control.callApi({ method: 'DELETE', path: `${apiPath.pod(namespace, name)}?gracePeriodSeconds=0` });

const argsOf = ({ namespace, name, uid }: PodObject): string =>
  `K8S_POD_NAMESPACE=${namespace};K8S_POD_NAME=${name};K8S_POD_UID=${uid}`;

async function add(object: PodObject): Promise<{ readonly pod: TestPod; readonly answer: CniAnswer }> {
  const pod = await createPod(node());
  return { pod, answer: await cni(pod, 'ADD', { env: { CNI_ARGS: argsOf(object) } }) };
}

async function remove(pod: TestPod): Promise<void> {
  await cni(pod, 'DEL');
  await removeNetns(pod);
}

/** Until the agent knows of so many Pods. */
async function untilPods(at: NodeRef, count: number): Promise<void> {
  const isSo = async () => (await tulle(at, 'status')).stdout.includes(`watch     pods: ${count} objects`);
  await until(isSo, { describe: `${count} Pods in the watch`, deadlineMs: TIMEOUT_MS, intervalMs: 20 });
}

const addressesOf = ({ result }: CniAnswer): readonly string[] =>
  (result['ips'] as readonly { readonly address: string }[]).map(({ address }) => address.split('/')[0] as string);

test.serial('a pod has the addresses that it asks for, and other nodes reach it there', async (t) => {
  const both = await createObject('both', `${v6(77)}, ${v4(99)}`);
  const { pod, answer } = await add(both);
  t.is(answer.code, 0, answer.stdout);
  t.deepEqual(addressesOf(answer), [v4(99), v6(77)]);
  for (const address of addressesOf(answer)) {
    const ping = await run(inNode(lab().node('node-2'), ['ping', '-n', '-c', '1', '-W', '5', address]));
    t.is(ping.exitCode, 0, address);
  }
  const half = await add(await createObject('half', v4(100)));
  t.is(addressesOf(half.answer)[0], v4(100));
  t.not(addressesOf(half.answer)[1], v6(77), 'the other family has its turn');
  const late = await createObject('late', v4(99));
  const taken = await add(late);
  t.is(taken.answer.code, 11);
  t.regex(
    taken.answer.message,
    new RegExp(`pod fixed/late .*expected addresses that are free, got ${v4(99)}, which fixed/both has`),
  );
  await remove(pod);
  await removeObject(both);
  await untilPods(node(), 2);
  const again = await cni(taken.pod, 'ADD', { env: { CNI_ARGS: argsOf(late) } });
  t.is(again.code, 0, again.stdout);
  t.is(addressesOf(again)[0], v4(99), 'free again, although it rests for others');
  for (const each of [half.pod, taken.pod]) await remove(each);
});

test.serial('what cannot be had is refused, with the reason and nothing made', async (t) => {
  const rows: readonly (readonly [string, string, number, RegExp])[] = [
    [
      'malformed',
      'nonsense',
      7,
      /at most one IP address a family, comma separated, in the annotation tulle\.dev\/ips, got "nonsense"/,
    ],
    ['twice', `${v4(9)},${v4(10)}`, 7, /at most one IP address a family/],
    ['network', v4(0), 7, /podCIDR .* that is neither its network or broadcast address nor the node's own, got/],
    ['gateway', v6(1), 7, /nor the node's own/],
    ['broadcast', v4(255), 7, /broadcast/],
    ['outside', '192.0.2.1', 7, /got 192\.0\.2\.1/],
  ];
  for (const [name, ips, code, message] of rows) {
    const { pod, answer } = await add(await createObject(name, ips));
    t.is(answer.code, code, answer.stdout);
    t.regex(answer.message, message);
    await removeNetns(pod);
  }
});

test.serial('only listed namespaces are asked about', async (t) => {
  const { pod, answer } = await add(await createObject('web', v4(50), { namespace: 'default' }));
  t.is(answer.code, 0, answer.stdout);
  t.not(addressesOf(answer)[0], v4(50));
  await remove(pod);
  const plain = await createPod(node());
  t.is((await cni(plain, 'ADD', { env: { CNI_ARGS: undefined } })).code, 0, 'a container without a pod');
  await remove(plain);
});

test.serial('an ADD that comes before its Pod waits, and the uid tells it from its predecessor', async (t) => {
  const former = await createObject('db', v4(60));
  await removeObject(former);
  const waiting = add(former);
  const current = await createObject('db', v4(61));
  const { pod, answer } = await add(current);
  t.deepEqual([answer.code, addressesOf(answer)[0]], [0, v4(61)]);
  await remove(pod);
  const late = await waiting;
  t.is(late.answer.code, 11, late.answer.stdout);
  t.regex(late.answer.message, new RegExp(`expected a Pod with uid ${former.uid} within 5 s, got none`));
  await removeNetns(late.pod);
});

test.serial('the mirror of a static pod is known by the hash of its configuration', async (t) => {
  const hash = 'c0ffee00c0ffee00c0ffee00c0ffee00';
  const annotations = { 'kubernetes.io/config.hash': hash, 'kubernetes.io/config.mirror': hash };
  const mirror = await createObject('static', v4(70), { annotations });
  const { pod, answer } = await add({ ...mirror, uid: hash });
  t.deepEqual([answer.code, answer.code === 0 && addressesOf(answer)[0]], [0, v4(70)], answer.stdout);
  await remove(pod);
});

test.serial('what a pod waits for is given to no other, by turn or by asking; the oldest comes first', async (t) => {
  const first = await add({ namespace: 'default', name: 'turn', uid: 'u' });
  const offset = Number((addressesOf(first.answer)[0] as string).split('.')[3]);
  const claimants = [
    await createObject('a', v4(offset + 1), { namespace: 'other' }),
    await createObject('b', v4(offset + 1)),
  ] as const;
  const rank = ({ creationTimestamp, uid }: PodObject) => `${creationTimestamp} ${uid}`;
  const [winner, loser] = rank(claimants[0]) < rank(claimants[1]) ? claimants : [claimants[1], claimants[0]];
  // One watch brings both in order: the agent knows of the first when it knows of the second.
  const probe = await createObject('probe');
  const known = await add(probe);
  const refused = await add(loser);
  t.is(refused.answer.code, 11, refused.answer.stdout);
  t.regex(refused.answer.message, new RegExp(`which ${winner.namespace}/${winner.name} waits for`));
  const second = await add({ namespace: 'default', name: 'turn-2', uid: 'u' });
  t.deepEqual(
    [known, second].map(({ answer }) => addressesOf(answer)[0]),
    [v4(offset + 2), v4(offset + 3)],
  );
  const owner = await add(winner);
  t.is(addressesOf(owner.answer)[0], v4(offset + 1));
  for (const { pod } of [first, known, second, owner]) await remove(pod);
  await removeNetns(refused.pod);
});
