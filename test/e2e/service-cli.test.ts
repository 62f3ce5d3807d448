/** `tulle service`: what people are told of Services, where the kernel holds what is planned and where it does not. */
import test from 'ava';
import type { ServiceReport, ServiceRow } from '../../agent/service-report.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { inNode } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { output, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';

/** No list without a reason while a test looks. */
const lab = useLab({
  nodes: 2,
  agentArgs: ['--services-mode', 'auto', '--resync-seconds', '86400', '--services-external-addresses', '192.0.2.0/24'],
});
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };
const node = () => lab().node('node-1');
const sh = (...argv: readonly string[]) => output(inNode(node(), argv));

async function createService(name: string, spec: object): Promise<void> {
  const object = {
    metadata: { name, namespace: 'default' },
    spec: { ports: [{ port: 80, targetPort: 8080 }], ...spec },
  };
  await lab().control.callApi({ method: 'POST', path: apiPath.services('default'), object });
}

async function show(name: string): Promise<{ readonly exitCode: number | undefined; readonly report: ServiceReport }> {
  const { exitCode, stdout, stderr } = await tulle(node(), 'service', 'show', name, '--json');
  if (stdout === '') throw new Error(stderr);
  return { exitCode, report: JSON.parse(stdout) };
}

const states = ({ items }: ServiceReport) => [...new Set(items.map(({ state }) => state))].sort();

test.serial(
  'a Service is shown with its frontends, its backends, and what sockets and packets hold of it',
  async (t) => {
    for (const at of ['node-1', 'node-2'])
      await lab().control.runPod({
        ...{ namespace: 'default', name: `web-${at}`, node: at },
        labels: { app: 'web' },
        serve: [{ port: 8080 }],
      });
    const dual = { ipFamilyPolicy: 'RequireDualStack', type: 'NodePort', sessionAffinity: 'ClientIP' };
    await createService('web', { ...dual, selector: { app: 'web' } });
    const isThere = async () => (await tulle(node(), 'service', 'ls')).stdout.includes('default/web ');
    await until(isThere, { describe: 'the Service', ...WAIT });
    const isComplete = async () => /^default\/web .* 2 +1 +ok$/m.test((await tulle(node(), 'service', 'ls')).stdout);
    await until(isComplete, { describe: 'its endpoints', ...WAIT });
    await untilSettled(node());

    const { exitCode, stdout } = await tulle(node(), 'service', 'show', 'web');
    t.is(exitCode, 0, stdout);
    for (const ip of ['172.30.0.11', '[fd30::11]'])
      t.true(
        new RegExp(`^${ip.replaceAll(/[[\].]/g, '\\$&')}:\\d+/TCP +node-port +set \\d +set \\d, masqueraded`, 'm').test(
          stdout,
        ),
        stdout,
      );
    t.regex(stdout, /^affinity {2}a client keeps its backend for 10800 s$/m);
    t.regex(stdout, /^set 1: 2 backends .*\n {2}10\.84\.0\.2:8080\n {2}10\.84\.1\.2:8080$/m);
    t.regex(stdout, /^= frontend internal \[fd96::\w+\]:80\/TCP$/m);
    t.regex(stdout, /^= member tulle-svc-places-6 fd30::11\/128,TCP:\d+$/m);
    const { report } = await show('default/web');
    t.deepEqual([...new Set(report.items.map(({ key }) => key.split(' ')[0]))].sort(), [
      'backend-set',
      'chain-part',
      'frontend',
      'member',
      'set',
    ]);
    t.deepEqual(states(report), ['held']);
  },
);

test.serial('what somebody took away or altered shows, until it is repaired', async (t) => {
  const { report } = await show('default/web');
  const chain = report.items.find(({ key }) => / nat TULLE-SVC-/.test(key))?.key.split(' ')[3] as string;
  const port = report.service.ports[0]?.nodePort;
  await sh('iptables', '-t', 'nat', '-F', chain);
  await sh('ipset', 'del', 'tulle-svc-places-4', `172.30.0.11,tcp:${port}`);
  const { exitCode, stdout } = await tulle(node(), 'service', 'show', 'web');
  t.is(exitCode, 3, stdout);
  t.regex(
    stdout,
    new RegExp(`^[+~] chain-part ipv4 nat ${chain} 10\\n( {4}- .*\\n)*( {4}\\+ .*\\n)* {4}\\+ .*DNAT`, 'm'),
  );
  t.regex(stdout, new RegExp(`^\\+ member tulle-svc-places-4 172\\.30\\.0\\.11/32,TCP:${port}$`, 'm'));
  await lab().control.killAgent('node-1');
  await until(async () => (await show('default/web').catch(() => undefined))?.exitCode === 0, {
    describe: 'the repair',
    ...WAIT,
  });
  t.pass();
});

test.serial('what is refused is told, and of a place that two Services want who has it', async (t) => {
  const both = { selector: { app: 'web' }, externalIPs: ['192.0.2.7', '172.30.0.12'] };
  for (const name of ['one', 'two']) await createService(name, both);
  const rows = async () => JSON.parse((await tulle(node(), 'service', 'ls', '--json')).stdout) as ServiceRow[];
  const isThere = async () => (await rows()).filter(({ problems }) => problems.length > 0).length === 2;
  await until(isThere, { describe: 'both Services', ...WAIT });
  await untilSettled(node());
  // The older one has it, by seconds; of two of one second, chance decides, on all nodes alike.
  const reports = await Promise.all(['one', 'two'].map(show));
  const loser = reports.findIndex(({ exitCode }) => exitCode === 3);
  t.deepEqual(reports.map(({ exitCode }) => exitCode).sort(), [0, 3]);
  const contested = reports[loser]?.report.items.filter(({ state }) => state === 'contested') ?? [];
  t.true(contested.some(({ key }) => key === 'frontend internal 192.0.2.7:80/TCP'));
  t.deepEqual([...new Set(contested.map(({ owner }) => owner))], [`service default/${['two', 'one'][loser]}`]);
  const { stdout } = await tulle(node(), 'service', 'ls');
  t.regex(stdout, /^problem {3}default\/(one|two): service default\/(two|one) has a place that it wants, too$/m);
  for (const name of ['one', 'two'])
    t.regex(
      stdout,
      new RegExp(`^problem {3}default/${name}: .*172\\.30\\.0\\.12.*it is not in services\\.externalAddresses`, 'm'),
    );
});

test.serial('a name that none has is answered with those that were meant', async (t) => {
  const { exitCode, stderr } = await tulle(node(), 'service', 'show', 'shop/wbe');
  t.is(exitCode, 1);
  t.regex(
    stderr,
    /cannot show Service shop\/wbe: expected one of the \d+ that are served here.*; did you mean default\/web\?/,
  );
  t.regex((await tulle(node(), 'service', 'show', 'x/__proto__')).stderr, /tulle service ls names them all/);
  t.is((await tulle(node(), 'service', 'show')).exitCode, 2);
});
