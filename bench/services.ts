/** Services in Tulle beside kube-proxy's shapes: getting them into the kernel, connecting through them, and the whole agent. */
import type { Bench, Context, Report } from './bench.ts';
import { AGENT_SUBJECTS, benchAgents } from './service-agent.ts';
import { benchKernels, KERNEL_SUBJECTS } from './service-kernel.ts';

/** Each part with the names of what it measures. */
const PARTS = [
  [KERNEL_SUBJECTS, benchKernels],
  [AGENT_SUBJECTS, benchAgents],
] as const;

async function run(context: Context): Promise<Report> {
  const { only } = context.options;
  const isAsked = (name: string) => only.length === 0 || only.some((part) => name.includes(part));
  const asked = PARTS.filter(([subjects]) => subjects.some(({ name }) => isAsked(name)));
  if (asked.length === 0) {
    const names = PARTS.flatMap(([subjects]) => subjects.map(({ name }) => name)).join(', ');
    throw new Error(`cannot choose what to measure: expected part of one of ${names}, got ${only.join(', ')}`);
  }
  const reports: Report[] = [];
  for (const [, bench] of asked) reports.push(await bench(context));
  return { tables: reports.flatMap(({ tables }) => tables), evidence: reports.flatMap(({ evidence }) => evidence) };
}

export const services: Bench = {
  about: "Services beside kube-proxy's iptables and nftables: loading, changing, connecting",
  run,
};
