import test, { type ExecutionContext } from 'ava';
import { cidr } from '../../test/support/cluster-values.ts';
import { startTestApi } from '../../test/support/lab-api.ts';

const SERVICES = '/api/v1/namespaces/default/services';
const MERGE = { headers: { 'content-type': 'application/merge-patch+json' } };
const DUAL = ['10.96.0.0/24', 'fd96::/108'];

type Spec = Readonly<Record<string, unknown>>;
const PORTS = [{ port: 80 }];

async function start(t: ExecutionContext, cidrs: readonly string[] = DUAL) {
  const api = await startTestApi(t, { serviceCidrs: cidrs.map(cidr) });
  const create = (name: string, spec: Spec) => api.call('POST', SERVICES, { metadata: { name }, spec });
  const patch = (name: string, spec: Spec) => api.call('PATCH', `${SERVICES}/${name}`, { spec }, MERGE);
  const put = (name: string, spec: Spec) => api.call('PUT', `${SERVICES}/${name}`, { metadata: { name }, spec });
  return { ...api, create, patch, put };
}

test('a Service gets the defaults of the real server and one cluster IP of the first family', async (t) => {
  const { create } = await start(t);
  const { code, json } = await create('web', { ports: [{ port: 80 }], selector: { app: 'web' } });
  t.is(code, 201);
  t.deepEqual(json.spec, {
    type: 'ClusterIP',
    clusterIP: '10.96.0.17',
    clusterIPs: ['10.96.0.17'],
    ipFamilyPolicy: 'SingleStack',
    ipFamilies: ['IPv4'],
    internalTrafficPolicy: 'Cluster',
    sessionAffinity: 'None',
    ports: [{ port: 80, protocol: 'TCP', targetPort: 80 }],
    selector: { app: 'web' },
  });
  t.deepEqual(json.status, { loadBalancer: {} });
});

test('without service CIDRs Services keep what they bring', async (t) => {
  const { create } = await start(t, []);
  const { json } = await create('web', { type: 'NodePort', ports: PORTS, clusterIP: '192.0.2.1' });
  t.like(json.spec, { clusterIP: '192.0.2.1', clusterIPs: ['192.0.2.1'], ports: [{ nodePort: undefined }] });
  t.is((await create('bare', { ports: PORTS })).json.spec.clusterIP, undefined);
});

test('ipFamilyPolicy and ipFamilies decide on the cluster IPs', async (t) => {
  const clusters = {
    dual: await start(t),
    ipv4: await start(t, ['10.96.0.0/24']),
    ipv6First: await start(t, DUAL.toReversed()),
  };
  const cases: readonly (readonly [keyof typeof clusters, Spec, expected: string])[] = [
    ['dual', { ipFamilyPolicy: 'PreferDualStack' }, 'PreferDualStack IPv4 IPv6'],
    ['dual', { ipFamilyPolicy: 'RequireDualStack', ipFamilies: ['IPv6'] }, 'RequireDualStack IPv6 IPv4'],
    ['dual', { ipFamilies: ['IPv6'] }, 'SingleStack IPv6'],
    ['dual', { clusterIP: 'fd96::5' }, 'SingleStack IPv6'],
    ['dual', { clusterIP: '10.96.0.5', ipFamilyPolicy: 'PreferDualStack' }, 'PreferDualStack IPv4 IPv6'],
    ['dual', { ipFamilies: ['IPv4', 'IPv6'] }, "spec.ipFamilyPolicy must be 'RequireDualStack' or"],
    [
      'dual',
      { clusterIP: '10.96.0.9', clusterIPs: ['10.96.0.9', 'fd96::9'] },
      "spec.ipFamilyPolicy must be 'RequireDualStack' or",
    ],
    ['dual', { clusterIP: '10.96.0.9', ipFamilies: ['IPv6'] }, 'spec.clusterIPs[0] expected an IPv6 value'],
    ['dual', { ipFamilies: ['IPv4', 'IPv4'] }, 'spec.ipFamilies[1] Duplicate value'],
    ['ipv4', { ipFamilyPolicy: 'PreferDualStack' }, 'PreferDualStack IPv4'],
    [
      'ipv4',
      { ipFamilyPolicy: 'RequireDualStack' },
      'spec.ipFamilyPolicy this cluster is not configured for dual-stack',
    ],
    ['ipv4', { ipFamilies: ['IPv6'] }, 'spec.ipFamilies[0] not configured on this cluster'],
    ['ipv4', { clusterIP: 'fd96::5' }, 'spec.clusterIPs[0] IPv6 is not configured on this cluster'],
    ['ipv4', { clusterIP: 'None' }, 'RequireDualStack IPv4 IPv6 None'],
    ['ipv4', { clusterIP: 'None', selector: { a: 'b' } }, 'SingleStack IPv4 None'],
    ['ipv6First', {}, 'SingleStack IPv6'],
    ['ipv6First', { ipFamilyPolicy: 'PreferDualStack' }, 'PreferDualStack IPv6 IPv4'],
  ];
  for (const [i, [where, spec, expected]] of cases.entries()) {
    const { code, json } = await clusters[where].create(`s-${i}`, { ports: PORTS, ...spec });
    const what = `${where} ${JSON.stringify(spec)}: ${JSON.stringify(json.spec ?? json.message)}`;
    if (/^spec/.test(expected)) {
      const [field = '', ...words] = expected.split(' ');
      t.is(code, 422, what);
      t.true(
        json.details.causes.some(
          (cause: Spec) => cause['field'] === field && String(cause['message']).includes(words.join(' ')),
        ),
        what,
      );
      continue;
    }
    const [policy, ...rest] = expected.split(' ');
    t.is(json.spec?.ipFamilyPolicy, policy, what);
    t.deepEqual(
      json.spec.ipFamilies,
      rest.filter((word) => word !== 'None'),
      what,
    );
    const families = (json.spec.clusterIPs as string[]).map((ip) =>
      ip === 'None' ? ip : ip.includes(':') ? 'IPv6' : 'IPv4',
    );
    t.deepEqual(families, rest.includes('None') ? ['None'] : rest, what);
    t.is(json.spec.clusterIP, json.spec.clusterIPs[0], what);
  }
});

test('a cluster IP belongs to one Service until that is deleted', async (t) => {
  const { create, call } = await start(t);
  t.is((await create('a', { ports: PORTS, clusterIP: '10.96.0.10' })).code, 201);
  const taken = await create('b', { ports: PORTS, clusterIP: '10.96.0.10' });
  t.like(taken.json, {
    code: 422,
    reason: 'Invalid',
    message:
      'Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.10"]: failed to allocate IP 10.96.0.10: provided IP is already allocated',
  });
  for (const clusterIP of ['10.96.0.0', '10.96.0.255', '10.97.0.1'])
    t.regex(
      (await create('b', { ports: PORTS, clusterIP })).json.message,
      /is not in the valid range. The range of valid IPs is 10.96.0.0\/24/,
    );
  t.is(
    (
      await call('POST', `${SERVICES}?dryRun=All`, {
        metadata: { name: 'dry' },
        spec: { ports: PORTS, clusterIP: '10.96.0.11' },
      })
    ).code,
    201,
  );
  t.is((await create('c', { ports: PORTS, clusterIP: '10.96.0.11' })).code, 201, 'a dry run takes nothing');
  await call('DELETE', `${SERVICES}/a`);
  t.is((await create('b', { ports: PORTS, clusterIP: '10.96.0.10' })).code, 201);
});

test('addresses are handed out until none is left, those for wishes last', async (t) => {
  const { create, call } = await start(t, ['10.96.0.0/27']);
  const given: string[] = [];
  for (let i = 0; i < 30; i++) given.push((await create(`s-${i}`, { ports: PORTS })).json.spec.clusterIP);
  t.is(new Set(given).size, 30);
  t.deepEqual([given[0], given[13], given[14], given[29]], ['10.96.0.17', '10.96.0.30', '10.96.0.1', '10.96.0.16']);
  t.like((await create('more', { ports: PORTS })).json, {
    code: 500,
    message: 'Internal error occurred: failed to allocate a serviceIP: range is full',
  });
  await call('DELETE', `${SERVICES}/s-3`);
  t.is((await create('more', { ports: PORTS })).json.spec.clusterIP, given[3]);
});

test('node ports: given, taken, out of range, shared by protocols of one port', async (t) => {
  const { create, call } = await start(t);
  const dns = [
    { name: 'tcp', port: 53, protocol: 'TCP' },
    { name: 'udp', port: 53, protocol: 'UDP' },
    { name: 'http', port: 80, nodePort: 30_080 },
  ];
  const { json } = await create('dns', { type: 'NodePort', ports: dns });
  const numbers = json.spec.ports.map(({ nodePort }: { nodePort: number }) => nodePort);
  t.deepEqual(numbers, [30_086, 30_086, 30_080]);
  t.is(json.spec.externalTrafficPolicy, 'Cluster');
  const nodePort = async (port: number) =>
    (await create('b', { type: 'NodePort', ports: [{ port: 80, nodePort: port }] })).json.message;
  t.is(
    await nodePort(30_080),
    'Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated',
  );
  t.regex(await nodePort(80), /provided port is not in the valid range. The range of valid ports is 30000-32767/);
  await call('DELETE', `${SERVICES}/dns`);
  t.is(await nodePort(30_080), undefined);
});

test("LoadBalancer: node ports unless refused, a health check port with policy Local, its status is the user's", async (t) => {
  const { create, patch, call } = await start(t);
  const lb = { type: 'LoadBalancer', ports: PORTS };
  t.like((await create('a', lb)).json.spec, {
    allocateLoadBalancerNodePorts: true,
    ports: [{ nodePort: 30_086 }],
    healthCheckNodePort: undefined,
  });
  const bare = await create('b', { ...lb, allocateLoadBalancerNodePorts: false, externalTrafficPolicy: 'Local' });
  t.like(bare.json.spec, { ports: [{ nodePort: undefined }], healthCheckNodePort: 30_087 });
  t.regex(
    (await create('c', { ...lb, externalTrafficPolicy: 'Local', healthCheckNodePort: 30_087 })).json.message,
    /failed to allocate requested HealthCheck NodePort 30087: provided port is already allocated/,
  );
  t.is((await patch('b', { healthCheckNodePort: 30_100 })).code, 422);
  const local = await patch('a', { externalTrafficPolicy: 'Local' });
  t.is(local.json.spec.healthCheckNodePort, 30_088);
  t.is((await patch('a', { externalTrafficPolicy: 'Cluster' })).json.spec.healthCheckNodePort, undefined);
  const status = { loadBalancer: { ingress: [{ ip: '192.0.2.7', ipMode: 'VIP' }] } };
  const patched = await call('PATCH', `${SERVICES}/a/status`, { status }, MERGE);
  t.deepEqual(patched.json.status, status);
  t.is(
    (
      await patch('b', {
        healthCheckNodePort: null,
        type: 'ClusterIP',
        externalTrafficPolicy: null,
        allocateLoadBalancerNodePorts: null,
      })
    ).code,
    200,
  );
  t.is((await create('c', { ...lb, externalTrafficPolicy: 'Local', healthCheckNodePort: 30_087 })).code, 201);
});

test('an update keeps what was allocated, and a change of type gives back what it has no use for', async (t) => {
  const { create, put, patch } = await start(t);
  const first = (await create('web', { type: 'NodePort', ports: PORTS })).json;
  const { clusterIP } = first.spec;
  const [{ nodePort }] = first.spec.ports;
  const again = await put('web', { type: 'NodePort', ports: PORTS });
  t.is(again.json.metadata.resourceVersion, first.metadata.resourceVersion, 'nothing has changed');
  t.like((await put('web', { ports: [{ port: 81 }] })).json.spec, {
    type: 'ClusterIP',
    clusterIP,
    ports: [{ port: 81, nodePort: undefined }],
    externalTrafficPolicy: undefined,
  });
  t.is(
    (await create('other', { type: 'NodePort', ports: [{ port: 1, nodePort }] })).code,
    201,
    'the node port is free',
  );
  const changed = await patch('web', { clusterIP: '10.96.0.200', clusterIPs: null });
  t.regex(changed.json.message, /spec.clusterIPs\[0\]: Invalid value: .*: may not change once set/);
  t.deepEqual((await patch('web', { ipFamilyPolicy: 'PreferDualStack' })).json.spec.ipFamilies, ['IPv4', 'IPv6']);
  t.regex(
    (await patch('web', { ipFamilies: ['IPv4'] })).json.message,
    /must be 'SingleStack' to release the secondary IP family/,
  );
  t.deepEqual((await patch('web', { ipFamilyPolicy: 'SingleStack' })).json.spec.clusterIPs, [clusterIP]);
  const named = (await patch('web', { type: 'ExternalName', externalName: 'example.org' })).json.spec;
  t.deepEqual([named.clusterIP, named.clusterIPs, named.ipFamilies], [undefined, undefined, undefined]);
  t.is((await create('heir', { ports: PORTS, clusterIP })).code, 201);
  t.truthy((await patch('web', { type: 'ClusterIP', externalName: null })).json.spec.clusterIP);
});

test('headless and ExternalName Services have no address', async (t) => {
  const { create, patch } = await start(t);
  t.like((await create('h', { clusterIP: 'None', selector: { a: 'b' } })).json.spec, {
    clusterIPs: { 0: 'None', length: 1 },
  });
  t.is((await patch('h', { selector: { a: 'c' } })).json.spec.clusterIP, 'None');
  const { spec } = (await create('e', { type: 'ExternalName', externalName: 'example.org' })).json;
  t.deepEqual(spec, { type: 'ExternalName', externalName: 'example.org', sessionAffinity: 'None' });
});

test('sessionAffinity ClientIP has a timeout', async (t) => {
  const { create, patch } = await start(t);
  const { spec } = (await create('web', { ports: PORTS, sessionAffinity: 'ClientIP' })).json;
  t.deepEqual(spec.sessionAffinityConfig, { clientIP: { timeoutSeconds: 10_800 } });
  t.is((await patch('web', { sessionAffinityConfig: { clientIP: { timeoutSeconds: 86_401 } } })).code, 422);
  t.is((await patch('web', { sessionAffinity: 'None' })).json.spec.sessionAffinityConfig, undefined);
});

test('objections to what no Service may be', async (t) => {
  const { create } = await start(t);
  const cases: readonly (readonly [Spec, field: string, reason: string])[] = [
    [{}, 'spec.ports', 'Required'],
    [{ ports: [{ port: 0 }] }, 'spec.ports[0].port', 'Invalid'],
    [{ ports: [{ port: 65_536 }] }, 'spec.ports[0].port', 'Invalid'],
    [{ ports: [{ port: 80, protocol: 'ICMP' }] }, 'spec.ports[0].protocol', 'NotSupported'],
    [{ ports: [{ port: 80, targetPort: 70_000 }] }, 'spec.ports[0].targetPort', 'Invalid'],
    [{ ports: [{ port: 80, targetPort: '80' }] }, 'spec.ports[0].targetPort', 'Invalid'],
    [{ ports: [{ port: 80 }, { port: 81 }] }, 'spec.ports[1].name', 'Required'],
    [
      {
        ports: [
          { port: 80, name: 'a' },
          { port: 81, name: 'a' },
        ],
      },
      'spec.ports[1].name',
      'Duplicate',
    ],
    [
      {
        ports: [
          { port: 80, name: 'a' },
          { port: 80, name: 'b' },
        ],
      },
      'spec.ports[1]',
      'Duplicate',
    ],
    [{ ports: [{ port: 80, nodePort: 30_000 }] }, 'spec.ports[0].nodePort', 'Forbidden'],
    [{ type: 'Other', ports: PORTS }, 'spec.type', 'NotSupported'],
    [{ type: 'NodePort', clusterIP: 'None', ports: PORTS }, 'spec.clusterIPs[0]', 'Invalid'],
    [{ clusterIP: '10.96.0.x', ports: PORTS }, 'spec.clusterIPs[0]', 'Invalid'],
    [{ clusterIPs: ['10.96.0.9'], ports: PORTS }, 'spec.clusterIPs', 'Invalid'],
    [{ type: 'ExternalName' }, 'spec.externalName', 'Required'],
    [{ externalTrafficPolicy: 'Local', ports: PORTS }, 'spec.externalTrafficPolicy', 'Invalid'],
    [{ internalTrafficPolicy: 'Near', ports: PORTS }, 'spec.internalTrafficPolicy', 'NotSupported'],
    [{ trafficDistribution: 'PreferFar', ports: PORTS }, 'spec.trafficDistribution', 'NotSupported'],
    [{ externalIPs: ['x'], ports: PORTS }, 'spec.externalIPs[0]', 'Invalid'],
    [
      { type: 'LoadBalancer', loadBalancerSourceRanges: ['10.0.0.0'], ports: PORTS },
      'spec.loadBalancerSourceRanges[0]',
      'Invalid',
    ],
    [{ healthCheckNodePort: 30_000, ports: PORTS }, 'spec.healthCheckNodePort', 'Invalid'],
  ];
  for (const [spec, field, reason] of cases) {
    const { code, json } = await create('bad', spec);
    t.is(code, 422, JSON.stringify(spec));
    t.true(
      json.details.causes.some((cause: Spec) => cause['field'] === field && cause['reason'] === `FieldValue${reason}`),
      `${JSON.stringify(spec)}: ${json.message}`,
    );
  }
  for (const spec of [
    { ports: 80 },
    { ports: [80] },
    { selector: ['a'] },
    { clusterIPs: '10.96.0.1' },
    { ports: [{ port: '80' }] },
  ])
    t.is((await create('bad', spec)).code, 400, JSON.stringify(spec));
  t.is((await create('1bad', { ports: PORTS })).code, 422);
});
