/** `tulle uninstall` in a node where an agent has worked: afterwards everything is as before its first start. */
import test from 'ava';
import { until } from '../../lab/until.ts';
import { DEFAULT_OPTIONS } from '../../lab/up.ts';
import { cni, createPod, differences, removeNetns } from '../support/cni-calls.ts';
import { output, run, shIn, TIMEOUT_MS, tulle, untilSettled, useLab } from '../support/lab.ts';

/** Ids are not the same twice. */
const PROGRAMS = "bpftool cgroup show /sys/fs/cgroup | awk '/tulle/ { print $NF }'";

/** What an agent could leave in a node. Not: counters, and built-in chains of iptables that are empty. */
const QUESTIONS = [
  'ip -o -d link',
  'ip -o address',
  'ip rule; ip -6 rule',
  'ip route show table all; ip -6 route show table all',
  'ip neighbour show nud permanent; ip -6 neighbour show nud permanent',
  'bridge fdb',
  'ipset save',
  "for tool in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $tool-save 2>/dev/null | sed '/^[#*]/d; /^COMMIT/d; /^:[A-Z]* ACCEPT/d'; done",
  "sysctl -a --pattern '^net' 2>/dev/null | grep -v -e conntrack_count -e fib_sync_mem -e 'stat' || true",
  'find /etc/cni /opt/cni /run/tulle /sys/fs/bpf /run/netns 2>/dev/null | sort || true',
  PROGRAMS,
];

/** The facts before the first start of the agent are kept in the node; hardened hosts have redirects switched off. */
const BEFORE = '/run/before';
const PREPARE = `[ -e ${BEFORE} ] || {
  sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth0.forwarding=1
  sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1
  { ${QUESTIONS.join('\n')}
  } >${BEFORE}
}
exec "$0" "$@"`;

const lab = useLab({
  nodes: 2,
  agentCommand: ['sh', '-c', PREPARE, ...DEFAULT_OPTIONS.agentCommand],
  agentArgs: ['--services-mode', 'ebpf'],
});
const node = () => lab().node('node-1');

const lines = (text: string): readonly string[] => text.split('\n');
const readNow = async () => lines(await output(shIn(node(), QUESTIONS.join('\n'))));
const readBefore = async () => lines(await output(shIn(node(), `cat ${BEFORE}`)));

test.serial('while the agent runs it is refused, and a dry run beside it changes nothing', async (t) => {
  const refused = await tulle(node(), 'uninstall', '--force');
  t.is(refused.exitCode, 1);
  t.regex(refused.stderr, /a Tulle agent runs in this network namespace already: stop it first/);
  const dry = await tulle(node(), 'uninstall', '--dry-run');
  t.is(dry.exitCode, 0, dry.stderr);
  for (const line of [
    /^- file \/etc\/cni\/net\.d\/10-tulle\.conflist$/m,
    /^- route 10\.84\.\d+\.0\/24 metric \d+$/m,
    /^- link tulle\.84$/m,
    /^- chain-part ipv4 mangle TULLE-FORWARD 90-gate$/m,
    /^- sysctl net\/ipv4\/ip_forward$/m,
    /^- attachment connect4$/m,
    /^- file \/opt\/cni\/bin\/tulle$/m,
    /^- file \/run\/tulle\/sysctl\.json$/m,
  ])
    t.regex(dry.stdout, line);
  await untilSettled(node());
});

test.serial('live pods are named and keep their network', async (t) => {
  const pod = await lab().runPod('stays', 'node-1', ['sleep', '1000']);
  const gone = await createPod(node());
  t.is((await cni(gone, 'ADD')).code, 0);
  await lab().control.stopAgent('node-1');
  // Deleted by its runtime while no agent was there: it does not count.
  t.is((await cni(gone, 'DEL')).code, 0);
  const refused = await tulle(node(), 'uninstall');
  t.is(refused.exitCode, 1);
  t.regex(refused.stderr, /expected no pods with a network from Tulle, got 1: default\/stays; drain the node/);
  const ping = ['ping', '-c', '1', '-W', '5', '-n', pod.addresses[0] as string];
  t.is((await run(shIn(lab().node('node-2'), ping.join(' ')))).exitCode, 0);
  await removeNetns(gone);
});

test.serial('with --force everything is as before the first start', async (t) => {
  const foreign = await output(
    shIn(node(), 'cp /bin/true /opt/cni/bin/other; ip link add dummy type veth peer name y'),
  );
  t.is(foreign, '');
  const done = await tulle(node(), 'uninstall', '--force');
  t.is(done.exitCode, 0, done.stderr);
  t.regex(done.stdout, /^- pod-link tl[0-9a-f]{12}$/m);
  await output(shIn(node(), 'ip link del dummy; rm /opt/cni/bin/other'));
  const before = await readBefore();
  t.true(before.length > 100);
  const others = (line: string) => !/\/run\/netns\//.test(line);
  t.deepEqual(differences(before, (await readNow()).filter(others)), []);
  const again = await tulle(node(), 'uninstall');
  t.deepEqual([again.exitCode, again.stdout], [0, 'nothing of Tulle is here'], again.stderr);
});

test.serial('an agent that starts afterwards makes a working node again', async (t) => {
  await lab().control.startAgent('node-1');
  const ready = async () => (await tulle(node(), 'status')).exitCode === 0;
  await until(ready, { describe: 'the agent to be ready', deadlineMs: TIMEOUT_MS, intervalMs: 100 });
  const pod = await lab().runPod('again', 'node-1');
  const ping = ['ping', '-c', '1', '-W', '5', '-n', pod.addresses[0] as string];
  t.is((await run(shIn(lab().node('node-2'), ping.join(' ')))).exitCode, 0);
});

test.serial('programs at sockets go also where neither pins nor their loader are there any more', async (t) => {
  await lab().control.stopAgent('node-1');
  await output(shIn(node(), 'umount /sys/fs/bpf; mount --bind /bin/false /usr/sbin/bpftool'));
  const done = await tulle(node(), 'uninstall', '--force');
  t.is(done.exitCode, 0, done.stderr);
  t.regex(done.stdout, /^- attachment connect4$/m);
  await output(shIn(node(), 'umount /usr/sbin/bpftool'));
  t.is(await output(shIn(node(), PROGRAMS)), '');
});
