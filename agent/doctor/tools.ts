/** The kernel and the tools, as far as what Tulle asks of them can be missing or too old. */
import { release } from 'node:os';
import { run } from '../kernel/command.ts';
import { KernelError } from '../kernel/errors.ts';
import { type Check, type Finding, verdict } from './finding.ts';

const DEADLINE_MS = 5_000;

export const tools: Check = {
  name: 'tools',
  async run(_facts, signal) {
    const answer = await run({ file: 'ipset', args: ['--version'], timeoutMs: DEADLINE_MS, signal }).then(
      ({ stdout }) => stdout.trim(),
      (error: unknown) => error,
    );
    if (answer instanceof KernelError) return verdict('', [missing(answer)]);
    const lines = String(answer).split('\n');
    const warnings = lines.filter((line) => /warning/i.test(line));
    return verdict(`Linux ${release()}, ${lines[0]}`, [warnings.length > 0 ? mismatched(lines) : undefined]);
  },
};

const missing = ({ message }: KernelError): Finding => ({
  severity: 'error',
  summary: 'ipset cannot be used',
  evidence: [message],
  cause: 'The tool is not installed, or this kernel has no ip_set.',
  remedy: 'install ipset; modprobe ip_set ip_set_hash_ip ip_set_hash_net xt_set',
});

const mismatched = (lines: readonly string[]): Finding => ({
  severity: 'warning',
  summary: 'ipset and the kernel are of different ages',
  evidence: lines,
  cause: 'The tool comes from another release than the kernel; they then speak the older protocol, or none.',
  remedy: 'use the ipset of the distribution whose kernel runs, or a newer one',
});
