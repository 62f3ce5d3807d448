import { randomBytes } from 'node:crypto';
import { chmod, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { PluginError } from '../../lab/cni-client.ts';
import { removeLab } from '../../lab/down.ts';
import { LabError } from '../../lab/lab-error.ts';
import { labLayout, nodeLayout } from '../../lab/layout.ts';
import { pathOnHost, type RunningNode, startNode } from '../../lab/node.ts';
import { addPod, checkPod, removePod } from '../../lab/runtime.ts';

const signal = new AbortController().signal;
const pod = { namespace: 'default', name: 'web', uid: 'u-1', annotations: { a: 'b' } };

/** Records how it is called; fails a verb for which a file says so. */
const PLUGIN = `#!/bin/sh
name=\${0##*/}
{ echo "plugin=$name"; env | grep ^CNI_; echo "stdin=$(cat)"; [ -n "$CNI_NETNS" ] && [ -e "$CNI_NETNS" ] && echo netns-exists; echo end; } >>/run/calls
if [ -e "/run/fail-$name-$CNI_COMMAND" ]; then echo '{"code":11,"msg":"not now","details":"try later"}'; exit 1; fi
[ "$CNI_COMMAND" = ADD ] && echo "{\\"cniVersion\\":\\"1.0.0\\",\\"by\\":\\"$name\\",\\"ips\\":[{\\"address\\":\\"10.9.8.7/32\\"}]}"
exit 0
`;

const CONFLIST = {
  name: 'net',
  cniVersion: '1.0.0',
  plugins: [
    { type: 'first', own: 1, capabilities: { 'io.kubernetes.cri.pod-annotations': true } },
    { type: 'second', capabilities: { bandwidth: true } },
  ],
};

interface Call {
  readonly plugin: string;
  readonly env: Readonly<Record<string, string>>;
  readonly config: Readonly<Record<string, unknown>>;
  readonly netnsExists: boolean;
}

async function createNode(t: ExecutionContext): Promise<RunningNode> {
  const layout = labLayout(`/run/tulle-lab-test-${randomBytes(4).toString('hex')}`);
  t.teardown(() => removeLab(layout, () => undefined));
  const node = await startNode('node-1', nodeLayout(layout, 'node-1'), signal);
  for (const name of ['first', 'second', 'loopback']) {
    const path = pathOnHost(node, `/opt/cni/bin/${name}`);
    await writeFile(path, PLUGIN);
    await chmod(path, 0o755);
  }
  await mkdir(pathOnHost(node, '/etc/cni/net.d'), { recursive: true });
  await writeFile(pathOnHost(node, '/etc/cni/net.d/20-later.conflist'), '{"not": "read"}');
  await writeFile(pathOnHost(node, '/etc/cni/net.d/10-net.conflist'), JSON.stringify(CONFLIST));
  return node;
}

async function takeCalls(node: RunningNode): Promise<readonly Call[]> {
  const path = pathOnHost(node, '/run/calls');
  const blocks = (await readFile(path, 'utf8')).split('end\n').filter((block) => block !== '');
  await rm(path);
  return blocks.map((block) => {
    const lines = block.split('\n').filter((line) => line.includes('='));
    const fields = Object.fromEntries(
      lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
    );
    const { plugin = '', stdin = '', ...env } = fields;
    return { plugin, env, config: JSON.parse(stdin), netnsExists: block.includes('netns-exists') };
  });
}

const summary = (calls: readonly Call[]): readonly string[] =>
  calls.map(({ plugin, env, config, netnsExists }) =>
    [
      env['CNI_COMMAND'],
      plugin,
      netnsExists ? 'netns' : 'no-netns',
      'prevResult' in config ? (config['prevResult'] as { by: string }).by : 'no-result',
    ].join(' '),
  );

test('a pod is added, checked and removed by the calls that containerd makes', async (t) => {
  const node = await createNode(t);
  const sandbox = await addPod(node, pod, signal);
  t.deepEqual([...sandbox.addresses], ['10.9.8.7']);
  const added = await takeCalls(node);
  t.deepEqual(summary(added), ['ADD loopback netns no-result', 'ADD first netns no-result', 'ADD second netns first']);
  t.deepEqual(added[1]?.config, {
    type: 'first',
    own: 1,
    name: 'net',
    cniVersion: '1.0.0',
    runtimeConfig: { 'io.kubernetes.cri.pod-annotations': { a: 'b' } },
  });
  t.false('runtimeConfig' in (added[2]?.config ?? {}), 'a capability that nobody asked for is not passed');
  const { CNI_ARGS = '', CNI_NETNS, CNI_IFNAME, CNI_CONTAINERID, CNI_PATH } = added[1]?.env ?? {};
  t.deepEqual(CNI_ARGS.split(';').sort(), [
    'IgnoreUnknown=1',
    `K8S_POD_INFRA_CONTAINER_ID=${sandbox.containerId}`,
    'K8S_POD_NAME=web',
    'K8S_POD_NAMESPACE=default',
    'K8S_POD_UID=u-1',
  ]);
  t.deepEqual(
    [CNI_NETNS, CNI_IFNAME, CNI_CONTAINERID, CNI_PATH],
    [`/var/run/netns/${sandbox.netns}`, 'eth0', sandbox.containerId, '/opt/cni/bin'],
  );

  await checkPod(node, sandbox, signal);
  t.deepEqual(summary(await takeCalls(node)), ['CHECK first netns second', 'CHECK second netns second']);

  await removePod(node, sandbox, signal);
  const removed = await takeCalls(node);
  t.deepEqual(summary(removed), [
    ...['DEL loopback netns loopback', 'DEL second netns second', 'DEL first netns second'],
    ...['DEL loopback no-netns no-result', 'DEL second no-netns no-result', 'DEL first no-netns no-result'],
  ]);
  t.is(removed[3]?.env['CNI_NETNS'], '');
  t.deepEqual(await readdir(pathOnHost(node, '/run/netns')), []);
});

test('a failed ADD is reported as a runtime reports it, and undone', async (t) => {
  const node = await createNode(t);
  await writeFile(pathOnHost(node, '/run/fail-second-ADD'), '');
  const error = await t.throwsAsync(addPod(node, pod, signal), { instanceOf: PluginError });
  t.is(error?.message, 'plugin type="second" failed (add): not now; try later');
  t.is(error?.code, 11);
  t.deepEqual(summary(await takeCalls(node)).slice(3), [
    'DEL loopback netns loopback',
    'DEL second netns no-result',
    'DEL first netns no-result',
  ]);
  t.deepEqual(await readdir(pathOnHost(node, '/run/netns')), []);
  t.deepEqual(
    (await readdir(`${node.cgroup}/pods`)).filter((name) => name.startsWith('cni-')),
    [],
  );
});

test('without a conflist nothing is made', async (t) => {
  const node = await createNode(t);
  const dir = pathOnHost(node, '/etc/cni/net.d');
  for (const file of await readdir(dir)) await rm(join(dir, file));
  await t.throwsAsync(addPod(node, pod, signal), { instanceOf: LabError, message: /network of the node is not ready/ });
  t.deepEqual(await readdir(pathOnHost(node, '/run/netns')), []);
});

test('what a node writes below /etc, /opt, /run and /var/lib stays in the node', async (t) => {
  const node = await createNode(t);
  const mark = `tulle-test-${node.pid}`;
  for (const dir of ['/etc', '/opt', '/run', '/var/lib']) {
    await writeFile(pathOnHost(node, `${dir}/${mark}`), '');
    t.false((await readdir(dir)).includes(mark), dir);
  }
});
