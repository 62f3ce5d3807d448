/** What an ADD brings along: the namespace that it names, and what is remembered of it. */
import { type AddRequest, CNI_CODES, CniError } from '../../cni/protocol.ts';
import type { PodBridge, PodLink, PodMtu } from '../model/items.ts';
import { toCniError } from './cni-errors.ts';
import type { PodRecord } from './records.ts';

/**
 * The namespace as this process finds it. Throws CniError 4 when there is none, or another than the runtime's side found.
 * `identify` throws KernelError when there is no network namespace at a path, or the host's own.
 */
export function netnsOf(
  { netns }: AddRequest,
  identify: (path: string) => Pick<PodLink['netns'], 'device' | 'inode'>,
): PodLink['netns'] {
  if (netns.error !== undefined) {
    throw new CniError(
      CNI_CODES.invalidEnvironment,
      `cannot use CNI_NETNS ${netns.path}: the runtime's side finds ${netns.error} there`,
    );
  }
  try {
    const { device, inode } = identify(netns.path);
    if (netns.inode === undefined || (netns.device === device && netns.inode === inode))
      return { path: netns.path, device, inode };
  } catch (cause) {
    throw toCniError(cause, `use CNI_NETNS ${netns.path}`, CNI_CODES.invalidEnvironment);
  }
  throw new CniError(
    CNI_CODES.invalidEnvironment,
    `cannot use CNI_NETNS ${netns.path}: the agent sees another file there than the runtime; mount its directory into the agent's pod with mountPropagation HostToContainer`,
  );
}

/** What the node gives the attachment. */
interface Given {
  readonly netns: PodLink['netns'];
  readonly ips: PodRecord['ips'];
  readonly mtu: PodMtu;
  readonly bridge: PodBridge | undefined;
  readonly portMappings: NonNullable<PodRecord['portMappings']>;
  readonly createdMs: number;
}

export function recordOf(request: AddRequest, { netns, ips, mtu, bridge, portMappings, createdMs }: Given): PodRecord {
  const { containerId, ifName, args, runtime, config } = request;
  const { podNamespace, podName, podUid } = args;
  return Object.freeze({
    containerId,
    ifName,
    network: config.name,
    netns,
    ...(podNamespace !== undefined && { podNamespace }),
    ...(podName !== undefined && { podName }),
    ...(podUid !== undefined && { podUid }),
    ...(portMappings.length > 0 && { portMappings }),
    ...(runtime !== undefined && { runtime }),
    ips,
    ...(bridge && { bridge }),
    ...mtu,
    createdMs,
  });
}
