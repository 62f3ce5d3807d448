/** The manifest agrees with what the agent needs, asks for no more, and with itself. */
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test from 'ava';
import { environmentName, readConfigFile, resolveConfig, SETTINGS, type SettingKey } from '../agent/config.ts';
import { requireCapabilities } from '../agent/kernel/capabilities.ts';
import { TUN_FILE } from '../agent/kernel/netlink/tun.ts';
import { MANIFEST, objectOf, podSpec, readManifest } from '../test/docker/daemon-set.ts';

const spec = podSpec();
const [container] = spec.containers;
const environment = Object.fromEntries(container.env.map(({ name, value = 'set' }) => [name, value]));

/** The directory of the node that is seen at a path of the container, if it can be written there. */
function writableHostPath(path: string): string | undefined {
  const mount = container.volumeMounts.find(({ mountPath }) => mountPath === path);
  const volume = spec.volumes.find(({ name }) => name === mount?.name);
  return mount?.readOnly ? undefined : volume?.hostPath?.path;
}

test('the container has the capabilities that the agent asks for, and may write to directories of other users', (t) => {
  const { message = '' } = t.throws(() => requireCapabilities('CapEff:\t0000000000000000')) ?? {};
  const needed = [...message.matchAll(/CAP_(\w+)/g)].map(([, name]) => name);
  t.true(needed.length > 0);
  const { capabilities, privileged } = container.securityContext;
  t.deepEqual([...capabilities.add].sort(), [...needed, 'DAC_OVERRIDE'].sort());
  t.deepEqual(capabilities.drop, ['ALL']);
  t.is(privileged, undefined);
});

test('nothing of the node but its network is shared', (t) => {
  t.true(spec.hostNetwork);
  t.deepEqual([spec.hostPID, (spec as { hostIPC?: boolean }).hostIPC], [undefined, undefined]);
  t.true(container.securityContext.readOnlyRootFilesystem);
  t.is(container.securityContext.seccompProfile?.type, 'RuntimeDefault');
});

test('what the agent and the runtime have in common is mounted where both look for it', (t) => {
  for (const key of ['runDir', 'cniConfDir', 'cniBinDir'] as const) {
    t.false(environmentName(key) in environment);
    t.is(writableHostPath(SETTINGS[key].default), SETTINGS[key].default, key);
  }
  t.is(writableHostPath(`${environment[environmentName('procSys')]}/net`), '/proc/sys/net');
  t.is(writableHostPath('/run/xtables.lock'), '/run/xtables.lock');
});

test('TUN devices and the secret of the tunnel are there where the agent and the settings look', (t) => {
  t.is(writableHostPath(dirname(TUN_FILE)), dirname(TUN_FILE));
  const [, file = ''] = /secretFile: ([^\s}]+)/.exec(readFileSync(MANIFEST, 'utf8')) ?? [];
  const mount = container.volumeMounts.find(({ mountPath }) => mountPath === dirname(file));
  t.true(mount?.readOnly);
  t.true(spec.volumes.find(({ name }) => name === mount?.name)?.secret?.optional, 'without it the pod starts');
});

test('namespaces that the runtime makes later are seen', (t) => {
  t.is(writableHostPath('/run/netns'), '/run/netns');
  const netns = container.volumeMounts.find(({ mountPath }) => mountPath === '/run/netns');
  t.is(netns?.mountPropagation, 'HostToContainer');
});

test('every mount has its volume, and every volume is mounted', (t) => {
  const mounted = container.volumeMounts.map(({ name }) => name);
  t.deepEqual([...mounted].sort(), spec.volumes.map(({ name }) => name).sort());
});

test('the settings are such', async (t) => {
  const known = (Object.keys(SETTINGS) as SettingKey[]).map(environmentName);
  for (const name of Object.keys(environment)) t.true(known.includes(name), name);
  const directory = await mkdtemp(join(tmpdir(), 'tulle-test-manifest-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const [, file = ''] = /--config,([^,]+)/.exec(container.args.join(',')) ?? [];
  const [mount = '', name = ''] = [file.slice(0, file.lastIndexOf('/')), file.slice(file.lastIndexOf('/') + 1)];
  t.truthy(container.volumeMounts.find(({ mountPath }) => mountPath === mount));
  await writeFile(join(directory, name), objectOf('ConfigMap')['data'][name]);
  t.notThrows(() => resolveConfig({}, environment, readConfigFile(join(directory, name))));
});

test('the probes ask where the agent answers', (t) => {
  const { livenessProbe, readinessProbe } = container;
  for (const { httpGet } of [livenessProbe, readinessProbe]) {
    t.is(`${httpGet.host}:${httpGet.port}`, String(SETTINGS['metrics.address'].default));
  }
  t.deepEqual([livenessProbe.httpGet.path, readinessProbe.httpGet.path], ['/healthz', '/readyz']);
});

test('the agent may read nodes, pods, Services and their endpoints, and nothing else', (t) => {
  t.deepEqual(objectOf('ClusterRole')['rules'], [
    { apiGroups: [''], resources: ['nodes', 'pods', 'services'], verbs: ['get', 'list', 'watch'] },
    { apiGroups: ['discovery.k8s.io'], resources: ['endpointslices'], verbs: ['get', 'list', 'watch'] },
  ]);
  const { roleRef, subjects } = objectOf('ClusterRoleBinding');
  const { name, namespace } = objectOf('ServiceAccount').metadata;
  t.is(roleRef.name, objectOf('ClusterRole').metadata.name);
  t.deepEqual(subjects, [{ kind: 'ServiceAccount', name, namespace }]);
  t.is(spec.serviceAccountName, name);
});

test('everything that has a namespace is in that of the manifest', (t) => {
  const { name } = objectOf('Namespace').metadata;
  for (const { kind, metadata } of readManifest()) {
    t.is(metadata.namespace, /^(Namespace|Cluster.*)$/.test(kind) ? undefined : name, kind);
  }
});

test('the image is of this version', (t) => {
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  t.is(container.image, `tulle:${version}`);
});
