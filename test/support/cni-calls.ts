/** Calls of the installed CNI executable in a lab node, one by one and with any input, and what they leave behind. */
import { randomBytes } from 'node:crypto';
import { execa } from 'execa';
import { inNode, type NodeRef } from '../../lab/node.ts';
import { output, shIn, shInNetns, TIMEOUT_MS } from './lab.ts';

const EXECUTABLE = '/opt/cni/bin/tulle';

type Json = Readonly<Record<string, unknown>>;

/** A namespace that is, or may become, a pod. */
export interface TestPod {
  readonly node: NodeRef;
  readonly containerId: string;
  /** Name below /run/netns of the node. */
  readonly netns: string;
  readonly ifName: string;
}

export interface CniCall {
  /** Over what the pod says; undefined takes a variable away. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Over the usual configuration; text or bytes take its place. */
  readonly config?: Json | string | Uint8Array;
  /** Runs the executable some other way: its argv is appended. */
  readonly through?: readonly string[];
}

export interface CniAnswer {
  /** CNI error code; 0 for success, -1 for a failure without an error object. */
  readonly code: number;
  /** `msg` and `details` of the error object. */
  readonly message: string;
  readonly details: string;
  readonly stdout: string;
  readonly result: Json;
}

/** An empty network namespace in the node. It ends with the lab. */
export async function createPod(node: NodeRef): Promise<TestPod> {
  const netns = `cni-${randomBytes(8).toString('hex')}`;
  await output(inNode(node, ['ip', 'netns', 'add', netns]));
  return { node, containerId: randomBytes(32).toString('hex'), netns, ifName: 'eth0' };
}

export async function removeNetns({ node, netns }: TestPod): Promise<void> {
  await output(inNode(node, ['ip', 'netns', 'delete', netns]));
}

export async function cni(pod: TestPod, verb: string, { env = {}, config = {}, through = [] }: CniCall = {}) {
  const [file, ...args] = inNode(pod.node, [...through, EXECUTABLE]);
  const isText = typeof config === 'string' || config instanceof Uint8Array;
  const { exitCode, stdout } = await execa(file, args, {
    env: environmentOf(pod, verb, env),
    extendEnv: false,
    input: isText ? config : JSON.stringify({ cniVersion: '1.1.0', name: 'tulle', type: 'tulle', ...config }),
    reject: false,
    timeout: TIMEOUT_MS,
  });
  return answerOf(exitCode, stdout);
}

function environmentOf(pod: TestPod, verb: string, changes: NonNullable<CniCall['env']>): Record<string, string> {
  const all = {
    PATH: process.env['PATH'],
    CNI_COMMAND: verb,
    CNI_CONTAINERID: pod.containerId,
    CNI_NETNS: `/run/netns/${pod.netns}`,
    CNI_IFNAME: pod.ifName,
    CNI_PATH: '/opt/cni/bin',
    CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=${pod.netns}`,
    ...changes,
  };
  return Object.fromEntries(Object.entries(all).filter((entry): entry is [string, string] => entry[1] !== undefined));
}

function answerOf(exitCode: number | undefined, stdout: string): CniAnswer {
  const answer = parseJson(stdout);
  if (exitCode === 0) return { code: 0, message: '', details: '', stdout, result: answer };
  const { code = -1, msg = '', details = '' } = answer as { code?: number; msg?: string; details?: string };
  return { code, message: msg, details, stdout, result: {} };
}

function parseJson(text: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch {
    // CHECK, DEL, GC and STATUS print nothing; who expects an object finds none of its fields.
    return {};
  }
}

const HOST_QUESTIONS = [
  "ip -o link | grep -v '^[0-9]*: tl.*state DOWN'",
  'ip -o address',
  'ip route show table all',
  'ip -6 route show table all',
  'ip neighbour show nud permanent',
  'ip -6 neighbour show nud permanent',
  'ipset save',
  "iptables-save | grep -v '^[#:]'",
  "ip6tables-save | grep -v '^[#:]'",
  'ls /run/tulle/pods /run/tulle/delete-queue',
];

/**
 * Everything that an attachment could leave in its node, one line each, in no order of the kernel's. A pod link that is
 * down counts as gone: it waits for the end of its namespace.
 */
export const readHost = (node: NodeRef): Promise<readonly string[]> => readFacts(shIn(node, HOST_QUESTIONS.join('; ')));

const POD_QUESTIONS = [
  'ip -o link',
  'ip -o address',
  'ip route show table all',
  'ip -6 route show table all',
  'ip neighbour show nud permanent',
  'ip -6 neighbour show nud permanent',
];

export const readPod = ({ node, netns }: TestPod): Promise<readonly string[]> =>
  readFacts(shInNetns(node, netns, POD_QUESTIONS.join('; ')));

/** What differs between two readings, in words; nothing when they are alike. */
export function differences(before: readonly string[], now: readonly string[]): readonly string[] {
  const more = now.filter((line) => !before.includes(line)).map((line) => `appeared: ${line}`);
  const less = before.filter((line) => !now.includes(line)).map((line) => `vanished: ${line}`);
  return [...more, ...less];
}

/** Without the local table: the kernel derives it from the addresses, of IPv6 some time later by a worker of its own. */
const readFacts = async (argv: readonly string[]): Promise<readonly string[]> =>
  (await output(argv))
    .split('\n')
    .filter((line) => !line.includes(' table local '))
    .sort();
