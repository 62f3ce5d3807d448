/** Tables of the kernel that end: connections that are tracked, and neighbours. */
import { readFileSync } from 'node:fs';
import type { NetlinkClient } from '../kernel/netlink/message.ts';
import { NUD_NOARP, NUD_PERMANENT, neighbourHeader, RTM } from '../kernel/netlink/rtnetlink.ts';
import { type FamilyFacts, families } from '../model/ip.ts';
import type { Facts } from './facts.ts';
import { type Check, type Finding, verdict } from './finding.ts';

/** Above this part of its limit a table is nearly full. */
const NEARLY_FULL = 0.8;

export const conntrack: Check = {
  name: 'conntrack',
  async run({ sysctls }) {
    const [count, max] = ['count', 'max'].map((name) => sysctls.read(`net/netfilter/nf_conntrack_${name}`));
    if (count === undefined || max === undefined) return { skipped: 'the kernel tracks no connections' };
    const isFull = Number(max) > 0 && Number(count) >= NEARLY_FULL * Number(max);
    return verdict(`${count} of ${max} connections`, [isFull ? crowded(count, max) : undefined]);
  },
};

const crowded = (count: string, max: string): Finding => ({
  severity: Number(count) >= 0.95 * Number(max) ? 'error' : 'warning',
  summary: `the table of tracked connections is nearly full: ${count} of ${max}`,
  evidence: [
    `net.netfilter.nf_conntrack_count = ${count}`,
    `net.netfilter.nf_conntrack_max = ${max}`,
    ...conntrackDrops(),
  ],
  cause:
    'Many connections, or some client or attack that opens them without end. When it is full, new connections are dropped ("nf_conntrack: table full" in the kernel log).',
  remedy: `find who opens them (conntrack -L -o extended | awk '{print $7}' | sort | uniq -c | sort -n); raise net.netfilter.nf_conntrack_max in /etc/sysctl.d (256 to 320 bytes each)`,
});

/** Counters of each CPU, hexadecimal, in columns by name. */
function conntrackDrops(): readonly string[] {
  try {
    const [head = '', ...rows] = readFileSync('/proc/thread-self/net/stat/nf_conntrack', 'latin1').trim().split('\n');
    const sum = (name: string) => {
      const at = head.trim().split(/\s+/).indexOf(name);
      return rows.reduce((total, row) => total + Number.parseInt(row.trim().split(/\s+/)[at] ?? '0', 16), 0);
    };
    return [`since boot: ${sum('drop')} packets dropped, ${sum('early_drop')} connections forgotten early`];
  } catch {
    // Kernels may be built without these counters.
    return [];
  }
}

export const neighbours: Check = {
  name: 'neighbours',
  async run(facts) {
    const rows = await Promise.all(families.map((family) => countsOf(family, facts)));
    const known = rows.filter((row) => row !== undefined);
    if (known.length === 0)
      return { skipped: 'only the first network namespace of the host shows the limits of the neighbour tables' };
    const seen = known.map(({ family, count, limit }) => `${family} ${count} of ${limit}`).join(', ');
    return verdict(
      seen,
      known.map((row) => (row.count >= NEARLY_FULL * row.limit ? tight(row) : undefined)),
    );
  },
};

interface Counts {
  readonly family: string;
  readonly count: number;
  readonly limit: number;
  readonly path: string;
}

/** Permanent entries, such as Tulle's, are not counted against the limit (Linux 5.0). */
async function countsOf(
  { family, sysctl, addressFamily }: FamilyFacts,
  { client, sysctls }: Facts,
): Promise<Counts | undefined> {
  const path = `net/${sysctl}/neigh/default/gc_thresh3`;
  const limit = sysctls.read(path);
  if (limit === undefined) return undefined;
  return { family, count: await countLearned(client, addressFamily), limit: Number(limit), path };
}

async function countLearned(client: NetlinkClient, addressFamily: number): Promise<number> {
  const messages = await client.dump({
    type: RTM.GETNEIGH,
    payload: neighbourHeader(addressFamily),
    operation: 'list',
    object: 'neighbours',
  });
  return messages.filter(({ payload }) => (payload.readUInt16LE(8) & (NUD_PERMANENT | NUD_NOARP)) === 0).length;
}

const tight = ({ family, count, limit, path }: Counts): Finding => ({
  severity: count >= limit ? 'error' : 'warning',
  summary: `the neighbour table of ${family} is nearly full: ${count} of ${limit}`,
  evidence: [`learned neighbours: ${count}`, `${path.replaceAll('/', '.')} = ${limit}`],
  cause:
    'More hosts on the segments of this node than the kernel keeps by default. When it is full, packets to new ones are dropped ("neighbour table overflow" in the kernel log).',
  remedy: `raise ${path.replaceAll('/', '.').replace('3', '{1,2,3}')} in /etc/sysctl.d (for example 4096, 8192, 16384)`,
});
