import test from 'ava';
import { type Cidr, type IpAddress, parseCidr, parseIp } from '../agent/model/ip.ts';
import { type MacAddress, parseMac } from '../agent/model/mac.ts';
import { CONFLIST_NAME, renderConflist } from './conflist.ts';
import {
  deleteQueueName,
  type PodResult,
  parsePrevResult,
  renderAnswer,
  renderResult,
  supportedVersions,
} from './protocol.ts';

const ip = (text: string) => parseIp(text) as IpAddress;
const mac = (text: string) => parseMac(text) as MacAddress;
const result: PodResult = {
  hostLink: 'tl0123456789ab',
  hostMac: mac('02:00:00:00:00:01'),
  ifName: 'eth0',
  podMac: mac('02:00:00:00:00:02'),
  sandbox: '/run/netns/x',
  mtuBytes: 1500,
  ips: [
    { address: ip('10.84.1.2'), prefixLength: 32, gateway: ip('169.254.1.1') },
    { address: ip('fd84::2'), prefixLength: 128, gateway: ip('fe80::1') },
  ],
  routes: [
    { dst: parseCidr('0.0.0.0/0') as Cidr, gateway: ip('169.254.1.1'), mtuBytes: 1450 },
    { dst: parseCidr('::/0') as Cidr },
  ],
};

const routes = (mtu: string) => `"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"${mtu}},{"dst":"::/0"}],"dns":{}`;
const links = (mtu: string) =>
  `"interfaces":[{"name":"tl0123456789ab","mac":"02:00:00:00:00:01"${mtu}},{"name":"eth0","mac":"02:00:00:00:00:02"${mtu},"sandbox":"/run/netns/x"}]`;
const ips = (v4: string, v6: string) =>
  `"ips":[{${v4}"interface":1,"address":"10.84.1.2/32","gateway":"169.254.1.1"},{${v6}"interface":1,"address":"fd84::2/128","gateway":"fe80::1"}]`;
const OLD = `${links('')},${ips('"version":"4",', '"version":"6",')},${routes('')}`;
const EXPECTED: Readonly<Record<string, string>> = {
  '0.3.0': OLD,
  '0.3.1': OLD,
  '0.4.0': OLD,
  '1.0.0': `${links('')},${ips('', '')},${routes('')}`,
  '1.1.0': `${links(',"mtu":1500')},${ips('', '')},${routes(',"mtu":1450')}`,
};

for (const version of supportedVersions) {
  test(`renderResult ${version}, and back`, (t) => {
    const rendered = JSON.stringify(renderResult(version, result));
    t.is(rendered, `{"cniVersion":"${version}",${EXPECTED[version]}}`);
    t.deepEqual(parsePrevResult(JSON.parse(rendered)), {
      interfaces: [
        { name: 'tl0123456789ab', mac: mac('02:00:00:00:00:01') },
        { name: 'eth0', mac: mac('02:00:00:00:00:02'), sandbox: '/run/netns/x' },
      ],
      ips: result.ips.map((each) => ({ ...each, interface: 1 })),
      routes: result.routes.map(({ mtuBytes: _, ...route }) => route),
    });
  });
}

test('parsePrevResult takes what other plugins and Go leave', (t) => {
  const infiniband = '00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33';
  const value = {
    interfaces: [{ name: 'ib0', mac: infiniband, sandbox: '', pciID: '0000:04:00.5' }],
    ips: [{ address: '10.1.2.3/24', gateway: '' }],
    routes: null,
    dns: { nameservers: [] },
  };
  t.deepEqual(parsePrevResult(value), {
    interfaces: [{ name: 'ib0' }],
    ips: [{ address: ip('10.1.2.3'), prefixLength: 24 }],
    routes: [],
  });
  t.deepEqual(parsePrevResult({}), { interfaces: [], ips: [], routes: [] });
});

for (const [value, field] of [
  [null, 'prevResult'],
  [{ interfaces: {} }, 'prevResult.interfaces'],
  [{ interfaces: [{}] }, 'prevResult.interfaces[0].name'],
  [{ ips: [{ address: '10.0.0.1/33' }] }, 'prevResult.ips[0].address'],
  [{ ips: [{ address: '10.0.0.1/32', gateway: 'x' }] }, 'prevResult.ips[0].gateway'],
  [{ ips: [{ address: '10.0.0.1/32', interface: -1 }] }, 'prevResult.ips[0].interface'],
  [{ routes: [{ dst: 'default' }] }, 'prevResult.routes[0].dst'],
] as const) {
  test(`parsePrevResult refuses ${JSON.stringify(value)}`, (t) => {
    const error = t.throws(() => parsePrevResult(value));
    t.like(error, { code: 7 });
    t.true(error?.message.startsWith(`${field}: expected `), error?.message);
  });
}

test('renderAnswer ends in a newline and puts JSON on one line', (t) => {
  t.is(renderAnswer(0).toString(), '0\n');
  t.is(renderAnswer(1, { msg: 'a\nb' }).toString(), '1\n{"msg":"a\\nb"}\n');
});

test('deleteQueueName tells attachments apart', (t) => {
  t.is(deleteQueueName('abc', 'eth0'), '561a69de51a688dd');
  t.not(deleteQueueName('ab', 'c'), deleteQueueName('a', 'bc'));
});

test('the conflist keeps cniVersion at 1.0.0 and offers more', (t) => {
  t.is(CONFLIST_NAME, '10-tulle.conflist');
  t.deepEqual(JSON.parse(renderConflist()), {
    cniVersion: '1.0.0',
    cniVersions: ['0.4.0', '1.0.0', '1.1.0'],
    name: 'tulle',
    plugins: [{ type: 'tulle', capabilities: { 'io.kubernetes.cri.pod-annotations': true } }],
  });
  t.is(JSON.parse(renderConflist({ mtuBytes: 1400 })).plugins[0].mtu, 1400);
  t.deepEqual(JSON.parse(renderConflist({ chain: ['portmap', 'bandwidth'] })).plugins.slice(1), [
    { type: 'portmap', capabilities: { portMappings: true } },
    { type: 'bandwidth', capabilities: { bandwidth: true } },
  ]);
});

test('host ports are for one plugin: for Tulle where it serves them, and for portmap where that is in the chain', (t) => {
  const askers = (options: Parameters<typeof renderConflist>[0]) =>
    (JSON.parse(renderConflist(options)).plugins as { type: string; capabilities: Record<string, boolean> }[])
      .filter(({ capabilities }) => capabilities['portMappings'])
      .map(({ type }) => type);
  t.deepEqual(askers({}), []);
  t.deepEqual(askers({ hostPorts: true, chain: ['bandwidth'] }), ['tulle']);
  t.deepEqual(askers({ hostPorts: true, chain: ['portmap'] }), ['portmap']);
  t.deepEqual(askers({ hostPorts: false, chain: ['portmap'] }), ['portmap']);
});
