import test from 'ava';
import fc from 'fast-check';
import { CniError, type CniRequest, parseRequest, renderError, renderRequest, supportedVersions } from './protocol.ts';

const ID = 'c0ffee'.repeat(10);
const ENVIRONMENT = {
  CNI_COMMAND: 'ADD',
  CNI_CONTAINERID: ID,
  CNI_NETNS: '/var/run/netns/cni-1',
  CNI_IFNAME: 'eth0',
  CNI_ARGS:
    'K8S_POD_UID=u-1;IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop;K8S_POD_INFRA_CONTAINER_ID=c0ffee',
  CNI_PATH: '/opt/cni/bin',
  TULLE_NETNS_DEV: '4',
  TULLE_NETNS_INO: '4026532831',
};
const CONFIG = { cniVersion: '1.0.0', name: 'tulle', type: 'tulle' };
const PREV_RESULT = { cniVersion: '1.0.0', interfaces: [], ips: [{ address: '10.84.1.2/32' }] };

type Environment = Readonly<Record<string, string | undefined>>;
type Change = { readonly env?: Environment; readonly config?: object; readonly stdin?: string | Uint8Array };

/** A good request with changes; an undefined variable is left out. */
function parse({ env = {}, config = {}, stdin = JSON.stringify({ ...CONFIG, ...config }) }: Change = {}): CniRequest {
  const variables = Object.entries({ ...ENVIRONMENT, ...env }).filter(([, value]) => value !== undefined);
  return parseRequest(renderRequest(Object.fromEntries(variables) as Record<string, string>, stdin));
}

function refusal(change: Change): string {
  try {
    parse(change);
  } catch (error) {
    if (error instanceof CniError) return `${error.code} ${error.message}`;
    throw error;
  }
  return 'accepted';
}

test('an ADD as containerd sends it', (t) => {
  t.deepEqual(parse({ config: { runtimeConfig: { 'io.kubernetes.cri.pod-annotations': { a: 'b' } } } }), {
    verb: 'ADD',
    containerId: ID,
    ifName: 'eth0',
    netns: { path: '/var/run/netns/cni-1', device: '4', inode: '4026532831' },
    netnsOverride: false,
    args: { podNamespace: 'shop', podName: 'web-0', podUid: 'u-1', infraContainerId: 'c0ffee' },
    config: {
      cniVersion: '1.0.0',
      name: 'tulle',
      type: 'tulle',
      runtimeConfig: { portMappings: [], ips: [], podAnnotations: new Map([['a', 'b']]) },
    },
  });
});

test('a request says nothing of the one before it, whatever becomes of its bytes', (t) => {
  const nameOf = (bytes: Uint8Array) => (parseRequest(bytes) as { config: { name: string } }).config.name;
  const of = (name: string) => renderRequest(ENVIRONMENT, JSON.stringify({ ...CONFIG, name }));
  const buffer = Buffer.from(of('first'));
  t.is(nameOf(buffer), 'first');
  t.is(nameOf(of('other')), 'other');
  t.is(nameOf(buffer), 'first');
  // The bytes are a view of what the next request is read into.
  of('third').copy(buffer);
  t.is(nameOf(buffer), 'third');
  t.regex(refusal({ stdin: '{' }), /^6 .*JSON/);
  t.regex(refusal({ stdin: '{' }), /^6 .*JSON/, 'the same fault again');
  t.is(nameOf(of('first')), 'first');
});

test('the runtime is named by its program, if that is a name', (t) => {
  const runtimeOf = (TULLE_RUNTIME: string, verb = 'ADD') => {
    const config = { cniVersion: '1.1.0', 'cni.dev/valid-attachments': [] };
    const request = parse({ env: { CNI_COMMAND: verb, TULLE_RUNTIME }, config });
    return 'runtime' in request ? request.runtime : undefined;
  };
  t.is(runtimeOf('containerd'), 'containerd');
  t.is(runtimeOf('crio', 'GC'), 'crio');
  for (const text of ['', 'a b', 'x'.repeat(65), 'b\n']) t.is(runtimeOf(text), undefined);
});

test('podman names no namespace and knows other arguments', (t) => {
  const request = parse({ env: { CNI_ARGS: 'IgnoreUnknown=1;K8S_POD_NAME=my_container;OTHER=x=y;' } });
  t.deepEqual('args' in request && request.args, { podName: 'my_container' });
});

test('which verb exists in which version', (t) => {
  const accepts = (verb: string, cniVersion: string) =>
    refusal({
      env: { CNI_COMMAND: verb },
      config: { cniVersion, 'cni.dev/valid-attachments': [], ...(verb !== 'ADD' && { prevResult: PREV_RESULT }) },
    }).slice(0, 2);
  const table = ['ADD', 'DEL', 'CHECK', 'STATUS', 'GC', 'VERSION'].map(
    (verb) =>
      `${verb} ${[...supportedVersions, '0.2.0', '1.2.0', ''].map((version) => accepts(verb, version)).join(' ')}`,
  );
  t.deepEqual(table, [
    'ADD ac ac ac ac ac 1  1  1 ',
    'DEL ac ac ac ac ac ac ac ac',
    'CHECK 1  1  ac ac ac 1  1  1 ',
    'STATUS 1  1  1  1  ac 1  1  1 ',
    'GC 1  1  1  1  ac 1  1  1 ',
    'VERSION ac ac ac ac ac ac ac ac',
  ]);
});

const REFUSED: readonly (readonly [Change, RegExp])[] = [
  [{ env: { CNI_COMMAND: undefined } }, /^4 CNI_COMMAND: expected one of .*, got nothing$/],
  [{ env: { CNI_COMMAND: 'add' } }, /^4 CNI_COMMAND: .* got "add"$/],
  [{ env: { CNI_CONTAINERID: undefined } }, /^4 cannot ADD: CNI_CONTAINERID: .* got nothing$/],
  [{ env: { CNI_CONTAINERID: '' } }, /^4 cannot ADD: CNI_CONTAINERID: .* got nothing$/],
  [{ env: { CNI_CONTAINERID: '../x' } }, /^4 cannot ADD: CNI_CONTAINERID: .* got "..\/x"$/],
  [{ env: { CNI_CONTAINERID: '-x' } }, /^4 cannot ADD: CNI_CONTAINERID/],
  [{ env: { CNI_CONTAINERID: 'a'.repeat(201) } }, /^4 cannot ADD: CNI_CONTAINERID.*a\.\.\.$/],
  [{ env: { CNI_CONTAINERID: 'a\n' } }, /^4 cannot ADD: CNI_CONTAINERID/],
  [{ env: { CNI_NETNS: '' } }, /^4 cannot ADD: CNI_NETNS: expected an absolute path.* got nothing$/],
  [{ env: { CNI_NETNS: 'netns/x' } }, /^4 cannot ADD: CNI_NETNS/],
  [{ env: { CNI_NETNS: '/x\n' } }, /^4 cannot ADD: CNI_NETNS: .* got "\/x\\n"$/],
  [{ env: { CNI_NETNS: `/${'x'.repeat(4095)}` } }, /^4 cannot ADD: CNI_NETNS/],
  ...['', '.', '..', 'a/b', 'a:b', 'a b', 'sixteen_letters_', 'eth%d', 'all', 'default', 'ü', 'a\t'].map(
    (CNI_IFNAME): [Change, RegExp] => [{ env: { CNI_IFNAME } }, /^4 cannot ADD: CNI_IFNAME: expected 1 to 15/],
  ),
  [{ env: { CNI_CONTAINERID: '', CNI_IFNAME: '' } }, /CNI_CONTAINERID: .*; CNI_IFNAME: /],
  [{ env: { CNI_ARGS: 'K8S_POD_NAME' } }, /^4 cannot ADD: CNI_ARGS: expected KEY=value/],
  [{ env: { CNI_ARGS: 'K8S_POD_NAME=a b' } }, /^4 cannot ADD: CNI_ARGS: K8S_POD_NAME: .* got "a b"$/],
  [{ env: { CNI_ARGS: 'K8S_POD_NAMESPACE=../../etc' } }, /^4 cannot ADD: CNI_ARGS: K8S_POD_NAMESPACE/],
  [{ stdin: '' }, /^6 cannot ADD: network configuration on standard input: expected a JSON object/],
  [{ stdin: '{"a":' }, /^6 /],
  [{ stdin: '[]' }, /^6 .* expected an object, got \[\]$/],
  [{ stdin: Buffer.from('{"name":"\xff"}', 'latin1') }, /^6 /],
  [{ stdin: '['.repeat(500_000) }, /^6 /],
  [{ config: { cniVersion: '2.0.0' } }, /^1 cannot ADD: cniVersion: expected one of 0\.3\.0, .*, got "2\.0\.0"$/],
  [{ config: { cniVersion: undefined } }, /^1 .* got nothing$/],
  [{ config: { name: undefined } }, /^7 cannot ADD: name: .* got nothing$/],
  [{ config: { name: 'a/b' } }, /^7 cannot ADD: name: .* got "a\/b"$/],
  [{ config: { type: 3 } }, /^7 cannot ADD: type: .* got 3$/],
  [{ config: { mtu: '1500' } }, /^7 cannot ADD: mtu: expected an integer from 576 to 65535, got "1500"$/],
  [{ config: { mtu: 100 } }, /^7 cannot ADD: mtu/],
  [{ config: { ipam: { type: 'host-local' } } }, /^2 cannot ADD: ipam: expected none, got {"type":"host-local"}$/],
  [{ config: { prevResult: PREV_RESULT } }, /^7 cannot ADD: prevResult: expected none, got/],
  [{ config: { runtimeConfig: [] } }, /^7 cannot ADD: runtimeConfig: expected an object, got \[\]$/],
  [{ config: { runtimeConfig: { ips: ['10.0.0.256'] } } }, /^7 .*runtimeConfig\.ips\[0\]: expected an IP address/],
  [
    { config: { runtimeConfig: { portMappings: [{ hostPort: 80, containerPort: 65536 }] } } },
    /^7 .*runtimeConfig\.portMappings\[0\]\.containerPort: expected an integer from 1 to 65535, got 65536$/,
  ],
  [{ env: { CNI_COMMAND: 'CHECK' } }, /^7 cannot CHECK: prevResult: expected an object, got nothing$/],
  [
    { env: { CNI_COMMAND: 'CHECK' }, config: { prevResult: { ips: [{ address: '10.0.0.1' }] } } },
    /^7 cannot CHECK: prevResult\.ips\[0\]\.address: .* got "10\.0\.0\.1"$/,
  ],
  [
    { env: { CNI_COMMAND: 'GC' }, config: { cniVersion: '1.1.0' } },
    /^7 cannot GC: cni\.dev\/valid-attachments: expected a list, got nothing$/,
  ],
  [
    {
      env: { CNI_COMMAND: 'GC' },
      config: { cniVersion: '1.1.0', 'cni.dev/valid-attachments': [{ containerID: 'a', ifname: 'a/b' }] },
    },
    /^7 cannot GC: cni\.dev\/valid-attachments\[0\]\.ifname/,
  ],
];

for (const [change, expected] of REFUSED) {
  test(`refused: ${expected} (${JSON.stringify(change).slice(0, 60)})`, (t) => t.regex(refusal(change), expected));
}

test('runtimeConfig in the spelling of the conventions and in that of Go', (t) => {
  const mapping = (fields: object) => {
    const request = parse({ config: { runtimeConfig: { portMappings: [fields] } } });
    return request.verb === 'ADD' && request.config.runtimeConfig.portMappings[0];
  };
  const plain = { hostPort: 8080, containerPort: 80, protocol: 'TCP' };
  t.deepEqual(mapping({ hostPort: 8080, containerPort: 80 }), plain);
  t.deepEqual(mapping({ HostPort: 8080, ContainerPort: 80, Protocol: 'tcp', HostIP: '' }), plain);
  t.deepEqual(mapping({ ...plain, hostIP: '::1' }), { ...plain, hostIp: '::1' });
  t.is(mapping({ hostPort: 0, containerPort: 80 }), undefined);
  const request = parse({
    config: {
      mtu: 1400,
      runtimeConfig: {
        bandwidth: { IngressRate: 1000, IngressBurst: 4294967295 },
        ips: ['10.1.2.3/24', 'FD00::1'],
        portMappings: null,
      },
    },
  });
  t.deepEqual(request.verb === 'ADD' && request.config, {
    cniVersion: '1.0.0',
    name: 'tulle',
    type: 'tulle',
    mtuBytes: 1400,
    runtimeConfig: {
      portMappings: [],
      bandwidth: { ingressRate: 1000, ingressBurst: 4294967295 },
      ips: ['10.1.2.3', 'fd00::1'],
      podAnnotations: new Map(),
    },
  });
});

test('what the runtime found at CNI_NETNS comes along', (t) => {
  const env = { TULLE_NETNS_DEV: undefined, TULLE_NETNS_INO: undefined };
  const error = (TULLE_NETNS_ERROR: string) => {
    const request = parse({ env: { ...env, TULLE_NETNS_ERROR } });
    return request.verb === 'ADD' && request.netns;
  };
  t.deepEqual(error('2'), { path: '/var/run/netns/cni-1', error: 'ENOENT' });
  t.deepEqual(error('99999999'), { path: '/var/run/netns/cni-1', error: 'errno 99999999' });
  t.deepEqual(error('nonsense'), { path: '/var/run/netns/cni-1' });
});

test('GC names what stays; a list of none may be null', (t) => {
  const stays = (attachments: object) => {
    const request = parse({ env: { CNI_COMMAND: 'GC' }, config: { cniVersion: '1.1.0', ...attachments } });
    return request.verb === 'GC' && request.validAttachments;
  };
  const [one, expected] = [
    { containerID: 'a', ifname: 'eth0' },
    { containerId: 'a', ifName: 'eth0' },
  ];
  t.deepEqual(stays({ 'cni.dev/valid-attachments': [one] }), [expected]);
  t.deepEqual(stays({ 'cni.dev/attachments': [one] }), [expected]);
  t.deepEqual(stays({ 'cni.dev/valid-attachments': null }), []);
});

test('a DEL needs the container id alone and tells what it could not use', (t) => {
  const variables = { CNI_COMMAND: 'DEL', CNI_CONTAINERID: 'a' };
  const bare = parseRequest(renderRequest(variables, '\xff{'));
  t.like(bare, { verb: 'DEL', containerId: 'a', ifName: undefined, netns: undefined, config: undefined, args: {} });
  const hostile = { ...variables, CNI_NETNS: 'x', CNI_IFNAME: '../..', CNI_ARGS: 'K8S_POD_NAME=$(x);nonsense' };
  const request = parseRequest(renderRequest(hostile, JSON.stringify({ ...CONFIG, mtu: 'big' })));
  const fields = request.verb === 'DEL' && request.ignored.map((text) => text.slice(0, text.indexOf(': expected')));
  t.deepEqual(fields, ['CNI_IFNAME', 'CNI_NETNS', 'mtu', 'CNI_ARGS: K8S_POD_NAME', 'CNI_ARGS']);
  t.regex(refusal({ env: { CNI_COMMAND: 'DEL', CNI_CONTAINERID: '../a' } }), /^4 cannot DEL: CNI_CONTAINERID/);
});

test('the second DEL of containerd: no namespace, no prevResult, nothing to complain of', (t) => {
  const env = { CNI_COMMAND: 'DEL', CNI_NETNS: '', TULLE_NETNS_DEV: undefined, TULLE_NETNS_INO: undefined };
  const { verb, ...rest } = parse({ env });
  t.is(verb, 'DEL');
  t.like(rest, { containerId: ID, ifName: 'eth0', ignored: [] });
  t.false('netns' in rest);
});

test('errors are answered in the version of the request, if it named a known one', (t) => {
  const answer = (change: Change) => {
    const error = t.throws(() => parse(change));
    return renderError(undefined, error);
  };
  t.like(answer({ config: { cniVersion: '0.4.0', mtu: 1 } }), { cniVersion: '0.4.0', code: 7 });
  t.like(answer({ config: { cniVersion: '9.0.0' } }), { cniVersion: '1.1.0', code: 1 });
  t.like(answer({ config: { prevResult: {} } }), {
    cniVersion: '1.0.0',
    details: "the plugin tulle makes the pod's interface and must come first in the list of plugins",
  });
  t.deepEqual(renderError('1.0.0', new TypeError('x')), { cniVersion: '1.0.0', code: 999, msg: 'x' });
});

test('bytes that are no request', (t) => {
  for (const text of [
    '',
    'TULLE1',
    'TULLE1\0',
    'TULLE2\0\0',
    'TULLE1\0CNI_COMMAND\0\0',
    'TULLE1\0A=1\0A=2\0\0',
    'GET / HTTP/1.1\r\n\r\n',
  ]) {
    const error = t.throws(() => parseRequest(Buffer.from(text)), { instanceOf: CniError });
    t.is(error?.code, 6, text);
  }
});

/** Values as a hostile caller may choose them: no NUL, which no environment can hold. */
const text = fc.string({ unit: 'binary' }).map((value) => value.replaceAll('\0', ''));
const oftenGood = (good: string) => fc.oneof(fc.constant(good), text);
const environment = fc.record(
  {
    CNI_COMMAND: fc.oneof(fc.constantFrom('ADD', 'DEL', 'CHECK', 'GC', 'STATUS', 'VERSION'), text),
    CNI_CONTAINERID: oftenGood('a'),
    CNI_NETNS: oftenGood('/run/netns/a'),
    CNI_IFNAME: oftenGood('eth0'),
    CNI_ARGS: fc.oneof(
      text,
      fc.array(fc.tuple(oftenGood('K8S_POD_NAME'), text)).map((pairs) => pairs.map((pair) => pair.join('=')).join(';')),
    ),
    CNI_PATH: text,
    TULLE_NETNS_INO: text,
  },
  { requiredKeys: ['CNI_COMMAND'] },
);
const config = fc.oneof(
  fc.json(),
  fc
    .record(
      { mtu: fc.jsonValue(), prevResult: fc.jsonValue(), runtimeConfig: fc.jsonValue(), ipam: fc.jsonValue() },
      { requiredKeys: [] },
    )
    .map((fields) => JSON.stringify({ ...CONFIG, cniVersion: '1.1.0', ...fields })),
);

function outcomeOf(bytes: Uint8Array): CniRequest | CniError {
  try {
    return parseRequest(bytes);
  } catch (error) {
    if (error instanceof CniError) return error;
    throw error;
  }
}

test('parseRequest throws nothing but CniError on arbitrary bytes', (t) => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void outcomeOf(bytes)));
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 200 }),
      (bytes) => void outcomeOf(Buffer.concat([Buffer.from('TULLE1\0'), bytes])),
    ),
  );
  t.pass();
});

test('whatever the caller says, an accepted request holds only what is safe in names and paths', (t) => {
  fc.assert(
    fc.property(environment, config, (variables, stdin) => {
      const outcome = outcomeOf(renderRequest(variables, stdin));
      if (outcome instanceof CniError) return JSON.stringify(renderError(undefined, outcome)).includes('"code":');
      if (outcome.verb !== 'ADD' && outcome.verb !== 'DEL') return true;
      const { containerId, ifName = 'eth0', netns, args } = outcome;
      const safe = [containerId, ...Object.values(args)].every((value) => /^[A-Za-z0-9][A-Za-z0-9_.-]*$/.test(value));
      return (
        safe &&
        containerId === variables.CNI_CONTAINERID &&
        /^[^/:%\s]{1,15}$/.test(ifName) &&
        (netns?.path ?? '/').startsWith('/')
      );
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

test('a DEL with a good container id is accepted whatever else it says', (t) => {
  fc.assert(
    fc.property(environment, fc.oneof(config, text), (variables, stdin) => {
      const outcome = outcomeOf(renderRequest({ ...variables, CNI_COMMAND: 'DEL', CNI_CONTAINERID: 'a' }, stdin));
      return !(outcome instanceof CniError) && outcome.verb === 'DEL';
    }),
  );
  t.pass();
});

test('CNI_ARGS survive rendering and parsing in any order', (t) => {
  const value = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,60}$/);
  const given = fc.record({
    K8S_POD_NAMESPACE: value,
    K8S_POD_NAME: value,
    K8S_POD_UID: value,
    IgnoreUnknown: fc.constant('1'),
  });
  fc.assert(
    fc.property(given, fc.array(fc.nat()), (args, order) => {
      const pairs = Object.entries(args).map((pair) => pair.join('='));
      const shuffled = pairs.toSorted((a, b) => (order[a.length % 5] ?? 0) - (order[b.length % 5] ?? 0)).join(';');
      const request = parse({ env: { CNI_ARGS: shuffled } });
      if (request.verb !== 'ADD') return false;
      const { podNamespace, podName, podUid } = request.args;
      return podNamespace === args.K8S_POD_NAMESPACE && podName === args.K8S_POD_NAME && podUid === args.K8S_POD_UID;
    }),
  );
  t.pass();
});
