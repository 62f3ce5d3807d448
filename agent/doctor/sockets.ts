/** Who listens on this node, from the tables of the kernel (proc_net_tcp(5), the same columns for UDP). */
import { readFileSync } from 'node:fs';

export interface LocalSocket {
  readonly port: number;
  /** 0 for sockets of the kernel itself, tunnels among them. */
  readonly inode: number;
  /** As it was read. */
  readonly line: string;
}

const LISTEN = '0A';

/** Local TCP ports of both families that somebody listens on. */
export const listeningPorts = (): ReadonlySet<number> =>
  new Set(['tcp', 'tcp6'].flatMap((table) => readTable(table, LISTEN)).map(({ port }) => port));

/** Bound UDP sockets of both families. */
export const udpSockets = (): readonly LocalSocket[] => ['udp', 'udp6'].flatMap((table) => readTable(table));

function readTable(table: string, state?: string): readonly LocalSocket[] {
  let text: string;
  try {
    text = readFileSync(`/proc/thread-self/net/${table}`, 'latin1');
  } catch {
    // A kernel without IPv6 has no such table.
    return [];
  }
  return text
    .split('\n')
    .slice(1)
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .map((line) => ({ line, columns: line.split(/\s+/) }))
    .filter(({ columns }) => state === undefined || columns[3] === state)
    .map(({ line, columns }) => ({
      port: Number.parseInt(columns[1]?.split(':')[1] ?? '', 16),
      inode: Number(columns[9]),
      line,
    }));
}
