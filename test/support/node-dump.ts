/** Everything in a node's kernel that Tulle writes or could disturb, as lines that two readings have in common. */
import { outputIn, type Place } from './places.ts';

const SYSCTLS = ['net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding', 'net.ipv6.conf.eth0.accept_ra'];

const QUESTIONS = [
  'ip -o -d link',
  'ip -o address',
  'ip -4 route show table all',
  'ip -6 route show table all',
  'ip -4 rule',
  'ip -6 rule',
];

const NODE_QUESTIONS = [
  ...QUESTIONS,
  'ip -4 neighbour show nud permanent',
  'ip -6 neighbour show nud permanent',
  'bridge fdb show',
  'ipset save',
  'iptables-save',
  'ip6tables-save',
  `sysctl ${SYSCTLS.join(' ')}`,
];

/** What changes by itself or with the number of a link: indexes, counters, dates, life times, states on the way to up. */
const VOLATILE = [
  /^\d+: /,
  /@if\d+/,
  /link-netns(id)? \S+/,
  /\[\d+:\d+\]/,
  /^#.*/,
  /\d+sec/g,
  /expires \S+/,
  / state \S+/,
  / dynamic| tentative| linkdown/g,
  /\w+_timer +\S+/g,
];

/** Sorted. The pod's name space is named as below /run/netns of the node. */
export async function dumpNode(node: Place, podNetns: string): Promise<readonly string[]> {
  const pod = ['ip -o -d link', 'ip -o address', 'ip -4 route', 'ip -6 route', 'ip neighbour show nud permanent'];
  const inPod = pod.map((question) => `ip netns exec ${podNetns} ${question} | sed 's/^/pod: /'`);
  const text = await outputIn(node, 'sh', '-c', [...NODE_QUESTIONS, ...inPod].join('; '));
  const lines = text.split('\n').map((line) => VOLATILE.reduce((rest, pattern) => rest.replace(pattern, ''), line));
  return lines.map((line) => line.trim().replace(/^pod: \d+:/, 'pod:')).sort();
}
