/** The real executable against a scripted agent. What needs a deadline uses the build with short ones. */
import { once } from 'node:events';
import { readdirSync, readFileSync, renameSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import { basename, join } from 'node:path';
import test from 'ava';
import { execa } from 'execa';
import {
  CONFIG,
  call,
  ENVIRONMENT,
  EXECUTABLE,
  IMPATIENT,
  listen,
  makeExecutables,
  makeRunDir,
  outcomeOf,
  queued,
  TIMEOUT_MS,
} from '../test/support/cni-executable.ts';
import {
  deleteQueueName,
  parseRequest,
  REQUEST_MAX_BYTES,
  renderAnswer,
  renderRequest,
  supportedVersions,
} from './protocol.ts';

test.before('make', makeExecutables);

test('an ADD reaches the agent as it was called, and its answer the runtime', async (t) => {
  const runDir = makeRunDir(t);
  const requests: Buffer[] = [];
  await listen(t, runDir, (request, socket) => {
    requests.push(request);
    socket.end(renderAnswer(0, { cniVersion: '0.4.0', ips: [] }));
  });
  const { dev, ino } = statSync('/proc/self/ns/net', { bigint: true });
  const { exitCode, stdout } = await call(runDir, 'ADD', { env: { CNI_NETNS_OVERRIDE: '1' } });
  t.is(exitCode, 0);
  t.is(stdout, '{"cniVersion":"0.4.0","ips":[]}\n');
  const sent = { CNI_COMMAND: 'ADD', CNI_CONTAINERID: 'c0ffee', CNI_NETNS: '/proc/self/ns/net', CNI_IFNAME: 'eth0' };
  const rest = { CNI_ARGS: 'K8S_POD_NAME=web', CNI_PATH: '/opt/cni/bin', CNI_NETNS_OVERRIDE: '1' };
  const identity = { TULLE_NETNS_DEV: `${dev}`, TULLE_NETNS_INO: `${ino}` };
  const runtime = { TULLE_RUNTIME: basename(process.execPath) };
  t.deepEqual(requests, [renderRequest({ ...sent, ...rest, ...identity, ...runtime }, CONFIG)]);
});

test('a namespace that is not there is the agent’s to refuse', async (t) => {
  const runDir = makeRunDir(t);
  await listen(t, runDir, (request, socket) => {
    const parsed = parseRequest(request);
    socket.end(renderAnswer(1, { code: 4, msg: parsed.verb === 'ADD' && parsed.netns.error }));
  });
  const { exitCode, error } = await call(runDir, 'ADD', { env: { CNI_NETNS: '/nowhere/x' } });
  t.is(exitCode, 1);
  t.deepEqual(error, { code: 4, msg: 'ENOENT' } as object);
});

test('success without output; exit codes as the agent chose them', async (t) => {
  const runDir = makeRunDir(t);
  await listen(t, runDir, (request, socket) => {
    socket.end(request.includes('CHECK') ? renderAnswer(0) : renderAnswer(42, { code: 100 }));
  });
  t.like(await call(runDir, 'CHECK'), { exitCode: 0, stdout: '' });
  t.like(await call(runDir, 'DEL'), { exitCode: 42, stdout: '{"code":100}\n' });
});

test('VERSION needs no agent and answers in the version of the question', async (t) => {
  const answers = async (stdin: string) => JSON.parse((await call('/nowhere', 'VERSION', { stdin })).stdout) as object;
  for (const cniVersion of supportedVersions) {
    t.deepEqual(await answers(JSON.stringify({ cniVersion })), { cniVersion, supportedVersions } as object);
  }
  const table = [
    ['', '1.1.0'],
    ['{"cniVersion":"0.2.0"}', '1.1.0'],
    ['{"cniVersion":', '1.1.0'],
    ['{"cniVersion":"1.0.0', '1.1.0'],
    ['{"cniVersion":"1.0.0"', '1.1.0'],
    ['"cniVersion":"1.0.0"', '1.1.0'],
    ['[{"cniVersion":"1.0.0"}]', '1.1.0'],
    ['{"a":{"cniVersion":"1.0.0"}}', '1.1.0'],
    ['{"a":"\\"cniVersion\\":\\"1.0.0\\"","b":[1,{"}":"]"}],\n "cniVersion" : "0.3.1" }', '0.3.1'],
    ['{"cniVersion":"0.3.1","a":1}', '0.3.1'],
    [`${'{"a":'.repeat(100_000)}`, '1.1.0'],
  ] as const;
  for (const [stdin, cniVersion] of table) t.like(await answers(stdin), { cniVersion }, stdin.slice(0, 80));
});

for (const [answer, because] of [
  ['', 'nothing'],
  ['0', 'no end of line'],
  ['0\n', 'an ADD without result'],
  ['1\n', 'an error without object'],
  ['0\n{"cniVersion":"1.0.0"', 'no last newline'],
  ['ok\n{}\n', 'no exit code'],
  ['256\n{}\n', 'an exit code that no process has'],
  ['0000\n{}\n', 'too many digits'],
  [`0\n${'x'.repeat(1 << 20)}\n`, 'more than 1 MiB'],
] as const) {
  test(`an answer that broke off, ${because}: code 11, and of it nothing is printed`, async (t) => {
    const runDir = makeRunDir(t);
    await listen(t, runDir, (_, socket) => socket.end(answer));
    const { exitCode, error } = await call(runDir, 'ADD');
    t.is(exitCode, 1);
    t.like(error, { cniVersion: '0.4.0', code: 11, msg: "cannot ADD: the tulle agent's answer broke off" });
  });
}

test('an agent that dies in the middle: STATUS says 50, a DEL is queued', async (t) => {
  const runDir = makeRunDir(t);
  await listen(t, runDir, (_, socket) => socket.destroy());
  t.like((await call(runDir, 'STATUS')).error, { code: 50 });
  t.like(await call(runDir, 'DEL'), { exitCode: 0, stdout: '' });
  t.deepEqual(queued(runDir), [deleteQueueName('c0ffee', 'eth0')]);
});

test('an agent that refuses a request before it has read it is heard', async (t) => {
  const runDir = makeRunDir(t);
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.end(renderAnswer(1, { code: 6, msg: 'too much' }), () => socket.destroy());
  });
  t.teardown(() => server.close());
  server.listen(join(runDir, 'cni.sock'));
  await once(server, 'listening');
  t.like((await call(runDir, 'ADD', { stdin: ' '.repeat(1 << 20) })).error, { code: 6, msg: 'too much' });
});

for (const [verb, expected] of [
  ['ADD', { code: 11, msg: 'cannot ADD: the tulle agent is not running on this node' }],
  ['CHECK', { code: 11, msg: 'cannot CHECK: the tulle agent is not running on this node' }],
  ['STATUS', { code: 50, msg: 'cannot STATUS: the tulle agent is not running on this node' }],
  ['GC', undefined],
  ['DEL', undefined],
] as const) {
  test(`${verb} without an agent`, async (t) => {
    const runDir = makeRunDir(t);
    const check = async (reason: string) => {
      const { exitCode, stdout, error } = await call(runDir, verb);
      if (expected === undefined) {
        t.deepEqual([exitCode, stdout], [0, '']);
        return;
      }
      t.like(error, expected);
      t.true(error.details?.startsWith(`${runDir}/cni.sock: ${reason}`), error.details);
    };
    await check('No such file');
    await leaveSocketBehind(runDir);
    await check('Connection refused');
  });
}

/** The socket of an agent that was killed: there, but nobody listens. */
async function leaveSocketBehind(runDir: string): Promise<void> {
  const server = createServer();
  server.listen(join(runDir, 'cni.sock'));
  await once(server, 'listening');
  renameSync(join(runDir, 'cni.sock'), join(runDir, 'moved'));
  server.close();
  await once(server, 'close');
  renameSync(join(runDir, 'moved'), join(runDir, 'cni.sock'));
}

for (const [verb, expected] of [
  ['ADD', { code: 11, msg: /^cannot ADD: expected an answer of the tulle agent within/ }],
  ['CHECK', { code: 11, msg: /^cannot CHECK: expected an answer/ }],
  ['STATUS', { code: 50, msg: /^cannot STATUS: expected an answer/ }],
  ['GC', { code: 11, msg: /^cannot GC: expected an answer/ }],
] as const) {
  test(`${verb}: an agent that never answers`, async (t) => {
    const runDir = makeRunDir(t);
    await listen(t, runDir, (_, socket) => socket.write('0\n{"half'));
    const { error } = await call(runDir, verb, { executable: IMPATIENT });
    t.is(error.code, expected.code);
    t.regex(error.msg ?? '', expected.msg);
  });
}

test('an agent that never reads', async (t) => {
  const runDir = makeRunDir(t);
  const server = createServer({ pauseOnConnect: true }, (socket) => t.teardown(() => socket.destroy()));
  t.teardown(() => server.close());
  server.listen(join(runDir, 'cni.sock'));
  await once(server, 'listening');
  const { error } = await call(runDir, 'ADD', { executable: IMPATIENT, stdin: ' '.repeat(1 << 19) });
  t.regex(error.msg ?? '', /^cannot ADD: expected an answer/);
});

test('a runtime that never ends standard input: an ADD fails, a DEL goes on without', async (t) => {
  const runDir = makeRunDir(t);
  const withOpenInput = async (verb: string) => {
    const running = execa(IMPATIENT, {
      env: { TULLE_RUN_DIR: runDir, ...ENVIRONMENT, CNI_COMMAND: verb },
      extendEnv: false,
      reject: false,
      timeout: TIMEOUT_MS,
      killSignal: 'SIGKILL',
    });
    running.stdin.write('{');
    return outcomeOf(await running);
  };
  t.like((await withOpenInput('ADD')).error, { code: 5 });
  t.is((await withOpenInput('DEL')).exitCode, 0);
  t.like(parseRequest(readFileSync(join(runDir, 'delete-queue', deleteQueueName('c0ffee', 'eth0')))), { verb: 'DEL' });
});

test('50 calls at once each get their own answer', async (t) => {
  const runDir = makeRunDir(t);
  await listen(t, runDir, (request, socket) => {
    const parsed = parseRequest(request);
    socket.end(renderAnswer(0, { id: 'containerId' in parsed ? parsed.containerId : undefined }));
  });
  const ids = Array.from({ length: 50 }, (_, i) => `container-${i}`);
  const calls = ids.map((CNI_CONTAINERID) => call(runDir, 'ADD', { env: { CNI_CONTAINERID } }));
  t.deepEqual(
    (await Promise.all(calls)).map(({ stdout }) => (JSON.parse(stdout) as { id: string }).id),
    ids,
  );
});

test('a configuration of 1 MiB passes, one byte more does not, unless it is a DEL', async (t) => {
  const runDir = makeRunDir(t);
  const sizes: number[] = [];
  await listen(t, runDir, (request, socket) => {
    sizes.push(request.length);
    socket.end(renderAnswer(0, {}));
  });
  t.is((await call(runDir, 'ADD', { stdin: ' '.repeat(1 << 20) })).exitCode, 0);
  const { error } = await call(runDir, 'ADD', { stdin: ' '.repeat((1 << 20) + 1) });
  t.like(error, {
    code: 6,
    msg: 'cannot ADD: network configuration on standard input: expected at most 1 MiB, got more',
  });
  t.is((await call(runDir, 'DEL', { stdin: ' '.repeat((1 << 20) + 1) })).exitCode, 0);
  const [whole, withoutConfig] = sizes as [number, number];
  t.true(whole > 1 << 20 && whole <= REQUEST_MAX_BYTES);
  t.true(withoutConfig < 1000);
});

test('hostile values', async (t) => {
  const runDir = makeRunDir(t);
  const refused = async (verb: string, env: Readonly<Record<string, string>>) =>
    (await call(runDir, verb, { env })).error;
  const long = 'x'.repeat(70_000);
  t.like(await refused('ADD', { CNI_PATH: long }), {
    code: 4,
    msg: 'cannot ADD: CNI_PATH: expected at most 64 KiB of CNI variables, got more',
  });
  t.like(await refused('ADD', { TULLE_RUN_DIR: 'relative' }), { code: 4 });
  t.like(await refused('ADD', { TULLE_RUN_DIR: `/${long}` }), { code: 4 });
  t.true((await refused('ADD', { TULLE_RUN_DIR: '"\\\n\u0001ü' })).msg?.endsWith('got "\\\n\u0001\u00c3\u00bc'));
  t.regex(
    (await refused('"', {})).msg ?? '',
    /^cannot run: CNI_COMMAND: expected ADD, DEL, CHECK, STATUS, GC or VERSION, got "$/,
  );
  t.regex((await refused('', {})).msg ?? '', /CNI_COMMAND: .* got none$/);
  for (const id of ['', '../../etc/passwd', '.hidden', 'a b', 'a\n', '-rf']) {
    t.regex(
      (await refused('DEL', { CNI_CONTAINERID: id })).msg ?? '',
      /^cannot DEL: CNI_CONTAINERID: expected a letter or digit/,
      id,
    );
  }
  t.deepEqual(readdirSync(runDir), []);
  t.is((await call(runDir, 'DEL', { env: { CNI_IFNAME: '../../../x' } })).exitCode, 0);
  t.deepEqual(queued(runDir), [deleteQueueName('c0ffee', '../../../x')]);
});

test('called by a person', async (t) => {
  const { exitCode, stdout, stderr } = await execa(EXECUTABLE, ['--version'], { stdin: 'ignore', reject: false });
  const { version } = JSON.parse(readFileSync(join(import.meta.dirname, '../package.json'), 'utf8')) as {
    version: string;
  };
  t.deepEqual([exitCode, stdout], [0, '']);
  t.true(stderr.startsWith(`tulle-cni ${version}: a CNI plugin`));
  t.true(stderr.endsWith(`CNI versions: ${supportedVersions.join(' ')}`));
});

test('the executable is small and static', async (t) => {
  t.true(statSync(EXECUTABLE).size < 100 * 1024);
  const { stdout } = await execa('readelf', ['--program-headers', EXECUTABLE]);
  t.false(stdout.includes('INTERP'));
});
