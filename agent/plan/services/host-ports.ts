/** Ports of this node that lead to one of its own pods (the CNI capability `portMappings`). Pure. */
import { type Fragment, rankOf } from '../../model/fragment.ts';
import { familyOf, type IpAddress } from '../../model/ip.ts';
import {
  type BackendSet,
  backendSet,
  type Frontend,
  frontendId,
  type Protocol,
  type Scope,
} from '../../model/services.ts';
import { type Guard, refusalOf } from './guard.ts';
import { socketItems } from './socket-items.ts';

/** One entry of `portMappings` (CNI conventions). */
export interface PortMapping {
  readonly hostPort: number;
  readonly containerPort: number;
  readonly protocol: Protocol;
  /** Absent: all addresses of the node. */
  readonly hostIp?: IpAddress;
}

/** A pod with such ports. */
export interface HostPortPod {
  /** `<namespace>/<name>`. */
  readonly name: string;
  readonly uid: string;
  readonly creationMs: number;
  readonly ips: readonly IpAddress[];
  readonly portMappings: readonly PortMapping[];
}

export interface HostPortPlan {
  readonly frontends: readonly Frontend[];
  readonly sets: readonly BackendSet[];
  readonly problems: readonly string[];
}

/**
 * `hostIps`: the addresses of this node, where connections may end; a mapping to another address would take foreign traffic.
 * Clients keep their source address.
 */
export function planHostPorts(pod: HostPortPod, hostIps: readonly IpAddress[], guard: Guard): HostPortPlan {
  const frontends = new Map<string, Frontend>();
  const sets = new Map<string, BackendSet>();
  const problems = new Set<string>();
  for (const mapping of pod.portMappings) {
    const { hostIp, hostPort: port, protocol } = mapping;
    if (hostIp !== undefined && !hostIps.includes(hostIp))
      problems.add(`cannot serve host port ${port}/${protocol} at ${hostIp}: this node does not have the address`);
    for (const ip of hostIps.filter((each) => hostIp === undefined || each === hostIp)) {
      const podIp = pod.ips.find((each) => familyOf(each) === familyOf(ip));
      if (podIp === undefined) continue;
      const at = { ip, port, protocol, kind: 'host-port' } as const;
      const refusal = refusalOf(at, undefined, guard);
      if (refusal !== undefined) problems.add(`cannot serve host port ${port}/${protocol} at ${ip}: ${refusal}`);
      if (refusal !== undefined) continue;
      const set = backendSet([{ ip: podIp, port: mapping.containerPort }]);
      for (const scope of ['internal', 'external'] satisfies Scope[]) {
        const frontend: Frontend = { scope, ...at, target: set.id, service: `${pod.name}:${mapping.containerPort}` };
        const id = frontendId(frontend);
        if (frontends.get(id)?.target !== set.id && frontends.has(id))
          problems.add(`host port ${id} is asked for twice`);
        else {
          frontends.set(id, frontend);
          sets.set(set.id, set);
        }
      }
    }
  }
  return { frontends: [...frontends.values()], sets: [...sets.values()], problems: [...problems] };
}

/** Beside the pod's own fragment, as it comes and goes with what the node's addresses are. */
export function hostPortFragment(pod: HostPortPod, { frontends, sets, problems }: HostPortPlan): Fragment {
  return {
    id: `host-ports ${pod.name}`,
    cause: `pod ${pod.name}`,
    rank: rankOf(pod.creationMs, pod.uid),
    items: socketItems(frontends, sets),
    requires: [],
    problems,
  };
}
