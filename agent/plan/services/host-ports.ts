/** Ports of this node that lead to one of its own pods (the CNI capability `portMappings`). Pure. */
import { attachmentName, type HostPortPod, hostPortsId } from '../../model/attachment.ts';
import { type Fragment, type FragmentId, rankOf } from '../../model/fragment.ts';
import { addressesOf, type Host } from '../../model/host.ts';
import { familyOf, type IpAddress, specialUse } from '../../model/ip.ts';
import { isMeant, mappingText, type PortMapping } from '../../model/port-mapping.ts';
import { type BackendSet, backendSet, type Frontend, frontendId, type Scope } from '../../model/services.ts';
import { cidrAround, type Guard, refusalOf } from './guard.ts';
import { rendering } from './rendering.ts';
import type { ServiceSettings } from './settings.ts';

/** What this node is for host ports. */
export interface HostPortContext {
  /** See hostPortIps. */
  readonly ips: readonly IpAddress[];
  readonly guard: Guard;
  readonly settings: ServiceSettings;
}

/** Fragments of pods with host ports, and the shared ones that these require. */
export type PlanHostPorts = (pods: readonly HostPortPod[]) => readonly Fragment[];

interface HostPortPlan {
  readonly frontends: readonly Frontend[];
  readonly sets: readonly BackendSet[];
  readonly problems: readonly string[];
}

/**
 * Where host ports are served: only where connections may end, so that no mapping takes traffic to others. Not at loopback
 * addresses, and not at those inside the pod network, which are for pods.
 */
export function hostPortIps(host: Pick<Host, 'links'>, { podCidrs }: Guard): readonly IpAddress[] {
  return [...addressesOf(host)].filter((ip) => specialUse(ip) === undefined && !cidrAround(podCidrs, ip)).sort();
}

/**
 * Of pods that ask for one place, the youngest has it: ADD refuses a second one while the first lives, so the older is on its
 * way out. Beside the pods' own fragments, as these come and go with the addresses of the node.
 */
export function planHostPorts(pods: readonly HostPortPod[], context: HostPortContext): readonly Fragment[] {
  const takers = new Map<string, HostPortPod>();
  const fragments = new Map<FragmentId, Fragment>();
  for (const pod of pods.toSorted(youngerFirst)) {
    const plan = planOne(pod, takers, context);
    const { id, cause } = { id: hostPortsId(pod), cause: `pod ${attachmentName(pod)}` };
    const { items, requires, branches } = rendering(id, plan, context.settings);
    const rank = rankOf(pod.createdMs, pod.podUid ?? pod.containerId);
    for (const branch of branches) fragments.set(branch.id, branch);
    fragments.set(id, { id, cause, rank, items, requires, problems: plan.problems });
  }
  return [...fragments.values()];
}

const youngerFirst = (a: HostPortPod, b: HostPortPod): number =>
  b.createdMs - a.createdMs || (a.containerId < b.containerId ? -1 : 1);

/** Clients keep their source address. Notes in `takers` whose each place is. */
function planOne(pod: HostPortPod, takers: Map<string, HostPortPod>, context: HostPortContext): HostPortPlan {
  const frontends: Frontend[] = [];
  const sets = new Map<string, BackendSet>();
  const problems = new Set<string>();
  for (const mapping of pod.portMappings) {
    const { hostPort: port, protocol, containerPort } = mapping;
    const refuse = (reason: string) => problems.add(`cannot serve host port ${mappingText(mapping)}: ${reason}`);
    const nowhere = nowhereReason(mapping, pod, context);
    if (nowhere !== undefined) refuse(nowhere);
    for (const ip of context.ips.filter((each) => isMeant(mapping, each))) {
      const podIp = pod.ips.find((each) => familyOf(each) === familyOf(ip));
      if (podIp === undefined) continue;
      const at = { ip, port, protocol, kind: 'host-port' } as const;
      const place = frontendId({ ...at, scope: 'external' });
      const taker = takers.get(place);
      const refusal = taker ? takenReason(pod, taker) : refusalOf(at, undefined, context.guard);
      if (refusal !== undefined) refuse(`at ${ip}, ${refusal}`);
      if (refusal !== undefined) continue;
      takers.set(place, pod);
      const set = backendSet([{ ip: podIp, port: containerPort }]);
      sets.set(set.id, set);
      for (const scope of ['internal', 'external'] satisfies Scope[])
        frontends.push({ scope, ...at, target: set.id, service: `${attachmentName(pod)}:${containerPort}` });
    }
  }
  return { frontends, sets: [...sets.values()], problems: [...problems] };
}

/** Why the host address leads nowhere, whatever the port. */
function nowhereReason({ hostIp }: PortMapping, pod: HostPortPod, { ips }: HostPortContext): string | undefined {
  if (hostIp === undefined) return undefined;
  const family = familyOf(hostIp);
  if (!pod.ips.some((ip) => familyOf(ip) === family)) return `the pod has no ${family} address`;
  const special = specialUse(hostIp);
  if (special === 'unspecified' || ips.includes(hostIp)) return undefined;
  return special === undefined
    ? 'this node has no such address for it; name one of its own, or leave hostIP out'
    : `no port is served at a ${special} address; name another of this node, or leave hostIP out`;
}

const takenReason = (pod: HostPortPod, taker: HostPortPod): string =>
  taker === pod ? 'it asks for the port twice' : `${attachmentName(taker)}, which came later, has it`;
