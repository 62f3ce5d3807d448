/** Looks whether a path is what it is called: what crosses the wire, and which rules see its packets. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import { FAMILIES, type Family, type IpAddress } from '../agent/model/ip.ts';
import { bridgeName } from '../lab/fabric.ts';
import { inNode, type NodeRef } from '../lab/node.ts';
import type { Enter, Exchanges, PathEnds } from './path-ends.ts';

export interface Route {
  /** Those whose rules packets pass. */
  readonly nodes: readonly NodeRef[];
  /** Of the server. */
  readonly address: IpAddress;
  readonly family: Family;
  /** Enters the namespace of the bridge that joins the nodes. */
  readonly wire: Enter;
  readonly ends: PathEnds;
}

const TUNNEL_PORT = 8472;
const SECONDS = 0.1;

/** One sentence. */
export async function witness(route: Route): Promise<string> {
  const before = await forwarded(route);
  const { count, mss } = await route.ends.exchange('rr', SECONDS);
  const after = await forwarded(route);
  const packets = after.map((value, i) => value - (before[i] as number));
  const tunnelled = await captured(route, `udp port ${TUNNEL_PORT}`);
  const bare = await captured(route, `host ${route.address}`);
  return `MSS ${mss}; on the wire ${tunnelled} tunnel and ${bare} bare packets; ${count} exchanges made rules of FORWARD count ${packets.join(' and ')} packets`;
}

/** Packets that rules below FORWARD of any table counted, by node: one packet may be counted by several. */
const forwarded = ({ nodes, family }: Route): Promise<readonly number[]> =>
  Promise.all(
    nodes.map(async (node) => {
      const [file, ...args] = inNode(node, [`${FAMILIES[family].iptables}-save`, '--counters']);
      const { stdout } = await execa(file, args);
      const rules = stdout.matchAll(/^\[(\d+):\d+\] -A (?:FORWARD|TULLE-FORWARD|KUBE-FORWARD|FLANNEL-FWD) /gm);
      return [...rules].reduce((sum, [, packets]) => sum + Number(packets), 0);
    }),
  );

/** How many packets of that kind cross the wire during a short exchange. */
export async function captured(
  { wire, ends }: Pick<Route, 'wire' | 'ends'>,
  filter: string,
  what: Exchanges = 'rr',
): Promise<number> {
  const [file, ...args] = wire(['tcpdump', '-ni', bridgeName(0), '-w', '/dev/null', filter]);
  const child = spawn(file, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const lines: string[] = [];
  const output = createInterface({ input: child.stderr }).on('line', (line) => lines.push(line));
  await once(output, 'line');
  await ends.exchange(what, SECONDS);
  child.kill('SIGINT');
  await once(output, 'close');
  return Number(/(\d+) packets? received by filter/.exec(lines.join('\n'))?.[1]);
}
