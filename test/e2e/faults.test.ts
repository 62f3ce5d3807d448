/** Tools that hang or fail, a full disk, an API that stays away: the agent says so, does no harm, and is quiet afterwards. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import type { NodeRef } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from '../support/agent-status.ts';
import { cni, createPod, differences, readHost, removeNetns } from '../support/cni-calls.ts';
import { TIMEOUT_MS, untilSettled, useLab } from '../support/lab.ts';
import { nodePlace, outputIn, pings, shellIn } from '../support/places.ts';

/** The least that can be set. */
const RESYNC_SECONDS = 5;
const lab = useLab({
  nodes: 1,
  agentArgs: ['--resync-seconds', String(RESYNC_SECONDS), '--iptables-backend', 'nft'],
});
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 50 };
/** How long a fault lasts. */
const OUTAGE_MS = 12_000;

const node = (): NodeRef => lab().node('node-1');
const sh = (line: string) => shellIn(nodePlace(node()), line);

/** Found before the real one. What it shall do is in a file; every call leaves a character in another. */
const STUB = `#!/bin/sh
printf x >>/run/tool-calls
case $(cat /run/tool-fault) in
  hang) exec sleep 1000 ;;
  fail) echo 'no such device or so' >&2; exit 1 ;;
esac
exec /usr/sbin/\${0##*/} "$@"
`;
const setFault = (fault: 'hang' | 'fail' | 'none') => sh(`echo ${fault} >/run/tool-fault`);
const toolCalls = async () => Number(await sh('wc -c </run/tool-calls'));

async function untilAgain(describe: string): Promise<void> {
  const { control } = lab();
  const { pid } = await control.killAgent('node-1');
  const isAnother = async () => {
    const agent = (await control.status()).nodes[0]?.agent;
    return agent?.pid !== undefined && agent.pid !== pid && (await agentStatus(node()))?.readiness.ready === true;
  };
  await until(isAnother, { describe, ...WAIT }).catch(async (cause: unknown) => {
    throw new Error(JSON.stringify((await agentStatus(node()))?.readiness), { cause });
  });
}

/** What is right is not written again, also when everything has been listed once more. */
async function isQuiet(t: ExecutionContext): Promise<void> {
  await untilSettled(node());
  const kinds = async () => Object.entries((await agentStatus(node()))?.kernel.kinds ?? {});
  // A chain that was found empty is also asked to go, which has a backoff of its own.
  const isDone = async () => (await kinds()).every(([, { dirty }]) => dirty === 0);
  await until(isDone, { describe: 'nothing to be dirty', ...WAIT });
  const work = async () => ({
    ...Object.fromEntries((await kinds()).map(([kind, { changes }]) => [kind, changes])),
    'iptables-restore': await toolCalls(),
  });
  const [before, lists] = [await work(), new Map((await kinds()).map(([kind, status]) => [kind, status.lists]))];
  const isListed = async () => (await kinds()).every(([kind, status]) => status.lists > (lists.get(kind) ?? 0));
  await until(isListed, { describe: 'full lists of everything', ...WAIT });
  t.deepEqual(await work(), before, 'writes, and calls of iptables-restore');
}

test.serial('with a tool in its place the agent works', async (t) => {
  const names = ['iptables-nft-restore', 'ip6tables-nft-restore'];
  await sh(`mount -t tmpfs tmpfs /usr/local/sbin; : >/run/tool-calls; echo none >/run/tool-fault`);
  for (const name of names)
    await sh(`cat >/usr/local/sbin/${name} <<'END'\n${STUB}END\nchmod 755 /usr/local/sbin/${name}`);
  await untilAgain('an agent that uses the stub');
  t.true((await toolCalls()) > 0);
});

for (const [fault, code] of [
  ['hang', 'ETIMEDOUT'],
  ['fail', 'EIO'],
] as const) {
  test.serial(
    `a tool that does ${fault} keeps nothing else from being repaired, and is tried again at ease`,
    async (t) => {
      const pod = await createPod(node());
      const { result } = await cni(pod, 'ADD');
      const [address] = (result['ips'] as readonly { readonly address: string }[]).map(
        (ip) => ip.address.split('/')[0],
      );
      await setFault(fault);
      await sh('iptables -t mangle -F TULLE-FORWARD');
      const failure = async () =>
        (await agentStatus(node()))?.kernel.failing.find(({ key }) => key.startsWith('chain-part ipv4 mangle'));
      await until(async () => (await failure())?.error.includes(code) === true, { describe: code, ...WAIT });
      const readiness = async () => (await agentStatus(node()))?.readiness;
      await until(async () => (await readiness())?.ready === false, { describe: 'more than a disturbance', ...WAIT });
      t.like(await readiness(), { limited: true });
      const before = await toolCalls();
      await sh(`ip route del ${address}`);
      await until(async () => (await sh(`ip route show ${address}`)) !== '', { describe: 'the route', ...WAIT });
      t.true(await pings(nodePlace(node()), address as string), 'pods go on');
      await delay(OUTAGE_MS / 4);
      const calls = (await toolCalls()) - before;
      t.log(`${calls} calls of the tool in ${OUTAGE_MS / 4000} s`);
      // A refused batch is halved until each part of the chain stands alone.
      t.true(calls < 40, 'with pauses between the attempts');
      await setFault('none');
      await isQuiet(t);
      t.is((await cni(pod, 'DEL')).code, 0);
      await removeNetns(pod);
    },
  );
}

for (const [what, fill] of [
  [
    'space',
    'mount -o remount,size=$(($(df -k --output=used /run | tail -1) + 64))k /run; cat /dev/zero >/run/fill || true',
  ],
  [
    'a free inode',
    `mount -o remount,nr_inodes=$(($(df --output=iused /run | tail -1) + 100)) /run
     i=0; while touch /run/fill-$i 2>/dev/null; do i=$((i + 1)); done`,
  ],
] as const) {
  test.serial(`without ${what} below /run pods stay, go, and are refused with the reason`, async (t) => {
    const pods = [await createPod(node()), await createPod(node()), await createPod(node())] as const;
    const [stays, goes, comes] = pods;
    const answers = [await cni(stays, 'ADD'), await cni(goes, 'ADD')];
    t.deepEqual(
      answers.map(({ code }) => code),
      [0, 0],
    );
    const ips = answers[0]?.result['ips'] as readonly { readonly address: string }[];
    await untilSettled(node());
    await sh(fill);
    t.teardown(() => sh('mount -o remount,size=1g,nr_inodes=100000 /run; rm -f /run/fill*'));

    const before = await readHost(node());
    const refused = await cni(comes, 'ADD');
    t.is(refused.code, 5);
    t.regex(refused.message + refused.details, /ENOSPC/);
    t.deepEqual(differences(before, await readHost(node())), [], 'nothing is left of it');
    await untilAgain('an agent that starts on a full disk');
    for (const { address } of ips) t.true(await pings(nodePlace(node()), address.split('/')[0] as string), address);
    t.is((await cni(goes, 'DEL')).code, 0);

    await sh('mount -o remount,size=1g,nr_inodes=100000 /run; rm -f /run/fill*');
    t.is((await cni(comes, 'ADD')).code, 0);
    for (const pod of [stays, comes]) t.is((await cni(pod, 'DEL')).code, 0);
    for (const pod of pods) await removeNetns(pod);
    await isQuiet(t);
  });
}

test.serial('while the API stays away the agent rests', async (t) => {
  const rule = 'OUTPUT -p tcp --dport 6443 --syn';
  await sh(`iptables -A ${rule}; ip6tables -A ${rule}`);
  const attempts = async () =>
    (
      await sh("{ iptables -nvxL OUTPUT; ip6tables -nvxL OUTPUT; } | awk '/dpt:6443/ { sum += $1 } END { print sum }'")
    ).trim();
  t.teardown(() => lab().control.setApiFault('none'));
  await lab().control.setApiFault('unavailable');
  const cannotRead = async () => (await agentStatus(node()))?.cluster.resources.every(({ error }) => error) === true;
  await until(cannotRead, { describe: 'an agent that notices', ...WAIT });
  const pid = (await lab().control.status()).nodes[0]?.agent.pid as number;
  const [cpuMs, before] = [cpuMsOf(pid), Number(await attempts())];
  await delay(OUTAGE_MS);
  const [usedMs, made] = [cpuMsOf(pid) - cpuMs, Number(await attempts()) - before];
  t.log(`${made} connections and ${usedMs} ms of CPU in ${OUTAGE_MS / 1000} s`);
  t.true(made < 40 && made > 0, `${made} connections`);
  t.true(usedMs < OUTAGE_MS / 10, `${usedMs} ms of CPU`);
  t.is((await agentStatus(node()))?.readiness.ready, true, 'an agent that was ready goes on');
  await lab().control.setApiFault('none');
  await until(async () => !(await cannotRead()), { describe: 'an agent that reads again', ...WAIT });
  await sh(`iptables -D ${rule}; ip6tables -D ${rule}; umount /usr/local/sbin`);
  t.false((await outputIn(nodePlace(node()), 'iptables-save')).includes('6443'));
});

/** User and system time since its start (proc(5), /proc/PID/stat, fields 14 and 15; 100 ticks a second). */
function cpuMsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * 10;
}
