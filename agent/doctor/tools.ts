/** The kernel and the tools, as far as what Tulle asks of them can be missing or too old. */
import { release } from 'node:os';
import type { Config } from '../config.ts';
import { run } from '../kernel/command.ts';
import { KernelError } from '../kernel/errors.ts';
import { type Feature, GUARD_FEATURE, probeKernel, TUN_FEATURE } from '../kernel/features.ts';
import { type Check, type Finding, verdict } from './finding.ts';

const DEADLINE_MS = 5_000;

export const tools: Check = {
  name: 'tools',
  async run({ config }, signal) {
    const lacking = lacks(await probeKernel(), config);
    const answer = await run({ file: 'ipset', args: ['--version'], timeoutMs: DEADLINE_MS, signal }).then(
      ({ stdout }) => stdout.trim(),
      (error: unknown) => error,
    );
    if (answer instanceof KernelError) return verdict('', [missing(answer), ...lacking]);
    const lines = String(answer).split('\n');
    const warnings = lines.filter((line) => /warning/i.test(line));
    const mismatch = warnings.length > 0 ? mismatched(lines) : undefined;
    return verdict(`Linux ${release()}, ${lines[0]}`, [mismatch, ...lacking]);
  },
};

/** What is only needed with certain settings. */
const NEEDED: Readonly<Record<string, (config: Needs) => boolean>> = {
  'VXLAN links': ({ backend }) => backend === 'vxlan',
  [TUN_FEATURE]: ({ backend }) => backend === 'tun',
  'bridge links': ({ podLink }) => podLink === 'bridge',
  'locked bridge ports': ({ podLink }) => podLink === 'bridge',
  [GUARD_FEATURE]: ({ podLink }) => podLink === 'bridge',
  'destruction of datagram sockets': (config) => ['auto', 'ebpf'].includes(config['services.mode']),
  // The check of podCIDRs says so where one of IPv6 is given; many hosts are IPv4 only on purpose.
  IPv6: () => false,
};
type Needs = Pick<Config, 'backend' | 'podLink' | 'services.mode'>;

/** Findings for features that are missing and that these settings use. Pure. */
export const lacks = (features: readonly Feature[], config: Needs): readonly Finding[] =>
  features
    .filter(({ name, state }) => state === 'missing' && (NEEDED[name]?.(config) ?? true))
    .map(({ name, evidence, consequence }) => ({
      // It works without the guard, only slower.
      severity: name === GUARD_FEATURE ? 'warning' : 'error',
      summary: `this kernel has no ${name}`,
      evidence: [evidence],
      cause: 'The kernel was built without it, is too old, or its module is not installed or not loaded.',
      remedy: consequence,
    }));

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
