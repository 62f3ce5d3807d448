import test from 'ava';
import { pino } from 'pino';
import { logged, run } from './command.ts';
import { KernelError } from './errors.ts';

const TIMEOUT_MS = 20_000;
const failing = (file: string, args: readonly string[] = [], fields = {}) =>
  run({ file, args, timeoutMs: TIMEOUT_MS, ...fields }).then(
    () => Promise.reject(new Error('it succeeded')),
    (error: KernelError) => error,
  );

test('run: stdin goes in, stdout comes out, and nothing is a shell', async (t) => {
  t.is((await run({ file: 'cat', args: [], stdin: 'a\nb\n', timeoutMs: TIMEOUT_MS })).stdout, 'a\nb');
  t.is((await run({ file: 'echo', args: ['$(id)', ';', '*'], timeoutMs: TIMEOUT_MS })).stdout, '$(id) ; *');
});

test('run: the environment is fixed', async (t) => {
  const { stdout } = await run({ file: 'env', args: [], timeoutMs: TIMEOUT_MS });
  t.deepEqual(
    stdout
      .split('\n')
      .map((line) => line.split('=')[0])
      .sort(),
    ['LC_ALL', 'PATH'],
  );
});

test('run: lines are handed over one by one, the last one without its newline too', async (t) => {
  const lines: string[] = [];
  const stdin = `${'x'.repeat(100_000)}\n\nend`;
  const { stdout } = await run({
    file: 'cat',
    args: [],
    stdin,
    timeoutMs: TIMEOUT_MS,
    onLine: (line) => lines.push(line),
  });
  t.deepEqual(lines, stdin.split('\n'));
  t.is(stdout, '');
});

test('run: what a line handler throws comes out', async (t) => {
  const thrown = new Error('mine');
  const onLine = () => {
    throw thrown;
  };
  t.is(await failing('yes', [], { onLine }), thrown as KernelError);
});

test('run: a missing tool names its package and is not a missing object', async (t) => {
  const error = await failing('ipset-of-another-world');
  t.true(error instanceof KernelError);
  t.is(error.code, 'ENOPKG');
  t.regex(error.message, /install the Debian package ipset\)$/);
});

test('run: a tool that hangs is killed at the deadline', async (t) => {
  const error = await failing('sleep', ['600'], { timeoutMs: 50 });
  t.is(error.code, 'ETIMEDOUT');
  t.regex(error.message, /killed after 50 ms/);
});

test('run: an abort ends the tool', async (t) => {
  const controller = new AbortController();
  const error = failing('sleep', ['600'], { signal: controller.signal });
  controller.abort();
  t.is((await error).code, 'ECANCELED');
  t.is((await failing('sleep', ['600'], { signal: AbortSignal.abort() })).code, 'ECANCELED');
});

for (const [stderr, code] of [
  ['Another app is currently holding the xtables lock; waited (5s)', 'EAGAIN'],
  ['line 3: CHAIN_DEL failed (Device or resource busy): chain TULLE-FORWARD', 'EBUSY'],
  ['Set cannot be destroyed: it is in use by a kernel component', 'EBUSY'],
  ["can't initialize iptables table `filter': Permission denied (you must be root)", 'EPERM'],
  ["can't initialize ip6tables table `filter': Table does not exist (do you need to insmod?)", 'ENOPROTOOPT'],
  ['Failed to initialize nft: Protocol not supported', 'EPROTONOSUPPORT'],
  ["Set tulle-x doesn't exist.", 'ENOENT'],
  ["Chain 'TULLE-NOPE' does not exist", 'ENOENT'],
  ['Set cannot be created: set with the same name already exists', 'EEXIST'],
  ['unknown option "--random-foolly"', 'EINVAL'],
  ['something new', 'EIO'],
] as const) {
  test(`run: "${stderr}" is ${code}`, async (t) => {
    const error = await failing('sh', ['-c', 'cat >&2; exit 4'], { stdin: `${stderr}\nTry \`tool -h' for more.\n` });
    t.is(error.code, code);
    t.is(error.detail, stderr);
  });
}

test('logged: argv and duration of every run, failed ones too', async (t) => {
  const lines: string[] = [];
  const log = pino({ level: 'debug' }, { write: (line: string) => void lines.push(line) });
  const loud = logged(run, log);
  await loud({ file: 'true', args: ['x'], timeoutMs: TIMEOUT_MS });
  await t.throwsAsync(loud({ file: 'false', args: [], timeoutMs: TIMEOUT_MS }), { instanceOf: KernelError });
  t.deepEqual(
    lines.map((line) => JSON.parse(line).command),
    [['true', 'x'], ['false']],
  );
});
