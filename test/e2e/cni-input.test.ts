/** Input that is missing, malformed or hostile: an error that names the field, and nothing made, nothing touched. */
import test, { type ExecutionContext } from 'ava';
import {
  type CniAnswer,
  type CniCall,
  cni,
  createPod,
  differences,
  readHost,
  readPod,
  type TestPod,
} from '../support/cni-calls.ts';
import { output, run, shIn, shInNetns, useLab } from '../support/lab.ts';

const lab = useLab({ nodes: 1 }, prepare);
const node = () => lab().node('node-1');

let pod: TestPod;
let host: readonly string[];
let inside: readonly string[];

async function prepare(): Promise<void> {
  pod = await createPod(node());
  const files = 'mkdir /run/input; cd /run/input; echo text >file; mkfifo fifo; ln -s loop loop';
  await output(shIn(node(), files));
  [host, inside] = await Promise.all([readHost(node()), readPod(pod)]);
}

/** The whole answer of a refused call: its code, its words, and a world that is as before. */
async function isRefused(t: ExecutionContext, answer: CniAnswer, code: number, message: RegExp): Promise<void> {
  t.is(answer.code, code, answer.stdout);
  t.regex(answer.message, message);
  t.regex(answer.stdout, /^\{"cniVersion":"\d\.\d\.\d",.*\}\n?$/, 'one object and nothing else');
  t.deepEqual(differences(host, await readHost(node())), []);
  t.deepEqual(differences(inside, await readPod(pod)), []);
}

interface Row extends CniCall {
  readonly title: string;
  readonly code: number;
  readonly message: RegExp;
}

const variable = (name: string, value: string | undefined, title: string): Row => ({
  title: `${name} ${title}`,
  env: { [name]: value },
  code: 4,
  message: new RegExp(`${name}\\b.*expected .*, got `),
});

const NAMES: readonly (readonly [value: string | undefined, title: string])[] = [
  [undefined, 'missing'],
  ['', 'empty'],
  ['../../../etc/passwd', 'that leaves its directory'],
  ['a/../../b', 'with a path in it'],
  ['..', 'of dots'],
  ['a\nb', 'of two lines'],
  ['a b', 'with a blank'],
  ['a\u00e9', 'that is not ASCII'],
  ['x'.repeat(5000), 'without end'],
];

const ENVIRONMENT_ROWS: readonly Row[] = [
  ...NAMES.map(([value, title]) => variable('CNI_CONTAINERID', value, title)),
  variable('CNI_CONTAINERID', '-rf', 'like an option'),
  variable('CNI_CONTAINERID', '$(reboot)', 'for a shell'),
  ...NAMES.map(([value, title]) => variable('CNI_IFNAME', value, title)),
  variable('CNI_IFNAME', 'sixteencharacter', 'of 16 characters'),
  variable('CNI_IFNAME', 'all', 'that means every interface'),
  variable('CNI_IFNAME', 'default', 'that means future interfaces'),
  variable('CNI_IFNAME', 'eth%d', 'that is a template'),
  variable('CNI_IFNAME', 'eth0:1', 'that is a label'),
  variable('CNI_NETNS', undefined, 'missing'),
  variable('CNI_NETNS', '', 'empty'),
  variable('CNI_NETNS', 'run/netns/x', 'relative'),
  variable('CNI_NETNS', '/run/\nnetns', 'of two lines'),
  variable('CNI_NETNS', `/${'x'.repeat(5000)}`, 'without end'),
  variable('CNI_ARGS', 'K8S_POD_NAME', 'without a value'),
  variable('CNI_ARGS', '=web', 'without a key'),
  variable('CNI_ARGS', 'K8S_POD_NAME=../web', 'with a path for a name'),
  variable('CNI_ARGS', 'K8S_POD_NAMESPACE=a"; drop', 'with a quote in a namespace'),
  variable('CNI_ARGS', 'K8S_POD_UID=a\nb', 'of two lines'),
  variable('CNI_ARGS', `K8S_POD_NAME=${'x'.repeat(300)}`, 'with a name without end'),
  variable('CNI_COMMAND', undefined, 'missing'),
  variable('CNI_COMMAND', 'add', 'in small letters'),
  variable('CNI_COMMAND', 'ADD;reboot', 'for a shell'),
];

const NETNS_ROWS: readonly Row[] = [
  ['/run/netns/absent', 'that does not exist'],
  ['/run/input/file', 'that is a plain file'],
  ['/run/input', 'that is a directory'],
  ['/run/input/fifo', 'that is a pipe'],
  ['/run/input/loop', 'that is a link to itself'],
  ['/dev/zero', 'that is a device'],
  ['/proc/1/ns/mnt', 'that is a mount namespace'],
  ['/proc/1/ns/net', "that is the host's own namespace"],
].map(([path = '', title]) => ({
  title: `CNI_NETNS ${title}`,
  env: { CNI_NETNS: path },
  code: 4,
  message: new RegExp(`CNI_NETNS ${path}`),
}));

const config = (title: string, value: CniCall['config'], code: number, message: RegExp): Row => ({
  title: `a configuration ${title}`,
  ...(value !== undefined && { config: value }),
  code,
  message,
});

const INPUT = /network configuration on standard input: /;
const CONFIG_ROWS: readonly Row[] = [
  config('that is empty', '', 6, INPUT),
  config('that is text', 'no json', 6, INPUT),
  config('that breaks off', '{"cniVersion":"1.1.0","name":', 6, INPUT),
  config('that is a list', '[]', 6, INPUT),
  config('that is not UTF-8', Buffer.from('{"cniVersion":"1.1.0","name":"\xff"}', 'latin1'), 6, INPUT),
  config('of 2 MiB', JSON.stringify({ cniVersion: '1.1.0', fill: 'x'.repeat(2 << 20) }), 6, /expected at most 1 MiB/),
  config('without a version', { cniVersion: undefined }, 1, /cniVersion: expected one of .*, got nothing/),
  config('of a version to come', { cniVersion: '9.9.9' }, 1, /cniVersion: expected one of .*, got "9\.9\.9"/),
  config('of a version before', { cniVersion: '0.2.0' }, 1, /cniVersion: .*, got "0\.2\.0"/),
  config('whose version is a number', { cniVersion: 1 }, 1, /cniVersion: .*, got 1$/),
  config('without a name', { name: undefined }, 7, /name: expected .*, got nothing/),
  config('whose name is a path', { name: '../x' }, 7, /name: expected .*, got "\.\.\/x"/),
  config('without a type', { type: undefined }, 7, /type: expected .*, got nothing/),
  config('with an MTU that is none', { mtu: 'big' }, 7, /mtu: expected .*, got "big"/),
  config('with a prevResult', { prevResult: { cniVersion: '1.1.0', ips: [] } }, 7, /prevResult: expected none, got /),
  config('with ipam', { ipam: { type: 'host-local' } }, 2, /ipam: expected none, got /),
  config('whose runtimeConfig is a text', { runtimeConfig: 'x' }, 7, /runtimeConfig: expected .*, got "x"/),
];

for (const { title, code, message, ...call } of [...ENVIRONMENT_ROWS, ...NETNS_ROWS, ...CONFIG_ROWS]) {
  test.serial(`ADD refuses ${title}`, async (t) => isRefused(t, await cni(pod, 'ADD', call), code, message));
}

for (const verb of ['CHECK', 'DEL']) {
  test.serial(`${verb} refuses a container id that leaves its directory`, async (t) => {
    const env = { CNI_CONTAINERID: '../../../etc/passwd' };
    await isRefused(t, await cni(pod, verb, { env }), 4, /CNI_CONTAINERID/);
  });
}

test.serial('ADD refuses a path where the runtime sees another namespace than the agent', async (t) => {
  const other = await createPod(node());
  const script = `mount --bind /run/netns/${other.netns} /run/netns/${pod.netns} && exec "$0"`;
  const through = ['unshare', '--mount', '--propagation', 'private', '--', 'sh', '-c', script];
  await isRefused(t, await cni(pod, 'ADD', { through }), 4, /CNI_NETNS .*the agent sees another file there/);
});

test.serial('DEL does what it can with what is wrong beside the container id', async (t) => {
  for (const call of [
    { config: 'no json' },
    { config: { cniVersion: '9.9.9' } },
    { env: { CNI_NETNS: 'relative', CNI_ARGS: '=' } },
    { env: { CNI_NETNS: '/run/netns/absent' } },
    { env: { CNI_IFNAME: undefined } },
  ]) {
    const { code, stdout } = await cni(pod, 'DEL', call);
    t.deepEqual([code, stdout], [0, ''], JSON.stringify(call));
  }
  t.deepEqual(differences(host, await readHost(node())), []);
});

test.serial('ADD refuses an interface name that the pod has already, and leaves that interface alone', async (t) => {
  const own = await createPod(node());
  // An address of its own would change by itself, from tentative to valid.
  const link = 'ip link add name eth0 type bridge; ip link set eth0 addrgenmode none up';
  await output(shInNetns(node(), own.netns, `${link}; ip address add 192.0.2.5/24 dev eth0`));
  const before = await readPod(own);
  await isRefused(
    t,
    await cni(own, 'ADD'),
    4,
    /interface eth0 in \/run\/netns\/\S+ .*has an interface of that name already/,
  );
  t.deepEqual(differences(before, await readPod(own)), []);
  await isRefused(t, await cni({ ...own, ifName: 'lo' }, 'ADD'), 4, /interface lo in /);
  t.deepEqual(differences(before, await readPod(own)), []);
});

test.serial('ADD refuses an attachment that exists, and leaves it whole', async (t) => {
  const own = await createPod(node());
  const added = await cni(own, 'ADD');
  t.is(added.code, 0, added.stdout);
  const [hostBefore, podBefore] = [await readHost(node()), await readPod(own)];
  const again = await cni(own, 'ADD');
  t.is(again.code, 4, again.stdout);
  t.regex(again.message, /already has the interface eth0 \(CNI_IFNAME\): expected a DEL before another ADD/);
  const stranger = await cni({ ...own, containerId: 'another' }, 'ADD');
  t.is(stranger.code, 4, stranger.stdout);
  t.regex(stranger.message, /has an interface of that name already/);
  t.deepEqual(differences(hostBefore, await readHost(node())), []);
  t.deepEqual(differences(podBefore, await readPod(own)), []);
  t.is((await cni(own, 'CHECK', { config: { prevResult: added.result } })).code, 0);
  for (const { address } of added.result['ips'] as readonly { readonly address: string }[]) {
    const target = address.split('/')[0];
    t.is((await run(shIn(node(), `ping -n -c 1 -W 5 ${target}`))).exitCode, 0, target);
  }
  t.is((await cni(own, 'DEL')).code, 0);
});
