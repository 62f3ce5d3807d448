/** The sysctls by which packets are forwarded: those that Tulle writes, and those of others that undo them. */
import type { Host } from '../model/host.ts';
import { type AnyItem, item, type Sysctl } from '../model/items.ts';
import { BACKENDS } from '../plan/backends.ts';
import type { Plan } from '../plan/planner.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, verdict } from './finding.ts';
import { dumpRoutes, RTPROT_RA } from './routes.ts';

export const forwarding: Check = {
  name: 'forwarding',
  async run(facts) {
    const [plan, items] = [await facts.plan(), await facts.wanted()];
    if (!plan || !items) return { skipped: 'what the node needs cannot be planned without its Node' };
    const wanted = items.filter(isSysctl).map(({ value }) => value);
    const links = linksOf(plan, facts);
    const host = await facts.host();
    const findings = [
      ...wanted.map((sysctl) => differing(sysctl, facts)),
      ...links.map((link) => strict(link, facts)),
      ...links.map((link) => closed(link, facts)),
      await advertisements(host, wanted, facts),
    ];
    return verdict(wanted.map(({ path, value }) => `${dotted(path)} ${value}`).join(', '), findings);
  },
};

const isSysctl = (each: AnyItem): each is Extract<AnyItem, { kind: 'sysctl' }> => each.kind === 'sysctl';

/** The links by which pod traffic comes in from elsewhere. */
function linksOf({ underlay }: Plan, { config }: Facts): readonly string[] {
  const uplinks = Object.values(underlay.locals).flatMap(({ link }) => link?.name ?? []);
  const tunnel = BACKENDS[config.backend].tunnel?.(config).link ?? [];
  return [...new Set([...uplinks, tunnel].flat())];
}

const dotted = (path: string): string => path.replaceAll('/', '.');

function differing(wanted: Sysctl, facts: Facts): Finding | undefined {
  const { path, value } = wanted;
  const found = facts.sysctls.read(path);
  if (found === value) return undefined;
  const isOwn = facts.sysctlDriver.former(path) !== undefined;
  return {
    severity: 'error',
    summary: `${dotted(path)} is ${found ?? 'not there'} instead of ${value}`,
    evidence: [`${dotted(path)} = ${found ?? '(no such file)'}`],
    cause: runningAgent(facts)
      ? 'Somebody switched it (a file in /etc/sysctl.d that was applied again, a hardening script); the agent writes it again within one resync.'
      : isOwn
        ? 'Somebody switched it while no agent ran.'
        : 'Tulle has not written it yet: no agent has started since the last boot, or the link is new.',
    remedy: `find who writes it (grep -r ${path.split('/').at(-1)} /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d), and start the agent`,
    ...(isOwn && found !== undefined && { fix: rewrite(wanted, found, facts) }),
  };
}

/** Only of files that Tulle has written before: what they were is then known, and an uninstallation brings it back. */
const rewrite = (wanted: Sysctl, found: string, { sysctlDriver }: Facts) => ({
  steps: [`write ${wanted.value} to ${dotted(wanted.path)} (now ${found})`],
  apply: async (signal: AbortSignal) => {
    const { key } = item('sysctl', wanted);
    const change = {
      action: 'update',
      kind: 'sysctl',
      key,
      item: item('sysctl', wanted),
      from: { ...wanted, value: found },
    } as const;
    const failure = (await sysctlDriver.apply([change], signal)).get(key);
    if (failure) throw failure;
  },
});

/** The greater of the value for all links and that of the link holds (ip-sysctl, rp_filter): 1 is strict, 2 loose. */
function strict(link: string, { sysctls }: Facts): Finding | undefined {
  const paths = ['net/ipv4/conf/all/rp_filter', `net/ipv4/conf/${link}/rp_filter`];
  const values = paths.map((path) => sysctls.read(path));
  if (values.includes(undefined) || Math.max(...values.map(Number)) !== 1) return undefined;
  return {
    severity: 'warning',
    summary: `${link} drops what comes in by another way than its answer would go (rp_filter 1)`,
    evidence: paths.map((path, i) => `${dotted(path)} = ${values[i]}`),
    cause:
      'The distribution or a hardening script asks for the strict reverse path check. Nodes with several uplinks, direct routing and traffic to Services then lose packets without a word (TcpExtIPReversePathFilter counts them).',
    remedy: `loosen it where it is set: net.ipv4.conf.all.rp_filter = 0, or net.ipv4.conf.${link}.rp_filter = 2, in /etc/sysctl.d`,
  };
}

/** Switching a link's own setting off survives under ip_forward 1. */
function closed(link: string, { sysctls }: Facts): Finding | undefined {
  const path = `net/ipv4/conf/${link}/forwarding`;
  const [all, own] = [sysctls.read('net/ipv4/ip_forward'), sysctls.read(path)];
  if (all !== '1' || own !== '0') return undefined;
  return {
    severity: 'error',
    summary: `${link} does not forward, although forwarding is on`,
    evidence: [`net.ipv4.ip_forward = ${all}`, `${dotted(path)} = ${own}`],
    cause:
      'Somebody switched the setting of this one link off. What comes in there for pods, answers from outside included, ends here.',
    remedy: `sysctl -w ${dotted(path)}=1, and remove what sets it`,
  };
}

/** With forwarding on, a link obeys router advertisements only with accept_ra 2; what it learned before runs out. */
async function advertisements(
  host: Host,
  wanted: readonly Sysctl[],
  { client, sysctls }: Facts,
): Promise<Finding | undefined> {
  if (sysctls.read('net/ipv6/conf/all/forwarding') !== '1') return undefined;
  const planned = new Set(wanted.map(({ path }) => path));
  const deaf = host.links.filter(
    ({ name, acceptRa }) => acceptRa === '1' && !planned.has(`net/ipv6/conf/${name}/accept_ra`),
  );
  if (deaf.length === 0) return undefined;
  const learned = await dumpRoutes(client, 'ipv6', RTPROT_RA);
  const affected = deaf.filter(({ ifindex }) => learned.some((route) => route.ifindex === ifindex));
  if (affected.length === 0) return undefined;
  const names = affected.map(({ name }) => name);
  return {
    severity: 'error',
    summary: `${names.join(', ')} lives by router advertisements and does not obey them any more`,
    evidence: [
      'net.ipv6.conf.all.forwarding = 1',
      ...names.map((name) => `net.ipv6.conf.${name}.accept_ra = 1`),
      ...learned.filter(({ ifindex }) => affected.some((link) => link.ifindex === ifindex)).map(({ text }) => text),
    ],
    cause:
      'Forwarding for IPv6 was switched on by something else than Tulle, which leaves accept_ra as it is: the routes vanish when their time is over.',
    remedy: names.map((name) => `sysctl -w net.ipv6.conf.${name}.accept_ra=2`).join('; '),
  };
}
