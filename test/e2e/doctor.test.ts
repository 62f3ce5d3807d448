/** `tulle doctor`: each check sees what is broken in a real node, says so with evidence, repairs what it may, and is quiet otherwise. */
import test, { type ExecutionContext } from 'ava';
import type { CheckReport } from '../../agent/doctor/doctor.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { until } from '../../lab/until.ts';
import { DEFAULT_OPTIONS } from '../../lab/up.ts';
import { output, run, shIn, TIMEOUT_MS, tulle, useLab } from '../support/lab.ts';
import { fabricPlace, shellIn } from '../support/places.ts';

/** The host of node-2 forwarded before Tulle came. */
const PREPARE = `[ "$(hostname)" != node-2 ] || sysctl -qw net.ipv6.conf.all.forwarding=1
exec "$0" "$@"`;
/** A router between the nodes; checksums are made before a packet enters the tunnel, so that they can be spoilt there. */
const lab = useLab({
  nodes: 2,
  segments: 2,
  agentCommand: ['sh', '-c', PREPARE, ...DEFAULT_OPTIONS.agentCommand],
  agentArgs: ['--vxlan-tx-checksum-offload', 'off'],
});
/** Not the one of a package of JavaScript. */
const NFT = '/usr/sbin/nft';
/** What the doctor has to be told where no agent runs. */
const ALONE = ['--node-name', 'node-1', '--kubeconfig', '/run/lab-node/kubeconfig'];

interface Diagnosis {
  readonly exitCode: number | undefined;
  readonly checks: ReadonlyMap<string, CheckReport>;
  readonly repairs: readonly { readonly steps: readonly string[]; readonly error?: string }[];
}

async function doctor(node: string, ...args: readonly string[]): Promise<Diagnosis> {
  const { exitCode, stdout, stderr } = await tulle(lab().node(node), 'doctor', '--json', ...args);
  if (exitCode !== 0 && exitCode !== 1) throw new Error(`exit code ${exitCode}: ${stderr}`);
  const { checks, repairs } = JSON.parse(stdout) as { checks: readonly CheckReport[]; repairs: Diagnosis['repairs'] };
  return { exitCode, checks: new Map(checks.map((check) => [check.check, check])), repairs };
}

/** One line a finding: `cni error: 00-other …`. */
const summaries = ({ checks }: Diagnosis): readonly string[] =>
  [...checks.values()].flatMap(({ check, findings }) =>
    findings.map(({ severity, summary }) => `${check} ${severity}: ${summary}`),
  );

/** A finding of this check whose summary and evidence match; every finding has all that a person needs. */
function sees(t: ExecutionContext, diagnosis: Diagnosis, check: string, summary: RegExp, evidence = /./): void {
  const findings = diagnosis.checks.get(check)?.findings ?? [];
  const finding = findings.find((each) => summary.test(each.summary));
  t.truthy(finding, `${check} should say ${summary}: ${summaries(diagnosis).join('\n')}`);
  t.regex(finding?.evidence.join('\n') ?? '', evidence, check);
  t.true((finding?.cause.length ?? 0) > 20 && (finding?.remedy.length ?? 0) > 10, check);
}

const on = (node: string, ...lines: readonly string[]) => output(shIn(lab().node(node), lines.join('\n')));

async function isHealthy(t: ExecutionContext, node: string): Promise<void> {
  const diagnosis = await doctor(node);
  t.deepEqual(summaries(diagnosis), []);
  t.is(diagnosis.exitCode, 0);
}

test.serial('a healthy node is healthy', async (t) => {
  await Promise.all([isHealthy(t, 'node-1'), isHealthy(t, 'node-2')]);
  const { stdout } = await tulle(lab().node('node-1'), 'doctor');
  t.regex(stdout, /^ok +agent +tulle \S+ runs and is ready for pods$/m);
  t.regex(stdout, /^ok +mtu +pods 1450 bytes; 3 of 3 ways to 1 peers proved with full packets$/m);
});

test.serial('an unknown name to fix is refused', async (t) => {
  const { exitCode, stderr } = await tulle(lab().node('node-1'), 'doctor', '--fix=everything');
  t.is(exitCode, 2);
  t.regex(stderr, /cannot fix "everything": expected one of flannel, kube-proxy/);
});

/** What other networks leave. */
const LEFTOVERS = [
  'ip link add flannel.1 type vxlan id 1 dstport 8472 nolearning; ip link add cni0 type bridge; mkdir /run/flannel',
  'iptables-nft -N FLANNEL-FWD; iptables-nft -A FORWARD -j FLANNEL-FWD; iptables-nft -A FLANNEL-FWD -j ACCEPT',
  `echo '{"name":"cbr0","plugins":[{"type":"flannel"}]}' >/etc/cni/net.d/10-flannel.conflist`,
  'iptables-legacy -t nat -N KUBE-SERVICES; iptables-legacy -t nat -N KUBE-SVC-X; ip link add kube-ipvs0 type bridge',
  'iptables-legacy -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
  `iptables-legacy -t nat -A KUBE-SERVICES -j KUBE-SVC-X; ${NFT} add table ip kube-proxy`,
  'ipset create KUBE-CLUSTER-IP hash:ip,port; iptables-legacy -t nat -A KUBE-SVC-X -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT',
  'iptables-nft -N cali-FORWARD; iptables-nft -A FORWARD -m comment --comment cali:abc -j cali-FORWARD; mkdir /run/calico',
  'ip link add cali0123456789a type veth peer name calipeer; ipset create cali40all-ipam-pools hash:net',
  'ip link add cilium_host type veth peer name cilium_net; iptables-nft -t mangle -N CILIUM_PRE_mangle; mkdir /sys/fs/bpf/cilium',
  'ip link add weave type bridge; iptables-nft -t nat -N WEAVE; iptables-nft -t nat -A POSTROUTING -j WEAVE',
  'ip link add kube-bridge type bridge; ip6tables-nft -N KUBE-ROUTER-FORWARD; ipset create kube-router-node-ips hash:ip',
];
/** The rest that is wrong at the same time, and how it is put right. */
const DISORDER = [
  'iptables-legacy -t mangle -N TULLE-FORWARD; iptables-legacy -t mangle -A FORWARD -j TULLE-FORWARD',
  'mkdir -p /run/systemd/netif; sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.forwarding=0',
  'echo changed >>/etc/cni/net.d/10-tulle.conflist; rm /opt/cni/bin/loopback; echo other >/opt/cni/bin/tulle',
];

test.serial(
  'leftovers of other networks, a wrong order of configurations, two iptables, sysctls of others',
  async (t) => {
    // From its start on an agent puts its files back every half a minute.
    await lab().control.stopAgent('node-1');
    await lab().control.startAgent('node-1');
    await ready('node-1');
    await on('node-1', ...LEFTOVERS, ...DISORDER);
    await on('node-2', 'ip -6 route add 2001:db8::/64 via fe80::1 dev eth0 proto ra metric 2000');
    const [found, other] = await Promise.all([doctor('node-1'), doctor('node-2')]);
    t.is(found.exitCode, 1);
    sees(
      t,
      found,
      'leftovers',
      /^flannel has left/,
      /link flannel\.1 \(vxlan\)[\s\S]*link cni0[\s\S]*FLANNEL-FWD[\s\S]*\/run\/flannel/,
    );
    sees(
      t,
      found,
      'leftovers',
      /^kube-proxy has left/,
      /kube-ipvs0[\s\S]*legacy \(ipv4\) nat: chains KUBE-SERVICES[\s\S]*KUBE-CLUSTER-IP[\s\S]*table ip kube-proxy/,
    );
    sees(
      t,
      found,
      'leftovers',
      /^calico has left/,
      /links of pods: cali0123456789a[\s\S]*cali-FORWARD[\s\S]*cali40all[\s\S]*\/run\/calico/,
    );
    sees(t, found, 'leftovers', /^cilium has left/, /cilium_host[\s\S]*CILIUM_PRE_mangle[\s\S]*\/sys\/fs\/bpf\/cilium/);
    sees(t, found, 'leftovers', /^weave has left/, /link weave[\s\S]*nat: chains WEAVE; 1 rules/);
    sees(
      t,
      found,
      'leftovers',
      /^kube-router has left/,
      /kube-bridge[\s\S]*KUBE-ROUTER-FORWARD[\s\S]*kube-router-node-ips/,
    );
    sees(t, found, 'cni', /10-flannel\.conflist sorts before 10-tulle/, /10-flannel\.conflist: plugins flannel/);
    sees(t, found, 'cni', /10-tulle\.conflist is not what/, /changed/);
    sees(t, found, 'cni', /cannot start .*loopback/, /loopback: no such file/);
    sees(t, found, 'cni', /tulle is another version/, /6 bytes/);
    sees(t, found, 'iptables', /rules of Tulle stand in iptables-legacy/, /iptables-legacy \(ipv4\): 1 rules of Tulle/);
    sees(
      t,
      found,
      'iptables',
      /in both back ends/,
      /iptables-nft \(ipv4\): \d+ rules[\s\S]*iptables-legacy \(ipv4\): \d+ rules/,
    );
    sees(t, found, 'forwarding', /^eth0 drops what comes in by another way/, /all\.rp_filter = 1/);
    sees(t, found, 'forwarding', /^tulle\.84 drops/);
    sees(t, found, 'forwarding', /^eth0 does not forward/, /conf\.eth0\.forwarding = 0/);
    sees(t, found, 'networkd', /removes the routes/, /ManageForeignRoutes: not set/);
    t.deepEqual(summaries(other), [
      'forwarding error: eth0 lives by router advertisements and does not obey them any more',
    ]);
    sees(t, other, 'forwarding', /^eth0 lives by/, /accept_ra = 1\nroute 2001:db8::\/64 via fe80::1 protocol 9/);
  },
);

test.serial('--fix repairs what is of Tulle, and nothing else', async (t) => {
  const { checks, repairs } = await doctor('node-1', '--fix');
  t.deepEqual(
    repairs.flatMap(({ error }) => error ?? []),
    [],
  );
  const steps = repairs.flatMap((repair) => repair.steps);
  t.true(steps.includes('remove the chains TULLE-* from iptables-legacy (ipv4)'), steps.join('\n'));
  t.notRegex(await on('node-1', 'iptables-legacy-save'), /TULLE-/);
  t.regex(await on('node-1', 'iptables-legacy-save'), /KUBE-SVC-X/);
  t.is(await on('node-1', 'ls -d /run/flannel; ip -br link show dev cni0 | cut -d " " -f 1'), '/run/flannel\ncni0');
  const cni = checks.get('cni')?.findings.map(({ summary }) => summary) ?? [];
  t.deepEqual(cni, ['10-flannel.conflist sorts before 10-tulle.conflist, so the runtime does not call Tulle']);
});

test.serial('--fix with names removes what these have left, but nothing that a pod still has', async (t) => {
  const names = ['flannel', 'kube-proxy', 'calico', 'cilium', 'weave', 'kube-router'];
  const { checks, repairs } = await doctor('node-1', `--fix=${names.join(',')}`);
  t.deepEqual(
    repairs.flatMap(({ error }) => error ?? []),
    [],
  );
  t.deepEqual(
    checks.get('leftovers')?.findings.map(({ summary }) => summary),
    ['calico has left things on this node'],
  );
  await on('node-1', 'ip link del cali0123456789a');
  t.is((await doctor('node-1', '--fix=calico')).checks.get('leftovers')?.state, 'ok');
  const rest = await on(
    'node-1',
    'ip -br link; ipset list -n; iptables-nft-save; iptables-legacy-save; ip6tables-nft-save',
  );
  t.notRegex(rest, /flannel|cni0|kube|KUBE|cali|CILIUM|cilium|weave|WEAVE|FLANNEL/);
  t.regex(rest, /tulle\.84[\s\S]*tulle-nodes-4[\s\S]*TULLE-FORWARD/);
  t.is(await on('node-1', `ls /etc/cni/net.d; ${NFT} list tables | grep proxy || true`), '10-tulle.conflist');
});

test.serial(
  'healthy, too: policies that drop, a kube-proxy that runs, a list of plugins that begins with Tulle',
  async (t) => {
    await on(
      'node-1',
      'sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.forwarding=1',
      `mkdir -p /etc/systemd/networkd.conf.d; printf '[Network]\\nManageForeignRoutes=no\\n' >/etc/systemd/networkd.conf.d/10-tulle.conf`,
      `echo '{"cniVersion":"1.0.0","name":"own","plugins":[{"type":"tulle"},{"type":"tuning"}]}' >/etc/cni/net.d/05-own.conflist`,
      'iptables-nft -t nat -N KUBE-SERVICES; iptables-nft -P FORWARD DROP; iptables-nft -P INPUT DROP',
      'iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables-nft -A INPUT -p icmp -j ACCEPT',
      // Ends by itself should this test not come to its end.
      `setsid ${process.execPath} -e 'require("net").createServer().listen(10256, () => setTimeout(() => process.exit(), 60000))' >/dev/null 2>&1 </dev/null & echo $! >/run/listener`,
    );
    await until(async () => (await on('node-1', 'ss -Hltn')).includes(':10256'), {
      describe: 'a listener',
      deadlineMs: TIMEOUT_MS,
      intervalMs: 50,
    });
    await isHealthy(t, 'node-1');
    await on(
      'node-1',
      'kill $(cat /run/listener); rm /etc/cni/net.d/05-own.conflist',
      'iptables-nft -P FORWARD ACCEPT; iptables-nft -P INPUT ACCEPT; iptables-nft -t nat -X KUBE-SERVICES',
      'iptables-nft -D INPUT -p icmp -j ACCEPT; iptables-nft -D INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT',
    );
    await on('node-2', 'ip -6 route del 2001:db8::/64');
  },
);

test.serial('a smaller link is found and named, or its size is found where nobody names it', async (t) => {
  const fabric = fabricPlace(await lab().control.status());
  const restore = () =>
    shellIn(fabric, `ip link set br1 mtu 1500; ${NFT} delete table ip hush 2>/dev/null || true`).then(() =>
      Promise.all(['node-1', 'node-2'].map((node) => on(node, 'ip route flush cache'))),
    );
  t.teardown(restore);
  await shellIn(fabric, 'ip link set br1 mtu 1400');
  const told = await doctor('node-1');
  sees(
    t,
    told,
    'mtu',
    /behind 172\.30\.0\.1 passes at most 1400 bytes to node-2/,
    /1500 bytes to node-2 172\.30\.1\.12.*says 172\.30\.0\.1/,
  );
  t.regex(told.checks.get('mtu')?.findings[0]?.remedy ?? '', /set mtuBytes to 1350/);
  const hush =
    'table ip hush { chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }; }';
  await shellIn(fabric, `printf '${hush.replaceAll('; }', '\\n}')}' | ${NFT} -f -`);
  const silent = await doctor('node-1');
  sees(t, silent, 'mtu', /somewhere on the way passes at most 1400/, /1400 bytes are answered, 1401 are not/);
  await restore();
});

test.serial('checksums that something spoils are told from a tunnel that carries nothing', async (t) => {
  const spoil = [
    'udp dport 8472 @th,312,8 17 @th,448,16 != 0 @th,448,16 set 0x1234',
    `${NFT} add table ip spoil; ${NFT} add chain ip spoil out '{ type filter hook postrouting priority 300; }'`,
  ];
  t.teardown(() => on('node-1', `${NFT} delete table ip spoil`));
  await on('node-1', `${spoil[1]}; ${NFT} add rule ip spoil out ${spoil[0]}`);
  const found = await doctor('node-1');
  sees(
    t,
    found,
    'tunnel',
    /to node-2 arrive with wrong checksums/,
    /UDP with a checksum.*no answer\nUDP without a checksum.*answered/,
  );
});

test.serial('a tunnel port that is dropped, rejected or closed is told apart, and the rule is named', async (t) => {
  const rule = '-A INPUT -p udp -m udp --dport 8472 -j DROP';
  const policy = `${NFT} add table inet fw; ${NFT} add chain inet fw in '{ type filter hook input priority 10; policy drop; }'; ${NFT} add rule inet fw in meta l4proto != udp accept`;
  await on('node-1', `iptables-nft -t mangle ${rule}`, policy);
  const dropped = await doctor('node-1');
  sees(
    t,
    dropped,
    'firewall',
    /stops UDP port 8472/,
    /iptables-nft \(ipv4\) mangle: -A INPUT -p udp -m udp --dport 8472 -j DROP/,
  );
  sees(t, dropped, 'firewall', /firewall of nftables drops/, /table inet fw, chain in .*policy drop/);
  sees(
    t,
    dropped,
    'tunnel',
    /tunnel to node-2 does not carry/,
    /172\.30\.1\.12, echo on the underlay: answered[\s\S]*10\.84\.1\.1, echo in the pod network: no answer[\s\S]*suspect: iptables-nft/,
  );
  await on('node-1', `iptables-nft -t mangle -D ${rule.slice(3)}; ${NFT} delete table inet fw`);
  await lab().control.stopAgent('node-2');
  // A kernel says so some times a second only, and three doctors ask.
  await on('node-2', 'sysctl -qw net.ipv4.icmp_ratelimit=0; iptables-nft -I INPUT -p udp --dport 8472 -j REJECT');
  const rejected = await doctor('node-1');
  sees(
    t,
    rejected,
    'tunnel',
    /tunnel to node-2/,
    /UDP port 8472: 172\.30\.1\.12 says: unreachable|UDP port 8472: closed/,
  );
  await on('node-2', 'iptables-nft -D INPUT -p udp --dport 8472 -j REJECT; ip link del tulle.84');
  const closed = await doctor('node-1');
  sees(t, closed, 'tunnel', /tunnel to node-2/, /UDP port 8472: closed/);
  await lab().control.startAgent('node-2');
  await ready('node-2');
});

async function ready(node: string): Promise<void> {
  let said = '';
  const isReady = async () => {
    const { exitCode, stdout, stderr } = await tulle(lab().node(node), 'status');
    said = stdout + stderr;
    return exitCode === 0;
  };
  try {
    await until(isReady, { describe: `a ready agent on ${node}`, deadlineMs: TIMEOUT_MS, intervalMs: 200 });
  } catch (cause) {
    throw new Error(`${node} is not ready: ${said}`, { cause });
  }
}

const node = (name: string, podCIDRs: readonly string[]) => ({
  apiVersion: 'v1',
  kind: 'Node',
  metadata: { name },
  spec: podCIDRs.length > 0 ? { podCIDR: podCIDRs[0], podCIDRs } : {},
});

test.serial(
  'podCIDRs that are missing or overlap, Nodes that do not exist, and addresses of other hosts',
  async (t) => {
    const { control } = lab();
    const create = async (name: string, ...podCIDRs: readonly string[]) => {
      await control.callApi({ method: 'POST', path: apiPath.nodes, object: node(name, podCIDRs) });
      t.teardown(() => control.callApi({ method: 'DELETE', path: apiPath.node(name) }));
    };
    await create('greedy', '10.84.0.0/16', 'fd84::/48');
    const status = { addresses: [{ type: 'InternalIP', address: '172.30.0.77' }] };
    await control.callApi({ method: 'PATCH', path: `${apiPath.node('greedy')}/status`, object: { status } });
    await create('late');
    const [own, late, greedy] = await Promise.all([
      doctor('node-1'),
      doctor('node-1', '--node-name', 'late'),
      doctor('node-1', '--node-name', 'greedy'),
    ]);
    sees(
      t,
      own,
      'pod-cidr',
      /10\.84\.0\.0\/16, fd84::\/48 of Node greedy does not count/,
      /overlaps 10\.84\.[01]\.0\/24 of the older Node node-[12]/,
    );
    sees(t, late, 'pod-cidr', /Node late has no podCIDR/, /Nodes without one: 1 of 4/);
    t.regex(late.checks.get('pod-cidr')?.findings[0]?.remedy ?? '', /kubeadm.*--allocate-node-cidrs=true/);
    sees(t, late, 'underlay', /late has no InternalIP/);
    sees(t, greedy, 'pod-cidr', /of Node greedy does not count/);
    t.is(greedy.checks.get('pod-cidr')?.findings[0]?.severity, 'error');
    const [nobody] = await Promise.all([doctor('node-1', '--node-name', 'nobody')]);
    sees(t, nobody, 'pod-cidr', /no Node named nobody/, /Nodes: .*node-1/);
  },
);

test.serial('without its agent: sysctls are written back, rivals for device and port are named', async (t) => {
  await lab().control.stopAgent('node-1');
  await on(
    'node-1',
    'sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.eth0.accept_ra=1; iptables-nft -t mangle -F TULLE-FORWARD',
    'ip link del tulle.84; ip link add rival type vxlan id 84 dstport 8472',
  );
  const alone = await doctor('node-1', ...ALONE);
  sees(t, alone, 'agent', /no agent answers/, /control\.sock/);
  sees(t, alone, 'forwarding', /net\.ipv4\.ip_forward is 0 instead of 1/, /net\.ipv4\.ip_forward = 0/);
  sees(t, alone, 'forwarding', /accept_ra is 1 instead of 2/);
  sees(t, alone, 'firewall', /own chains are not/, /ipv4 mangle TULLE-FORWARD: (without 90-gate|no such chain)/);
  sees(t, alone, 'tunnel-device', /^rival has VNI 84 and UDP port 8472/, /VNI 84, port 8472/);
  const fixed = await doctor('node-1', '--fix', ...ALONE);
  t.false(
    summaries(fixed).some((line) => /ip_forward|eth0/.test(line)),
    summaries(fixed).join('\n'),
  );
  t.is(await on('node-1', 'sysctl -n net.ipv4.ip_forward net.ipv6.conf.eth0.accept_ra'), '1\n2');
  await on('node-1', 'ip link del rival; ip link add tulle.84 type bridge');
  // Ends by itself should this test not come to its end.
  const program = `const s = require("dgram").createSocket("udp4"); s.bind(8472, () => console.log("bound")); setTimeout(() => process.exit(), 60000)`;
  await on(
    'node-1',
    `setsid ${process.execPath} -e '${program}' >/run/bound 2>&1 </dev/null & echo $! >/run/holder; until grep -q bound /run/bound; do :; done`,
  );
  const taken = await doctor('node-1', ...ALONE);
  sees(t, taken, 'tunnel-device', /link tulle\.84 exists that is not Tulle's/, /bridge/);
  sees(t, taken, 'tunnel-device', /program holds UDP port 8472/, /:2118 /);
  await on('node-1', 'kill $(cat /run/holder); ip link del tulle.84');
});

test.serial(
  'a full run directory, full tables, an MTU that is too large, and credentials that are refused',
  async (t) => {
    await on(
      'node-1',
      'mkdir -p /run/small /etc/lasting; mount -t tmpfs -o size=64k tmpfs /run/small; head -c 65536 /dev/zero >/run/small/zeros || true',
      'mkdir -p /run/sys/net/netfilter /run/sys/net/ipv4/neigh/default; ln -s /proc/sys/net/ipv4/* /run/sys/net/ipv4/ 2>/dev/null || true',
      'ln -s /proc/sys/net/ipv6 /run/sys/net/ipv6; rm -rf /run/sys/net/ipv4/neigh; mkdir -p /run/sys/net/ipv4/neigh/default',
      'echo 1 >/run/sys/net/ipv4/neigh/default/gc_thresh3; echo 90 >/run/sys/net/netfilter/nf_conntrack_count; echo 100 >/run/sys/net/netfilter/nf_conntrack_max',
      "sed 's/token: .*/token: wrong/' /run/lab-node/kubeconfig >/run/refused",
    );
    const full = await doctor(
      'node-1',
      ...ALONE,
      '--run-dir',
      '/run/small',
      '--proc-sys',
      '/run/sys',
      '--mtu-bytes',
      '1480',
    );
    sees(t, full, 'run-dir', /nothing can be written/, /ENOSPC/);
    sees(t, full, 'conntrack', /nearly full: 90 of 100/, /nf_conntrack_max = 100/);
    sees(t, full, 'neighbours', /neighbour table of ipv4 is nearly full/, /gc_thresh3 = 1/);
    sees(t, full, 'mtu', /pods may send 1480 bytes, but eth0 passes only 1450/, /MTU of eth0: 1500/);
    const refused = await doctor(
      'node-1',
      '--node-name',
      'node-1',
      '--kubeconfig',
      '/run/refused',
      '--run-dir',
      '/etc/lasting',
    );
    sees(t, refused, 'api', /does not give/, /401/);
    t.is(refused.checks.get('pod-cidr')?.state, 'skipped');
    sees(t, refused, 'run-dir', /survives a reboot/, /statfs/);
    await lab().control.setApiFault('unavailable');
    const away = await doctor('node-1', ...ALONE);
    await lab().control.setApiFault('none');
    sees(t, away, 'api', /does not give/, /a whole answer|ECONNRESET|TLS/);
    await on('node-1', 'umount /run/small');
  },
);

test.serial('at the end, with its agent, the node is healthy again', async (t) => {
  await lab().control.startAgent('node-1');
  await ready('node-1');
  await Promise.all(['node-1', 'node-2'].map((name) => isHealthy(t, name)));
  t.is((await run(shIn(lab().node('node-1'), 'ls /run/tulle | grep doctor'))).exitCode, 1);
});
