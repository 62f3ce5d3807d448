/** One interface that the CNI server gave to one container. */
import type { FragmentId } from './fragment.ts';
import type { IpAddress } from './ip.ts';
import type { PodBridge, PodLink } from './items.ts';
import type { PortMapping } from './port-mapping.ts';

/** The part of a pod record that reaches the kernel. */
export interface Attachment {
  readonly containerId: string;
  readonly ifName: string;
  readonly netns: PodLink['netns'];
  readonly podNamespace?: string;
  readonly podName?: string;
  readonly ips: readonly IpAddress[];
  /** Of a bridged pod, as it was when the pod was attached; absent for a routed one. */
  readonly bridge?: PodBridge;
}

export const podFragmentId = ({ containerId, ifName }: Pick<Attachment, 'containerId' | 'ifName'>): FragmentId =>
  `pod ${containerId}/${ifName}`;

/** `default/web`, or the container id of a container that is no pod. */
export const attachmentName = ({ podNamespace, podName, containerId }: Attachment): string =>
  podNamespace && podName ? `${podNamespace}/${podName}` : containerId;

/** An attachment of a pod with ports of this node. */
export interface HostPortPod extends Attachment {
  readonly podUid?: string;
  /** When it was attached, in milliseconds since the epoch. */
  readonly createdMs: number;
  readonly portMappings: readonly PortMapping[];
}

export const hostPortsId = ({ containerId, ifName }: Pick<Attachment, 'containerId' | 'ifName'>): FragmentId =>
  `host-ports ${containerId}/${ifName}`;
