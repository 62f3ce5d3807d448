import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { describeSettings, environmentName, flagName, readConfigFile, resolveConfig, SETTINGS } from './config.ts';
import { ConfigError } from './model/config-error.ts';

test('flags win over the environment, that over the file, that over the defaults', (t) => {
  const file = new Map([
    ['vxlan.vni', '1'],
    ['vxlan.port', '2'],
    ['nodeName', 'from-file'],
  ]);
  const config = resolveConfig({ 'vxlan.vni': '3' }, { TULLE_VXLAN_VNI: '4', TULLE_VXLAN_PORT: '5' }, file);
  t.like(config, { 'vxlan.vni': 3, 'vxlan.port': 5, nodeName: 'from-file', resyncSeconds: 60, masquerade: true });
  t.true(Object.isFrozen(config));
});

test('every bad value names its setting, what was expected and what came', (t) => {
  const bad: readonly (readonly [string, string, RegExp])[] = [
    ['vxlan.vni', '0', /vxlan\.vni: expected a whole number from 1 to 16777215, got "0"/],
    ['vxlan.vni', '16777216', /vxlan\.vni/],
    ['vxlan.port', '80a', /vxlan\.port/],
    ['tunnelFamily', 'ipx', /one of auto, ipv4, ipv6, got "ipx"/],
    ['clusterCidrs', '10.0.0.0/8,nonsense', /CIDRs joined by commas/],
    ['masquerade', 'yes', /true or false/],
    ['runDir', 'relative', /an absolute path/],
    ['apiServer', 'http://10.0.0.1', /https:\/\/HOST:PORT/],
    ['metrics.address', 'localhost:9440', /127\.0\.0\.1:9440 or \[::1\]:9440, or off, got "localhost:9440"/],
    ['metrics.address', '::1:9440', /metrics\.address/],
    ['metrics.address', '', /metrics\.address/],
  ];
  for (const [key, value, message] of bad) {
    const error = t.throws(
      () => resolveConfig({ nodeName: 'n', [key]: value }, {}),
      { instanceOf: ConfigError, message },
      key,
    );
    t.is(error?.key, key);
  }
  t.throws(() => resolveConfig({}, {}), { message: /nodeName: expected --node-name or TULLE_NODE_NAME, got nothing/ });
  t.throws(() => resolveConfig({ nodeName: 'n' }, {}, new Map([['vxlan.vnj', '1']])), { message: /vxlan\.vnj/ });
});

test('encryption needs the file of a secret', (t) => {
  for (const encryption of ['aes-gcm', 'chacha20-poly1305']) {
    const given = { nodeName: 'n', 'tun.encryption': encryption };
    const error = t.throws(() => resolveConfig(given, {}), { instanceOf: ConfigError, message: /Secret/ });
    t.is(error.key, 'tun.secretFile');
    t.is(resolveConfig({ ...given, 'tun.secretFile': '/etc/s' }, {})['tun.secretFile'], '/etc/s');
  }
  t.notThrows(() => resolveConfig({ nodeName: 'n' }, {}));
});

test('where to listen is an address of either family, or off', (t) => {
  for (const [given, expected] of [
    ['[FD00::1]:80', '[fd00::1]:80'],
    ['0.0.0.0:9440', '0.0.0.0:9440'],
    ['off', 'off'],
  ] as const)
    t.is(resolveConfig({ nodeName: 'n', 'metrics.address': given }, {})['metrics.address'], expected);
});

test('lists are canonical CIDRs', (t) => {
  t.deepEqual(
    [...resolveConfig({ nodeName: 'n', clusterCidrs: '10.1.2.3/8, FD00::1/16' }, {}).clusterCidrs] as string[],
    ['10.0.0.0/8', 'fd00::/16'],
  );
});

test('a file holds nested keys; one that is no mapping, no YAML or not there is told with its name', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-config-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const write = (name: string, text: string) => {
    writeFileSync(join(directory, name), text);
    return join(directory, name);
  };
  t.deepEqual(
    readConfigFile(write('good', 'vxlan: { vni: 7 }\nclusterCidrs: [10.0.0.0/8, fd00::/8]\n')),
    new Map([
      ['vxlan.vni', '7'],
      ['clusterCidrs', '10.0.0.0/8,fd00::/8'],
    ]),
  );
  t.deepEqual(readConfigFile(write('empty', '')), new Map());
  t.throws(() => readConfigFile(write('scalar', '7')), { instanceOf: ConfigError });
  t.throws(() => readConfigFile(write('broken', 'a: [')), { instanceOf: ConfigError, message: /broken/ });
  t.throws(() => readConfigFile(join(directory, 'absent')), { instanceOf: ConfigError, message: /absent/ });
});

test('flags and environment names follow from the key', (t) => {
  t.is(flagName('vxlan.txChecksumOffload'), 'vxlan-tx-checksum-offload');
  t.is(environmentName('vxlan.txChecksumOffload'), 'TULLE_VXLAN_TX_CHECKSUM_OFFLOAD');
  t.is(describeSettings().length, Object.keys(SETTINGS).length);
});
