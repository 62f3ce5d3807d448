/** The node's own address on the underlay: in the Node object, and on a link of this host. */
import type { Host } from '../model/host.ts';
import type { Family } from '../model/ip.ts';
import type { Plan } from '../plan/planner.ts';
import { type Check, type Finding, verdict } from './finding.ts';

export const nodeAddress: Check = {
  name: 'underlay',
  async run(facts) {
    const [plan, nodes] = [await facts.plan(), await facts.nodes()];
    const { nodeName } = facts.config;
    const self = nodes?.get(nodeName);
    if (!plan || !self) return { skipped: 'the Node of this host cannot be read' };
    const host = await facts.host();
    const { tunnel, locals, podNetworks } = plan.underlay;
    const pods = podNetworks.map(({ family }) => family);
    // Without pods any address would do.
    const used: readonly Family[] = tunnel
      ? [tunnel.family]
      : pods.length + Object.keys(locals).length > 0
        ? pods
        : ['ipv4'];
    const seen = used.map((family) => `${locals[family]?.ip} on ${locals[family]?.link?.name}`).join(', ');
    return verdict(seen, [...used.map((family) => problemOf(family, plan, host, nodeName)), unreachablePeers(plan)]);
  },
};

function problemOf(family: Family, { underlay }: Plan, host: Host, nodeName: string): Finding | undefined {
  const local = underlay.locals[family];
  if (local?.link) return undefined;
  const addresses = host.links.flatMap(({ name, addresses }) => addresses.map(({ ip }) => `${name} ${ip}`));
  if (!local) {
    return {
      severity: 'error',
      summary: `Node ${nodeName} has no InternalIP of ${family}`,
      evidence: [`status.addresses of Node ${nodeName}: none of ${family}`, `this host: ${addresses.join(', ')}`],
      cause: 'The kubelet reports the address of one family only, or none because a cloud provider has to.',
      remedy: 'give the kubelet --node-ip with both families, or the Node the annotation tulle.dev/underlay-ip',
    };
  }
  return {
    severity: 'error',
    summary: `no link of this host has ${local.ip}, the address of Node ${nodeName}`,
    evidence: [`Node ${nodeName}: ${local.ip}`, `this host: ${addresses.join(', ')}`],
    cause:
      'The address of the host has changed since the kubelet started, the link is gone, or the Node (or its annotation tulle.dev/underlay-ip) names an address outside a NAT.',
    remedy:
      "restart the kubelet with the right --node-ip, or set the Node's annotation tulle.dev/underlay-ip to an address of this host that the others reach",
  };
}

/** What the plan says of other Nodes; podCIDRs that do not count are told by their own check. */
function unreachablePeers({ fragments }: Plan): Finding | undefined {
  const problems = [...fragments.values()].flatMap(({ id, problems }) => (id.startsWith('node ') ? problems : []));
  const others = problems.filter((problem) => !problem.startsWith('podCIDR '));
  if (others.length === 0) return undefined;
  return {
    severity: 'warning',
    summary: `${others.length} problems with other Nodes leave their pods without a way`,
    evidence: others.slice(0, 10),
    cause: 'These Nodes lack an address of the right family, or the backend needs them on a segment of this host.',
    remedy: 'as each line says',
  };
}
