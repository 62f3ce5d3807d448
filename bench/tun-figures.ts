/** What is read and set of nodes while a tunnel in user space carries packets: processor time, CPUs, lag, memory. */
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { json } from 'node:stream/consumers';
import { execa } from 'execa';
import { type NodeRef, pathOnHost } from '../lab/node.ts';
import { type Lag, SOCKET } from './tun-lag.ts';

/** Of everything in these nodes, pods included, and what the kernel does in their turns; not of its own threads. */
export async function cpuSecondsOf(nodes: readonly NodeRef[]): Promise<number> {
  const texts = await Promise.all(nodes.map(({ cgroup }) => readFile(`${cgroup}/cpu.stat`, 'utf8')));
  return texts.reduce((sum, text) => sum + Number(/^usage_usec (\d+)/m.exec(text)?.[1]) / 1e6, 0);
}

/** All threads of what runs in the nodes themselves, agent or proxy, not of pods: `1`, `0-1`. */
export async function confine(nodes: readonly NodeRef[], cpus: string): Promise<void> {
  for (const { cgroup } of nodes) {
    const pids = (await readFile(`${cgroup}/cgroup.procs`, 'utf8')).trim().split('\n');
    for (const pid of pids) await execa('taskset', ['--all-tasks', '--cpu-list', '--pid', cpus, pid]);
  }
}

/** Since it was asked before, of an agent that was started withLag. Rejects when it is not there. */
export const lagOf = async (node: NodeRef): Promise<Lag> => (await json(connect(pathOnHost(node, SOCKET)))) as Lag;
