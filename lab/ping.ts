/** Real echo requests between everything that a lab has addresses for. */
import { execa } from 'execa';
import { type Family, familyOf, type IpAddress } from '../agent/model/ip.ts';
import type { LabStatus } from './control.ts';
import { inNode, inPod } from './node.ts';

/** A place that can ask and be asked. */
export interface PingEnd {
  readonly kind: 'pod' | 'node';
  /** `default/web` or `node-1`. */
  readonly name: string;
  readonly node: string;
  readonly addresses: readonly IpAddress[];
  /** argv that runs a command there. */
  readonly enter: (argv: readonly string[]) => readonly [string, ...string[]];
}

export interface PingResult {
  readonly from: string;
  readonly to: string;
  readonly address: IpAddress;
  readonly family: Family;
  /** Every request was answered. */
  readonly ok: boolean;
  readonly sent: number;
  readonly received: number;
  /** Mean round trip of the answered ones. */
  readonly rttMs?: number;
}

export interface PingOptions {
  readonly count: number;
  readonly families: readonly Family[];
  /** Also from nodes to pods and from pods to nodes. */
  readonly nodes: boolean;
}

const CONCURRENCY = 8;
const INTERVAL_SECONDS = 0.2;
const WAIT_SECONDS = 2;

/** All pods of the lab, and its nodes. */
export function pingEnds({ nodes, pods }: LabStatus): readonly PingEnd[] {
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const podEnds = pods.flatMap(({ namespace, name, node, netns, addresses }): PingEnd[] => {
    const host = byName.get(node);
    if (!host) return [];
    return [{ kind: 'pod', name: `${namespace}/${name}`, node, addresses, enter: (argv) => inPod(host, netns, argv) }];
  });
  const nodeEnds = nodes.map((node): PingEnd => {
    const { name, addresses } = node;
    return { kind: 'node', name, node: name, addresses, enter: (argv) => inNode(node, argv) };
  });
  return [...podEnds, ...nodeEnds];
}

/** Every pair in both directions, a bounded number at a time; results in the order of `ends`. */
export async function pingAll(
  ends: readonly PingEnd[],
  options: PingOptions,
  signal: AbortSignal,
): Promise<readonly PingResult[]> {
  const jobs = ends.flatMap((from) =>
    ends.filter((to) => isPair(from, to, options)).flatMap((to) => jobsOf(from, to, options)),
  );
  const results = new Array<PingResult>(jobs.length);
  const rest = jobs.entries();
  const worker = async () => {
    for (const [index, job] of rest) results[index] = await ping(job, options.count, signal);
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
  return results;
}

interface Job {
  readonly from: PingEnd;
  readonly to: PingEnd;
  readonly address: IpAddress;
}

/** Node to node is the underlay, which is not what is tried here. */
function isPair(from: PingEnd, to: PingEnd, { nodes }: PingOptions): boolean {
  if (from === to || (from.kind === 'node' && to.kind === 'node')) return false;
  return nodes || (from.kind === 'pod' && to.kind === 'pod');
}

const jobsOf = (from: PingEnd, to: PingEnd, { families }: PingOptions): readonly Job[] =>
  to.addresses.filter((address) => families.includes(familyOf(address))).map((address) => ({ from, to, address }));

async function ping({ from, to, address }: Job, count: number, signal: AbortSignal): Promise<PingResult> {
  const [file, ...args] = from.enter([
    'ping',
    '-n',
    '-q',
    '-c',
    `${count}`,
    '-i',
    `${INTERVAL_SECONDS}`,
    '-W',
    `${WAIT_SECONDS}`,
    address,
  ]);
  const timeout = 5_000 + 1_000 * (WAIT_SECONDS + count);
  const { stdout } = await execa(file, args, { reject: false, env: { LC_ALL: 'C' }, timeout, cancelSignal: signal });
  signal.throwIfAborted();
  const { sent, received, rttMs } = parsePing(stdout);
  const ok = sent > 0 && received === sent;
  return {
    from: from.name,
    to: to.name,
    address,
    family: familyOf(address),
    ok,
    sent,
    received,
    ...(rttMs !== undefined && { rttMs }),
  };
}

/** The two summary lines of iputils ping; nothing at all counts as nothing sent. */
export function parsePing(stdout: string): {
  readonly sent: number;
  readonly received: number;
  readonly rttMs?: number;
} {
  const counts = /(\d+) packets transmitted, (\d+) received/.exec(stdout);
  const rtt = /= [\d.]+\/([\d.]+)\//.exec(stdout)?.[1];
  return {
    sent: Number(counts?.[1] ?? 0),
    received: Number(counts?.[2] ?? 0),
    ...(rtt !== undefined && { rttMs: Number(rtt) }),
  };
}

/** Rows of a table: who asked, and in a column for each who was asked the round trips in ms, family by family. */
export function matrixOf(ends: readonly PingEnd[], results: readonly PingResult[]): readonly (readonly string[])[] {
  const cell = (from: PingEnd, to: PingEnd): string => {
    const found = results.filter((result) => result.from === from.name && result.to === to.name);
    return found.map(({ ok, rttMs = 0 }) => (ok ? rttMs.toFixed(2) : 'LOST')).join(' / ') || '-';
  };
  const used = ends.filter(({ name }) => results.some(({ from, to }) => from === name || to === name));
  return [
    ['from \\ to', ...used.map(shortName)],
    ...used.map((from) => [shortName(from), ...used.map((to) => cell(from, to))]),
  ];
}

/** Pods of the default namespace go by their name alone. */
const shortName = ({ name }: PingEnd): string => name.replace(/^default\//, '');
