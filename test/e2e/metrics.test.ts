/** What Prometheus and kubelet are told, of a real agent: by scraping it in its node, as they do. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import test, { type ExecutionContext } from 'ava';
import { apiPath } from '../../lab/api-writer.ts';
import { inNode } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { cni, createPod, removeNetns } from '../support/cni-calls.ts';
import { output, run, shIn, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';

const URL = 'http://127.0.0.1:9440';
const lab = useLab({ nodes: 2, agentArgs: ['--resync-seconds', '5'] });
const node = () => lab().node('node-1');
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 100 };

/** Status and body; status 0 where nobody listens. */
async function get(path: string, ...options: readonly string[]): Promise<{ status: number; body: string }> {
  const argv = ['curl', '-sS', '--max-time', '10', '-w', '\n%{http_code}', ...options, `${URL}${path}`];
  const { stdout } = await run(inNode(node(), argv));
  const end = stdout.lastIndexOf('\n');
  return { status: Number(stdout.slice(end + 1)), body: stdout.slice(0, end) };
}

type Samples = ReadonlyMap<string, number>;

/** Values by name and labels: `tulle_watch_synced{resource="nodes"}`. */
async function scrape(): Promise<Samples> {
  const { status, body } = await get('/metrics');
  if (status !== 200) throw new Error(`status ${status} of /metrics: ${body}`);
  const lines = body.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ')))]),
  );
}

/** A text lasts a second, so what has just happened may show a little later. */
async function untilSamples(describe: string, holds: (samples: Samples) => boolean): Promise<Samples> {
  let samples: Samples = new Map();
  const isSo = async () => {
    samples = await scrape();
    return holds(samples);
  };
  await until(isSo, { describe, ...WAIT });
  return samples;
}

async function untilReadyz(expected: RegExp): Promise<string> {
  let last = '';
  const isSo = async () => {
    const { status, body } = await get('/readyz');
    last = `${status} ${body.trimEnd()}`;
    return expected.test(last);
  };
  try {
    await until(isSo, { describe: `/readyz to be ${expected}`, ...WAIT });
  } catch (cause) {
    throw new Error(`/readyz stays: ${last}`, { cause });
  }
  return last;
}

const calls = (verb: string, code: number) => `tulle_cni_call_duration_seconds_count{verb="${verb}",code="${code}"}`;
const addresses = (family: string, state: string) => `tulle_addresses{family="${family}",state="${state}"}`;

/** Runs in the node until the test ends. */
function background(t: ExecutionContext, argv: readonly string[]): ReturnType<typeof spawn> {
  const [file, ...args] = inNode(node(), argv);
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

test.serial('a node that is ready says so, and nobody outside of it is answered', async (t) => {
  await untilReadyz(/^200 ok$/);
  t.deepEqual(await get('/healthz'), { status: 200, body: 'ok\n' });
  const samples = await untilSamples('a quiet agent', (seen) => seen.get('tulle_api_to_kernel_behind_seconds') === 0);
  t.is(samples.get('tulle_ready'), 1);
  t.is(samples.get('tulle_reconcile_held_items{lane="netlink",kind="link"}'), 1);
  t.is(samples.get('tulle_watch_objects{resource="nodes"}'), 2);
  t.is(samples.get(addresses('ipv4', 'free')), 253);
  t.true((samples.get('tulle_api_to_kernel_duration_seconds_count') ?? 0) > 0);
  t.log(
    `${samples.size} samples, RSS ${((samples.get('process_resident_memory_bytes') ?? 0) / 2 ** 20).toFixed(0)} MiB`,
  );
  for (const address of node().addresses) {
    const host = address.includes(':') ? `[${address}]` : address;
    const { exitCode } = await run(
      inNode(lab().node('node-2'), ['curl', '-sS', '--max-time', '5', `http://${host}:9440/metrics`]),
    );
    t.is(exitCode, 7, `${host}: expected a refused connection`);
  }
});

test.serial('ADD, DEL and a refused ADD are counted by verb and code, and addresses as they come and go', async (t) => {
  const before = await scrape();
  const pod = await createPod(node());
  t.is((await cni(pod, 'ADD')).code, 0);
  t.is((await cni(pod, 'ADD')).code, 4);
  const during = await untilSamples(
    'the calls',
    (seen) => seen.get(calls('ADD', 4)) === (before.get(calls('ADD', 4)) ?? 0) + 1,
  );
  t.is(during.get(calls('ADD', 0)), (before.get(calls('ADD', 0)) ?? 0) + 1);
  t.is(during.get('tulle_attachments'), 1);
  for (const family of ['ipv4', 'ipv6']) t.is(during.get(addresses(family, 'used')), 1, family);
  t.is(during.get('tulle_reconcile_changes_total{lane="netlink",kind="pod-link",op="create"}'), 1);
  t.is((await cni(pod, 'DEL')).code, 0);
  await removeNetns(pod);
  const after = await untilSamples('the DEL', (seen) => seen.get(calls('DEL', 0)) === 1);
  t.is(after.get(addresses('ipv4', 'used')), 0);
  t.is(after.get(addresses('ipv4', 'resting')), 1);
  t.is(after.get(addresses('ipv4', 'free')), 252);
  t.is(after.get('tulle_attachments'), 0);
});

test.serial('what somebody else deletes is counted as a change and as a repair', async (t) => {
  const [repairs, created, done] = [
    'tulle_reconcile_repairs_total{lane="netlink",kind="route"}',
    'tulle_reconcile_changes_total{lane="netlink",kind="route",op="create"}',
    'tulle_reconcile_last_success_timestamp_seconds{lane="netlink",kind="route"}',
  ];
  const before = await scrape();
  const [cidr = ''] = lab().node('node-2').podCidrs;
  await output(shIn(node(), `ip route delete ${cidr} proto 84`));
  const after = await untilSamples('the repair', (seen) => (seen.get(repairs) ?? 0) > (before.get(repairs) ?? 0));
  t.is(after.get(created), (before.get(created) ?? 0) + 1);
  t.true((after.get(done) ?? 0) > (before.get(done) ?? 0));
});

test.serial('a Node that comes and goes is an event that reaches the kernel', async (t) => {
  const lag = 'tulle_api_to_kernel_duration_seconds_count';
  const routes = 'tulle_reconcile_held_items{lane="netlink",kind="route"}';
  const before = await scrape();
  const { control } = lab();
  const object = {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: 'node-9' },
    spec: { podCIDRs: ['10.84.99.0/24'] },
  };
  await control.callApi({ method: 'POST', path: apiPath.nodes, object });
  const status = { addresses: [{ type: 'InternalIP', address: '172.30.0.99' }] };
  await control.callApi({ method: 'PATCH', path: `${apiPath.node('node-9')}/status`, object: { status } });
  const arrived = await untilSamples('its route', (seen) => seen.get(routes) === (before.get(routes) ?? 0) + 1);
  t.true((arrived.get(lag) ?? 0) > (before.get(lag) ?? 0));
  await control.callApi({ method: 'DELETE', path: apiPath.node('node-9') });
  const gone = await untilSamples('its end', (seen) => seen.get(routes) === before.get(routes));
  t.true((gone.get(lag) ?? 0) > (arrived.get(lag) ?? 0));
  t.is(gone.get('tulle_api_to_kernel_behind_seconds'), 0);
});

test.serial('an API server that is away shows in the watch, and the node stays ready', async (t) => {
  const connected = 'tulle_watch_connected{resource="nodes"}';
  t.teardown(() => lab().control.setApiFault('none'));
  await lab().control.setApiFault('unavailable');
  const away = await untilSamples('a lost watch', (seen) => seen.get(connected) === 0);
  t.deepEqual([away.get('tulle_watch_synced{resource="nodes"}'), away.get('tulle_ready')], [1, 1]);
  t.is((await get('/readyz')).status, 200);
  t.regex((await tulle(node(), 'status')).stdout, /watch +nodes: \d+ objects, synced, not connected: .*, last heard /);
  await lab().control.setApiFault('none');
  await untilSamples('the watch again', (seen) => seen.get(connected) === 1);
  t.pass();
});

test.serial(
  'an agent that starts without the API lives, is not ready, and says why, until it has listed',
  async (t) => {
    t.teardown(() => lab().control.setApiFault('none'));
    await lab().control.stopAgent('node-1');
    t.is((await get('/healthz')).status, 0);
    await lab().control.setApiFault('unavailable');
    await lab().control.startAgent('node-1');
    const told = await untilReadyz(/^503 the cluster API cannot be read/);
    t.regex(told, /\(nodes\): .*\n.*\(pods\): /s, 'every cache is named');
    t.is((await get('/healthz')).status, 200);
    t.is((await scrape()).get('tulle_ready'), 0);
    await lab().control.setApiFault('none');
    await untilReadyz(/^200 ok$/);
    await untilSettled(node());
  },
);

test.serial('what of the node cannot be programmed makes it unready, with all reasons, and only as long', async (t) => {
  // Without its mark the device is somebody else's, whatever its name.
  await output(shIn(node(), 'ip link set tulle.84 alias mine'));
  await untilReadyz(/^503 .*link tulle\.84 exists and is not Tulle's/s);
  await untilSamples(
    'failing',
    (seen) => (seen.get('tulle_reconcile_failing_items{lane="netlink",kind="link"}') ?? 0) > 0,
  );
  t.is((await get('/healthz')).status, 200, 'another process would not help');
  await output(shIn(node(), 'ip link delete tulle.84'));
  await untilReadyz(/^200 ok$/);
  t.is((await tulle(node(), 'status')).exitCode, 0);
});

test.serial('firewall tools that do not work make it unready once lists fail again and again', async (t) => {
  const failures = 'tulle_reconcile_list_failures_total{lane="netfilter",kind="chain-part"}';
  const tool = (await output(shIn(node(), 'readlink -f "$(command -v iptables-nft-save)"'))).trim();
  await output(shIn(node(), `mount --bind /bin/false ${tool}`));
  t.teardown(() => run(shIn(node(), `umount ${tool}`)));
  await untilReadyz(/^503 nothing of kind chain-part is written, as it cannot be listed: .*/s);
  t.true(((await scrape()).get(failures) ?? 0) >= 3);
  await output(shIn(node(), `umount ${tool}`));
  await untilReadyz(/^200 ok$/);
});

test.serial('other requests get an answer, too', async (t) => {
  t.is((await get('/metrics', '-X', 'POST', '-d', 'x')).status, 405);
  t.is((await get('/metrics', '-X', 'DELETE')).status, 405);
  t.is((await get('/')).status, 404);
  t.is((await get('/metrics/../status')).status, 404);
});

test.serial('floods and connections that say nothing keep neither pods nor probes waiting', async (t) => {
  const silent = `for i in $(seq 200); do exec {fd}<>/dev/tcp/127.0.0.1/9440; printf 'GET /metrics HT' >&$fd; done; echo open; sleep 20`;
  const loris = background(t, ['bash', '-c', silent]);
  await once(loris.stdout as NonNullable<typeof loris.stdout>, 'data', { signal: AbortSignal.timeout(TIMEOUT_MS) });
  const flood = run(
    inNode(node(), [
      'sh',
      '-c',
      `seq 400 | xargs -P 16 -I{} curl -s -o /dev/null -w "%{http_code}\\n" --max-time 10 "${URL}/metrics?{}"`,
    ]),
  );
  const pod = await createPod(node());
  t.deepEqual([(await cni(pod, 'ADD')).code, (await cni(pod, 'DEL')).code], [0, 0]);
  await removeNetns(pod);
  await untilReadyz(/^200 ok$/);
  const answers = (await flood).stdout.split('\n');
  t.log(`${answers.filter((status) => status === '200').length} of ${answers.length} scrapes were answered`);
  const samples = await scrape();
  t.true((samples.get('process_open_fds') ?? 1000) < 200, `${samples.get('process_open_fds')} open files`);
});

test.serial('a port that is taken costs the node nothing but its metrics', async (t) => {
  await lab().control.stopAgent('node-1');
  const server = `require('net').createServer((s) => s.destroy()).listen(9440, '127.0.0.1', () => console.log('listens'))`;
  const other = background(t, [process.execPath, '-e', server]);
  await once(other.stdout as NonNullable<typeof other.stdout>, 'data', { signal: AbortSignal.timeout(TIMEOUT_MS) });
  await lab().control.startAgent('node-1');
  await until(async () => (await tulle(node(), 'status')).exitCode === 0, { describe: 'a ready agent', ...WAIT });
  t.regex(
    await readFile(node().agentLog, 'utf8'),
    /cannot serve metrics and health on 127\.0\.0\.1:9440: expected to listen there, got EADDRINUSE; stop what has port 9440 /,
  );
});
