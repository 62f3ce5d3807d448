import { statSync } from 'node:fs';
import { basename, join } from 'node:path';
import process from 'node:process';

const HOME = import.meta.dirname;
/** Files that take the longest, in this order: begun late, they would run alone at the end. */
const LONGEST = [
  ...['matrix', 'faults', 'tun-matrix', 'churn', 'docker', 'services-ebpf', 'services-iptables', 'tun-life'],
  ...[
    'services-changes-iptables',
    'services-changes-ebpf',
    'tun-troubles',
    'service-upgrade',
    'doctor',
    'lab',
    'survival',
  ],
  ...['repair', 'bridge', 'services-odd-iptables', 'services-odd-ebpf', 'service-restarts', 'live-changes'],
  ...['iptables.contract', 'ebpf.lifecycle', 'ebpf.sockets', 'tun-threads', 'tun-hostile', 'tun-network', 'tun-carry'],
];

/** `ava` runs everything; scripts/test.ts gives it the folders of one group at a time. */
export default {
  extensions: ['ts'],
  files: ['{agent,cni,deploy,lab,scripts,bench}/**/*.test.ts', 'test/**/*.test.ts'],
  // Tests of kernel code change the network namespace of a thread: each file gets a process of its own.
  workerThreads: false,
  // Tests that need root wait for much of their time. More would not be faster on two processors.
  concurrency: 3,
  sortTestFiles: (a, b) => rank(a) - rank(b) || (a < b ? -1 : 1),
  // Time without any test finishing. A bound against hanging, never a measurement.
  timeout: '120s',
  environmentVariables: compileCache(),
};

/** For the tests and each process that they start, which is what most of their time goes to; as ./tulle has it. */
function compileCache() {
  const isOwn = statSync(HOME).uid === process.geteuid?.();
  if (!isOwn || process.env.NODE_COMPILE_CACHE !== undefined) return {};
  return { NODE_COMPILE_CACHE: join(HOME, 'node_modules/.cache/tulle') };
}

function rank(file) {
  const place = LONGEST.indexOf(basename(file, '.test.ts'));
  return place === -1 ? LONGEST.length : place;
}
