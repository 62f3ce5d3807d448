/** Backend `tun` in every outer and inner family, carriage and encryption: the same proofs as of the kernel's own ways. */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { AgentStatus } from '../../agent/agent-status.ts';
import type { Family } from '../../agent/model/ip.ts';
import type { LabStatus } from '../../lab/control.ts';
import { agentStatus } from '../support/agent-status.ts';
import { BOTH, testCell } from '../support/matrix.ts';

const directory = mkdtempSync(join(tmpdir(), 'tulle-test-tun-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const secretFile = join(directory, 'secret');
writeFileSync(secretFile, randomBytes(48));

const sealed = (encryption: string) => ['--tun-encryption', encryption, '--tun-secret-file', secretFile];

interface Way {
  readonly name: string;
  readonly args?: readonly string[];
  readonly families?: readonly Family[];
  readonly segments?: number;
  readonly mtuBytes: number;
  readonly podLinks?: readonly ('routed' | 'bridge')[];
}

/** Every peer agreed on what the settings say, and was sent packets and sent some; nothing of a peer was thrown away. */
const agreed =
  (args: readonly string[]) =>
  async (t: ExecutionContext, { nodes }: LabStatus): Promise<void> => {
    const carriage = args.includes('whole') ? 'whole' : 'segments';
    const encryption = args[args.indexOf('--tun-encryption') + 1] as string;
    for (const node of nodes) {
      const { tunnel, kernel } = (await agentStatus(node)) as AgentStatus;
      t.is(tunnel?.peers.length, nodes.length - 1, node.name);
      for (const { sent, received, dropped, ...peer } of tunnel?.peers ?? []) {
        t.like(peer, {
          state: 'agreed',
          carriage,
          encryption: args.includes('--tun-encryption') ? encryption : 'none',
        });
        t.true(sent.packets > 0 && received.packets > 0, `${node.name} and ${peer.node}`);
        t.deepEqual(dropped, {}, `${node.name} and ${peer.node}`);
      }
      t.is(kernel.kinds['tun-peer']?.known, nodes.length - 1);
    }
  };

const WAYS: readonly Way[] = [
  { name: 'tun over IPv4', segments: 2, mtuBytes: 1460, podLinks: ['routed', 'bridge'] },
  {
    name: 'tun over IPv6',
    args: ['--tunnel-family', 'ipv6'],
    segments: 2,
    mtuBytes: 1440,
    podLinks: ['routed', 'bridge'],
  },
  { name: 'tun, IPv4 alone', families: ['ipv4'], mtuBytes: 1460 },
  { name: 'tun, IPv6 alone', families: ['ipv6'], mtuBytes: 1440 },
  { name: 'tun, carriage whole', args: ['--tun-carriage', 'whole'], mtuBytes: 1460 },
  { name: 'tun, aes-gcm', args: sealed('aes-gcm'), segments: 2, mtuBytes: 1432 },
  {
    name: 'tun over IPv6, chacha20-poly1305, carriage whole',
    args: [...sealed('chacha20-poly1305'), '--tun-carriage', 'whole', '--tunnel-family', 'ipv6'],
    mtuBytes: 1412,
  },
];

for (const { name, args = [], families = BOTH, segments = 1, mtuBytes, podLinks = ['routed'] as const } of WAYS)
  for (const podLink of podLinks)
    testCell(
      { name, families, segments, mtuBytes, agentArgs: ['--backend', 'tun', ...args], alsoHolds: agreed(args) },
      podLink,
    );
