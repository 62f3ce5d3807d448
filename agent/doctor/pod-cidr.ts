/** The podCIDRs: of this Node, and of others as far as they are refused or overlap. */
import type { Node } from '../model/cluster.ts';
import { familyOf } from '../model/ip.ts';
import { findLosses, heldCidrs, type Loss } from '../plan/claims.ts';
import { type Check, type Finding, several, verdict } from './finding.ts';

export const podCidr: Check = {
  name: 'pod-cidr',
  async run(facts) {
    const nodes = await facts.nodes();
    if (!nodes) return { skipped: 'the Nodes cannot be read' };
    const { nodeName } = facts.config;
    const self = nodes.get(nodeName);
    if (!self) return verdict('', [unregistered(nodeName, nodes)]);
    const losses = findLosses(nodes.values());
    const own = losses.get(nodeName) ?? [];
    const others = [...losses].filter(([name]) => name !== nodeName);
    const { ipv6 } = await facts.host();
    const isUnused = self.podCidrs.some((cidr) => familyOf(cidr) === 'ipv6') && !ipv6;
    return verdict(`${heldCidrs(self, losses).join(', ')} of Node ${nodeName}`, [
      self.podCidrs.length === 0 ? unassigned(self, nodes) : undefined,
      self.problems.length > 0 ? unusable(self) : undefined,
      own.length > 0 ? lost(nodeName, own, 'error') : undefined,
      isUnused ? ipv6Off(self) : undefined,
      ...others.map(([name, lostOnes]) => lost(name, lostOnes, 'warning')),
    ]);
  },
};

const unregistered = (nodeName: string, nodes: ReadonlyMap<string, Node>): Finding => ({
  severity: 'error',
  summary: `the cluster has no Node named ${nodeName}`,
  evidence: [`Nodes: ${several([...nodes.keys()], 20)}`],
  cause: "The kubelet has not registered it, somebody deleted it, or the setting nodeName is not the kubelet's.",
  remedy:
    "restart the kubelet, or give the agent the kubelet's --hostname-override as nodeName (DaemonSet: spec.nodeName)",
});

function unassigned({ name, problems }: Node, nodes: ReadonlyMap<string, Node>): Finding {
  const without = [...nodes.values()].filter(({ podCidrs }) => podCidrs.length === 0).length;
  return {
    severity: 'error',
    summary: `Node ${name} has no podCIDR`,
    evidence: ['spec.podCIDRs: none', `Nodes without one: ${without} of ${nodes.size}`, ...problems],
    cause:
      without === nodes.size
        ? 'The controller manager of this cluster does not allocate podCIDRs.'
        : 'The range from which the controller manager allocates is used up, or it does not run.',
    remedy:
      'kubeadm: set networking.podSubnet, or on a running cluster add --allocate-node-cidrs=true --cluster-cidr=<range> to /etc/kubernetes/manifests/kube-controller-manager.yaml; k3s: --cluster-cidr; by hand: kubectl patch node ' +
      `${name} -p '{"spec":{"podCIDR":"<cidr>","podCIDRs":["<cidr>"]}}'`,
  };
}

const unusable = ({ name, problems }: Node): Finding => ({
  severity: 'error',
  summary: `Node ${name} has fields that cannot be used`,
  evidence: problems,
  cause: 'Somebody wrote them by hand, or a controller of another network did.',
  remedy: `kubectl get node ${name} -o yaml, and correct them`,
});

const lost = (name: string, losses: readonly Loss[], severity: Finding['severity']): Finding => ({
  severity,
  summary: `${several(losses.map(({ cidr }) => cidr))} of Node ${name} does not count`,
  evidence: losses.map(({ problem }) => problem),
  cause:
    'Two allocators give out podCIDRs, a Node was copied, or the range for pods contains addresses of nodes. Every node decides alike, by age.',
  remedy: `give ${name} another podCIDR: kubectl drain and delete the Node, restart its kubelet; keep pod, node and Service ranges apart`,
});

const ipv6Off = ({ name, podCidrs }: Node): Finding => ({
  severity: 'error',
  summary: `Node ${name} has an IPv6 podCIDR but IPv6 is off on this host`,
  evidence: [`spec.podCIDRs: ${podCidrs.join(', ')}`, 'net.ipv6.conf.all.disable_ipv6 is not 0'],
  cause: 'IPv6 was switched off by a sysctl or on the command line of the kernel.',
  remedy: 'sysctl -w net.ipv6.conf.all.disable_ipv6=0 (and in /etc/sysctl.d), or boot without ipv6.disable=1',
});
